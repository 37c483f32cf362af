// norms[n] = sum_r weights[r] * sum_m rows[r, n, m]^2
//
// A thread owns whole pieces of kSquaredNormsPiece elements of one row and writes one
// partial sum for each; then a thread owns whole samples and adds their partial sums in
// order. The pieces depend on the shapes alone, so the result does not depend on the
// number of threads. Everything is accumulated in double.
// Bytes: R N M elements read once. Operations: 2 R N M.
#include "squared_norms.h"

#include <algorithm>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

template <typename T>
double sum_of_squares(const T* values, std::int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < count; ++i) {
        const double value = values[i];
        sum += value * value;
    }
    return sum;
}

}  // namespace

template <typename T>
void squared_norms(const SquaredNorms<T>& p) {
    const std::int64_t pieces =
        (p.row_length + kSquaredNormsPiece - 1) / kSquaredNormsPiece;
    const std::int64_t total = p.samples * p.row_count * pieces;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < total; ++i) {
            const std::int64_t start = (i % pieces) * kSquaredNormsPiece;
            const std::int64_t count =
                std::min(kSquaredNormsPiece, p.row_length - start);
            p.partials[i] =
                sum_of_squares(p.rows + (i / pieces) * p.row_length + start, count);
        }
#pragma omp for schedule(static)
        for (std::int64_t n = 0; n < p.samples; ++n) {
            double norm = 0;
            for (std::int64_t r = 0; r < p.row_count; ++r) {
                const double* partials = p.partials + (r * p.samples + n) * pieces;
                double row = 0;
                for (std::int64_t b = 0; b < pieces; ++b) row += partials[b];
                norm += p.weights == nullptr ? row : p.weights[r] * row;
            }
            p.norms[n] = norm;
        }
    }
}

template void squared_norms<float>(const SquaredNorms<float>&);
template void squared_norms<double>(const SquaredNorms<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
