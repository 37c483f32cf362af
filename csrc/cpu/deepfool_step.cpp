// w_k = rows[k] - rows[0],  f_k = logits[k] - logits[0],  k* = argmin |f_k| / |w_k|
// shift += (|f_k*| / |w_k*| + margin) w_k* / |w_k*|      (l2; sign(w_k*) for l_inf)
// x = start + (1 + overshoot) shift, clamped, with shift following the clamp
//
// |w| is the dual norm: l2 for l2 perturbations, l1 for l_inf. A sample whose every w_k
// is zero is marked stuck and stays where it is.
//
// A thread owns whole samples. The rows are read once, in blocks of kBlock elements so
// that row 0's block stays in L1 while the others pass; then the nearest row once more.
// Bytes: N (R + 2) D elements read, 2 N D written. Operations: 3 N R D.
#include "deepfool_step.h"

#include <algorithm>
#include <cmath>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;

// sum (a - b)^2, or sum |a - b| for linf.
template <bool linf, typename T>
double difference(const T* a, const T* b, std::int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < count; ++i) {
        const double w = static_cast<double>(a[i] - b[i]);
        sum += linf ? std::fabs(w) : w * w;
    }
    return sum;
}

// Fills sizes[1..R-1] with the dual norms of the differences to row 0.
template <bool linf, typename T>
void measure(const T* rows, std::int64_t row_count, std::int64_t length,
             double* sizes) {
    std::fill(sizes, sizes + row_count, 0.0);
    for (std::int64_t begin = 0; begin < length; begin += kBlock) {
        const std::int64_t count = std::min(kBlock, length - begin);
        for (std::int64_t k = 1; k < row_count; ++k) {
            sizes[k] +=
                difference<linf>(rows + k * length + begin, rows + begin, count);
        }
    }
    if (linf) return;
    for (std::int64_t k = 1; k < row_count; ++k) sizes[k] = std::sqrt(sizes[k]);
}

// Adds scale * w to shift and moves x along.
template <bool linf, bool bounded, typename T>
void move(const DeepFoolStep<T>& p, std::int64_t n, const T* row, const T* row0,
          double scale) {
    const T* start = p.start + n * p.row_length;
    T* shift = p.shift + n * p.row_length;
    T* x = p.x + n * p.row_length;
    const T gain = static_cast<T>(1 + p.overshoot);
    const T low = static_cast<T>(p.low), high = static_cast<T>(p.high);
#pragma omp simd
    for (std::int64_t i = 0; i < p.row_length; ++i) {
        const T w = row[i] - row0[i];
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
    const T* rows = p.rows + n * p.row_count * p.row_length;
    const T* logits = p.logits + n * p.row_count;
    double* sizes = p.sizes + n * p.row_count;
    measure<linf>(rows, p.row_count, p.row_length, sizes);

    // The nearest boundary among those that have a direction.
    std::int64_t nearest = 0;
    double distance = 0;
    for (std::int64_t k = 1; k < p.row_count; ++k) {
        if (!(sizes[k] > 0)) continue;
        const double d = std::fabs(static_cast<double>(logits[k] - logits[0]));
        if (nearest == 0 || d / sizes[k] < distance) {
            nearest = k;
            distance = d / sizes[k];
        }
    }
    p.stuck[n] = nearest == 0;
    if (nearest == 0) return;
    const double scale = (distance + p.margin) / (linf ? 1.0 : sizes[nearest]);
    move<linf, bounded>(p, n, rows + nearest * p.row_length, rows, scale);
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
