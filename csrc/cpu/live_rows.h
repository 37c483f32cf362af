// Rows on their way between pooled outputs and the live entries of a list.
#pragma once

#include "dispatch.h"

namespace fastjac {

// Moves rows between pooled outputs and live entries:
//   gather:  compact[n, e, r] = factor[e] * rows[r, n, c(e), q(e)], and if wanted
//            bias_gradient[c] = sum over n, r and e with c(e) = c of
//            compact[n, e, r] * ones[n, r]
//   scatter: rows[r, n, c(e), q(e)] += factor[e] * v, from zeros on, where
//            v = compact[n, e, r] + bias[c(e)] * ones[n, r], if there is a bias
// Scatter writes whole blocks of `stride_sample` elements: the rows of a sample where
// pixels come first, else a sample of a row. With `live_only` it writes the rows of
// live entries alone, which then must lie together (stride_row = 1), have a source
// each, and be padded to `stride_channel`, with zeros that scatter writes.
template <typename T>
struct LiveRows {
    T* rows;                     // (R, N, C, Q) by the strides below
    T* compact;                  // (N, C Q, row_stride), lanes from R on are zeroed
    const std::int32_t* starts;  // as LiveList
    const std::int32_t* channels;
    const std::int32_t* sources;
    const T* factors;
    T* bias_gradient;  // (C), or null
    const T* bias;     // (C), or null
    const T* ones;     // (N, R), the last coordinate of the tangents; null without both
    bool live_only;
    std::int64_t samples;
    std::int64_t channel_count;
    std::int64_t pixels;
    std::int64_t pooled_pixels;
    std::int64_t row_count;   // R
    std::int64_t row_stride;  // elements of one compact entry, at least R
    std::int64_t stride_row;  // strides of rows, in elements
    std::int64_t stride_sample;
    std::int64_t stride_channel;
    std::int64_t stride_pixel;
};

FASTJAC_DECLARE_KERNEL(template <typename T> void gather_live(const LiveRows<T>& p);
                       template <typename T> void scatter_live(const LiveRows<T>& p);)

}  // namespace fastjac
