// The last step of weight gradients: the sums of their parts, laid out as the weights.
#pragma once

#include <cstdint>

#include "stream.h"

namespace fastjac {
namespace cuda {

// gradient[c, i, t] = sum over splits of partials[split, t, c, i]: the weight gradient
// of one layer as its weight is laid out.
template <typename T>
struct PartialSums {
    const T* partials;   // (splits, taps, C, channel_stride)
    T* gradient;         // (C, C', taps)
    std::int64_t count;  // taps C C'
    std::int32_t splits;
    std::int32_t taps;
    std::int32_t out_channels;    // C
    std::int32_t in_channels;     // C'
    std::int32_t channel_stride;  // at least C'
};

// Layers whose sums one launch makes.
constexpr int kMostSums = 16;

template <typename T>
struct SumPartials {
    PartialSums<T> layers[kMostSums];
    int layer_count;
};

template <typename T>
void sum_partials(const SumPartials<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
