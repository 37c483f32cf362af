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

}  // namespace fastjac
