// Rows pulled through a linear layer, to those of its inputs that are live.
#pragma once

#include "dispatch.h"

namespace fastjac {

// u[n, i, r] = sum_e W[c(e), i] g[n, e, r] over the live outputs e of the linear layer,
// for the inputs i = c(b) Q + q(b) of the entries b that the layer below has alive, and
// for no others: they are not written. Both lists are LiveLists, see live_list.h.
template <typename T>
struct LivePull {
    const T* weight;                     // (I, C), transposed
    const std::int32_t* starts;          // (N, 2)
    const std::int32_t* channels;        // (N, C)
    const T* compact;                    // (N, C, row_stride), rows of the entries
    const std::int32_t* below_starts;    // (N, P + 1)
    const std::int32_t* below_channels;  // (N, I)
    const std::int32_t* below_sources;   // (N, I)
    T* out;                              // (N, I, row_stride)
    std::int64_t samples;                // N
    std::int64_t channel_count;          // C
    std::int64_t input_count;            // I
    std::int64_t below_pixels;           // P
    std::int64_t below_pooled;           // Q
    std::int64_t row_stride;             // R rounded up to the widest vector
};

FASTJAC_DECLARE_KERNEL(template <typename T> void live_pull(const LivePull<T>& p);)

}  // namespace fastjac
