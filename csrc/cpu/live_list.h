// The live (pixel, channel) pairs of a gated convolution's output.
#pragma once

#include "dispatch.h"

namespace fastjac {

// Behind a convolution stand gates and perhaps a max pool. Of its C x P outputs (C
// channels, P pixels) only some carry cotangents: those that a pooled output was routed
// from and whose gates are open. The list of them is shared by all rows of a sample.
//
// An entry is one pooled output (c, q), q < Q, that is alive. Entries are sorted by the
// pixel p = route[c, q] that they come from, then by channel. Without a pool q = p.
//
// An average pool whose windows do not overlap is linear: every output before it is an
// entry of its own, Q = P, whose `source` is the pooled output of its window and whose
// factor holds the average's weight. Then several entries have one source.
template <typename T>
struct LiveList {
    const std::int64_t* route;  // (N, C, Q) pixel that won, or null: q itself
    const T* gate;              // (N, C, P) gate before the pool, or null: all open
    const T* pooled_gate;       // (N, C, Q) gate behind the pool, or null: all open
    bool step;                  // gate opens fully where it is > 0; else it is a factor
    bool pooled_step;           // the same for pooled_gate
    std::int32_t* starts;       // (N, P + 1) first entry of each pixel
    std::int32_t* channels;     // (N, C Q) channel of each entry
    std::int32_t* sources;      // (N, C Q) pooled output of each entry
    T* factors;                 // (N, C Q) product of the gates of each entry
    std::int32_t* positions;    // (N, C, Q) entry of each pooled output, or -1; or null
    std::int32_t* offsets;      // (N, C Q) channel - column * column_step, see Run
    unsigned char* open;   // (N, C min(P, kListPixels)), workspace; unused with a route
    std::int64_t samples;  // N
    std::int64_t channel_count;  // C
    std::int64_t pixels;         // P
    std::int64_t pooled_pixels;  // Q
    std::int64_t width;          // columns of the pixels
    std::int64_t column_step;    // stride of the columns times C
    std::int64_t window_y;       // of an average pool; 1 without one
    std::int64_t window_x;
    T scale;  // an average's weight; 1 without one
};

// The most pixels whose gates live_list reads together, channel by channel.
constexpr std::int64_t kListPixels = 32;

FASTJAC_DECLARE_KERNEL(template <typename T> void live_list(const LiveList<T>& p);)

// Moves rows between pooled outputs and live entries:
//   gather:  compact[n, e, r] = factor[e] * rows[r, n, c(e), q(e)]
//   scatter: rows[r, n, c(e), q(e)] += factor[e] * compact[n, e, r], from zeros on
// Scatter writes whole blocks of `stride_sample` elements: the rows of a sample where
// pixels come first, else a sample of a row.
template <typename T>
struct LiveRows {
    T* rows;                     // (R, N, C, Q) by the strides below
    T* compact;                  // (N, C Q, row_stride), lanes from R on are zeroed
    const std::int32_t* starts;  // as LiveList
    const std::int32_t* channels;
    const std::int32_t* sources;
    const T* factors;
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
