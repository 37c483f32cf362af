// w_k = rows[k - 1],  f_k = logits[k] - logits[0],  k* = argmin |f_k| / |w_k|,  k >= 1
// shift += (|f_k*| / |w_k*| + margin) w_k* / |w_k*|      (l2; sign(w_k*) for l_inf)
// x = start + (1 + overshoot) shift, clamped, with shift following the clamp
//
// |w| is the dual norm: l2 for l2 perturbations, l1 for l_inf. A sample whose every w_k
// is zero is marked stuck and stays where it is.
//
// A thread owns whole samples. The R - 1 rows are read once, then the nearest once
// more. Bytes: N (R + 2) D elements read, 2 N D written. Operations: 2 N R D.
#include "deepfool_step.h"

#include <algorithm>
#include <cmath>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// The dual norm of a row.
template <bool linf, typename T>
double dual_norm(const T* row, std::int64_t length) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < length; ++i) {
        const double w = static_cast<double>(row[i]);
        sum += linf ? std::fabs(w) : w * w;
    }
    return linf ? sum : std::sqrt(sum);
}

// Adds scale * w to shift and moves x along.
template <bool linf, bool bounded, typename T>
void move(const DeepFoolStep<T>& p, std::int64_t n, const T* row, double scale) {
    const T* start = p.start + n * p.row_length;
    T* shift = p.shift + n * p.row_length;
    T* x = p.x + n * p.row_length;
    const T gain = static_cast<T>(1 + p.overshoot);
    const T low = static_cast<T>(p.low), high = static_cast<T>(p.high);
#pragma omp simd
    for (std::int64_t i = 0; i < p.row_length; ++i) {
        const T w = row[i];
        const double along = linf ? static_cast<double>((w > 0) - (w < 0)) : w;
        T moved = shift[i] + static_cast<T>(scale * along);
        T reached = start[i] + gain * moved;
        if (bounded) {
            reached = std::min(std::max(reached, low), high);
            moved = (reached - start[i]) / gain;
        }
        shift[i] = moved;
        x[i] = reached;
    }
}

template <bool linf, bool bounded, typename T>
void step_one(const DeepFoolStep<T>& p, std::int64_t n) {
    const T* rows = p.rows + n * (p.class_count - 1) * p.row_length;
    const T* logits = p.logits + n * p.class_count;

    // The nearest boundary among those that have a direction.
    const T* nearest = nullptr;
    double distance = 0, size = 0;
    for (std::int64_t k = 1; k < p.class_count; ++k) {
        const T* row = rows + (k - 1) * p.row_length;
        const double here = dual_norm<linf>(row, p.row_length);
        if (!(here > 0)) continue;
        const double gap = std::fabs(static_cast<double>(logits[k] - logits[0]));
        if (nearest == nullptr || gap / here < distance) {
            nearest = row;
            distance = gap / here;
            size = here;
        }
    }
    p.stuck[n] = nearest == nullptr;
    if (nearest == nullptr) return;
    const double scale = (distance + p.margin) / (linf ? 1.0 : size);
    move<linf, bounded>(p, n, nearest, scale);
}

template <bool linf, bool bounded, typename T>
void step_all(const DeepFoolStep<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) step_one<linf, bounded>(p, n);
}

}  // namespace

template <typename T>
void deepfool_step(const DeepFoolStep<T>& p) {
    if (p.linf) {
        p.bounded ? step_all<true, true>(p) : step_all<true, false>(p);
    } else {
        p.bounded ? step_all<false, true>(p) : step_all<false, false>(p);
    }
}

template void deepfool_step<float>(const DeepFoolStep<float>&);
template void deepfool_step<double>(const DeepFoolStep<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
