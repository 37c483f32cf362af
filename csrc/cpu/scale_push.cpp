// pushed[r, m] = factor[m] * tangents[r, m]
// gradient[m] = sum_r rows[r, m] * tangents[r, m]
//
// A thread owns pieces of kPiece elements of all rows: the factor and the sums of a
// piece stay in L1 while its rows stream past.
// Bytes: R M elements read twice and written once. Operations: 3 R M.
#include "scale_push.h"

#include <algorithm>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

constexpr std::int64_t kPiece = 2048;

}  // namespace

template <typename T>
void scale_push(const ScalePush<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t start = 0; start < p.row_length; start += kPiece) {
        const std::int64_t count = std::min(kPiece, p.row_length - start);
        const T* factor = p.factor + start;
        T* gradient = p.gradient + start;
        std::fill(gradient, gradient + count, T(0));
        for (std::int64_t r = 0; r < p.row_count; ++r) {
            const T* rows = p.rows + r * p.row_length + start;
            const T* tangents = p.tangents + r * p.row_length + start;
            T* pushed = p.pushed + r * p.row_length + start;
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) {
                const T tangent = tangents[i];
                gradient[i] += rows[i] * tangent;
                pushed[i] = factor[i] * tangent;
            }
        }
    }
}

template void scale_push<float>(const ScalePush<float>&);
template void scale_push<double>(const ScalePush<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
