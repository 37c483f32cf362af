// Rows between a layer's outputs and the entries of its live list, on the GPU.
#pragma once

#include <cstdint>

#include "../row_types.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

// Moves rows between outputs and live entries:
//   gather:  compact[n, e, r] = factor[e] * rows[r, n, c, w(q)] for e = position[n, c,
//   q] scatter: rows[r, n, c, w] = sum over the q of w of factor[e] * compact[n, e, r],
//            0 where nothing lives
// Behind a max pool, and without a pool, w(q) = q. Behind an average pool q is a pixel
// before it and w(q) its window; pixels in no window have no entry. Of a compact entry,
// the lanes from R on are zeroed.
template <typename Row>
struct LiveRows {
    Row* rows;                      // (R, N, C, windows) by the strides below
    Row* compact;                   // (N, C Q, row_stride)
    const std::int32_t* positions;  // (N, C, Q), as LiveList
    const Sum<Row>* factors;        // (N, C Q)
    std::int64_t samples;
    std::int32_t channel_count;
    std::int32_t pooled_pixels;  // Q
    std::int32_t width;          // columns of the Q pixels of an average pool
    std::int32_t window_y;       // of an average pool; 1 without one
    std::int32_t window_x;
    std::int32_t row_count;   // R
    std::int32_t row_stride;  // at least R; 1, or whole packs
    std::int64_t stride_row;  // strides of rows, in elements
    std::int64_t stride_sample;
    std::int64_t stride_channel;
    std::int64_t stride_pixel;
};

template <typename Row>
void gather_live(const LiveRows<Row>& p, Stream stream);

template <typename Row>
void scatter_live(const LiveRows<Row>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
