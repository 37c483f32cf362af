// The live (pixel, channel) pairs of a gated convolution's output, on the GPU.
#pragma once

#include <cstdint>

#include "stream.h"

namespace fastjac {
namespace cuda {

// The same list in the same order as that of csrc/cpu/live_list.h, where the fields are
// explained; no size of it is known on the host, and none is needed there.
template <typename T>
struct LiveList {
    const std::int64_t* route;   // (N, C, Q) pixel that won, or null: q itself
    const T* gate;               // (N, C, P), or null: all open
    const T* pooled_gate;        // (N, C, Q), or null: all open
    std::int32_t* starts;        // (N, P + 1)
    std::int32_t* channels;      // (N, C Q)
    std::int32_t* sources;       // (N, C Q)
    T* factors;                  // (N, C Q)
    std::int32_t* positions;     // (N, C, Q)
    std::int32_t* offsets;       // (N, C Q)
    std::int32_t* cursors;       // (N, P, S) zeros, workspace
    std::int64_t samples;        // N
    std::int32_t channel_count;  // C
    std::int32_t pixels;         // P
    std::int32_t pooled_pixels;  // Q
    std::int32_t width;          // columns of the pixels
    std::int32_t column_step;    // stride of the columns times C
    std::int32_t segments;       // S, how many warps fill the list of one sample
    bool step;         // gate opens fully where it is > 0; else it is a factor
    bool pooled_step;  // the same for pooled_gate
};

// Into how many segments of channels a sample is cut, so that N samples fill a GPU, and
// one block scans a sample's counters in a few passes.
inline std::int64_t live_segments(std::int64_t samples, std::int64_t channels,
                                  std::int64_t pixels) {
    constexpr std::int64_t kWarpsWanted = 4096, kMostCounters = 32768;
    std::int64_t segments = kWarpsWanted / (samples < 1 ? 1 : samples);
    if (segments > kMostCounters / pixels) segments = kMostCounters / pixels;
    if (segments > channels) segments = channels;
    return segments < 1 ? 1 : segments;
}

template <typename T>
void live_list(const LiveList<T>& p, Stream stream);

// Moves rows between pooled outputs and live entries:
//   gather:  compact[n, e, r] = factor[e] * rows[r, n, c, q] for e = position[n, c, q]
//   scatter: rows[r, n, c, q] = factor[e] * compact[n, e, r], or 0 where nothing lives
// Of a compact entry, the lanes from R on are zeroed.
template <typename T>
struct LiveRows {
    T* rows;                        // (R, N, C, Q) by the strides below
    T* compact;                     // (N, C Q, row_stride)
    const std::int32_t* positions;  // (N, C, Q), as LiveList
    const T* factors;               // (N, C Q)
    std::int64_t samples;
    std::int32_t channel_count;
    std::int32_t pooled_pixels;
    std::int32_t row_count;   // R
    std::int32_t row_stride;  // at least R; 1, or a multiple of 16 bytes
    std::int64_t stride_row;  // strides of rows, in elements
    std::int64_t stride_sample;
    std::int64_t stride_channel;
    std::int64_t stride_pixel;
};

template <typename T>
void gather_live(const LiveRows<T>& p, Stream stream);

template <typename T>
void scatter_live(const LiveRows<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
