// Squared norms of rows, sample by sample, their sum and its root, on the GPU.
#pragma once

#include <cstdint>

#include "../row_types.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

// Elements of a row that one warp sums.
constexpr std::int64_t kSquaredNormsPiece = 2048;

// Numbers of which one that is not finite makes a sample's norm NaN.
struct Watched {
    const void* values;      // (N, K), or null: nothing is watched
    std::int64_t each;       // K
    int bytes;               // of a value: 2, 4 or 8
    std::uint64_t exponent;  // the bits that are all set where one is not finite
};

template <typename Row>
struct SquaredNorms {
    const Row* rows;          // (R, N, M)
    const double* weights;    // (R), or null for all ones
    double* partials;         // (R, N, ceil(M / kSquaredNormsPiece)), workspace
    double* norms;            // (N), the result
    std::int64_t row_count;   // R
    std::int64_t samples;     // N
    std::int64_t row_length;  // M
    bool add;                 // whether norms hold other rows' norms already
    Watched watched;
};

template <typename Row>
void squared_norms(const SquaredNorms<Row>& p, Stream stream);

// The sum of norms, its root, and one over that root, 0 for a root of 0.
template <typename T>
struct NormTotals {
    const double* norms;  // (N)
    T* totals;            // (3): sum, root, 1 / root
    std::int64_t samples;
};

// squared_norms, and then the totals over all of `totals.norms`, of which p.norms may
// be a part: a launch less than one after the other, unless there is much to sum.
template <typename Row>
void squared_norms_and_totals(const SquaredNorms<Row>& p,
                              const NormTotals<Sum<Row>>& totals, Stream stream);

}  // namespace cuda
}  // namespace fastjac
