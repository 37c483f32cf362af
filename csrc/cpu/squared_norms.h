// Squared norms of rows, sample by sample.
#pragma once

#include "dispatch.h"

namespace fastjac {

// Elements of a row that one partial sum covers.
constexpr std::int64_t kSquaredNormsPiece = 8192;

template <typename T>
struct SquaredNorms {
    const T* rows;            // (R, N, M), contiguous
    const double* weights;    // (R), or null for all ones
    double* partials;         // (R, N, ceil(M / kSquaredNormsPiece)), workspace
    double* norms;            // (N), the result
    std::int64_t row_count;   // R
    std::int64_t samples;     // N
    std::int64_t row_length;  // M
};

FASTJAC_DECLARE_KERNEL(template <typename T>
                       void squared_norms(const SquaredNorms<T>& p);)

}  // namespace fastjac
