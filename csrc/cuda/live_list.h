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
    std::int32_t* cursors;       // (N, P, S), workspace
    std::int64_t samples;        // N
    std::int32_t channel_count;  // C
    std::int32_t pixels;         // P
    std::int32_t pooled_pixels;  // Q
    std::int32_t width;          // columns of the pixels
    std::int32_t column_step;    // stride of the columns times C
    std::int32_t segments;       // S, how many warps fill the list of one sample
    std::int32_t window_y;       // of an average pool, whose Q is P; 1 without one
    std::int32_t window_x;
    T scale;           // an average's weight; 1 without one
    bool step;         // gate opens fully where it is > 0; else it is a factor
    bool pooled_step;  // the same for pooled_gate
};

// The most outputs of a sample whose list one block makes although it may be alone.
constexpr std::int64_t kMostOfBlock = 32768;
// From how many samples on blocks that own one each fill a GPU.
constexpr std::int64_t kEnoughBlocks = 128;
constexpr int kListThreads = 256;

// Whether one launch makes the lists, a block a sample, instead of four.
inline bool one_block_lists(std::int64_t samples, std::int64_t outputs) {
    return samples >= kEnoughBlocks || outputs <= kMostOfBlock;
}

// Into how many segments of channels a sample is cut: one for each warp of its block,
// or so that N samples fill a GPU and one block scans a sample's counters in a few
// passes.
inline std::int64_t live_segments(std::int64_t samples, std::int64_t channels,
                                  std::int64_t pixels, std::int64_t pooled_pixels) {
    constexpr std::int64_t kWarpsWanted = 4096, kMostCounters = 32768;
    std::int64_t segments = kListThreads / 32;
    if (!one_block_lists(samples, channels * pooled_pixels)) {
        segments = kWarpsWanted / samples;
        if (segments > kMostCounters / pixels) segments = kMostCounters / pixels;
    }
    if (segments > channels) segments = channels;
    return segments < 1 ? 1 : segments;
}

template <typename T>
void live_list(const LiveList<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
