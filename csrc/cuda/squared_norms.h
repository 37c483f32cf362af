// Squared norms of rows, sample by sample, on the GPU.
#pragma once

#include <cstdint>

#include "stream.h"

namespace fastjac {
namespace cuda {

// Elements of a row that one warp sums.
constexpr std::int64_t kSquaredNormsPiece = 2048;

template <typename T>
struct SquaredNorms {
    const T* rows;            // (R, N, M)
    const double* weights;    // (R), or null for all ones
    double* partials;         // (R, N, ceil(M / kSquaredNormsPiece)), workspace
    double* norms;            // (N), the result
    std::int64_t row_count;   // R
    std::int64_t samples;     // N
    std::int64_t row_length;  // M
};

template <typename T>
void squared_norms(const SquaredNorms<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
