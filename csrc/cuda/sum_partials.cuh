// gradient[c, i, t] = sum over splits s, in order, of partials[s, t, c, i]
//
// A thread owns one weight of each layer and adds its parts in double. Neighbours read
// neighbours; each weight is written once, wherever its layout has it. All layers of a
// network are one launch. Bytes: the parts once, the gradients once.
#pragma once

#include "launch.cuh"
#include "sum_partials.h"

namespace fastjac {
namespace cuda {
namespace {

template <typename T>
__global__ void sum_partials_kernel(SumPartials<T> p) {
    for (int index = 0; index < p.layer_count; ++index) {
        const PartialSums<T>& layer = p.layers[index];
        const std::int64_t part = static_cast<std::int64_t>(layer.taps) *
                                  layer.out_channels * layer.channel_stride;
        for (std::int64_t item = first_item(); item < layer.count;
             item += item_step()) {
            const std::int64_t i = item % layer.in_channels;
            const std::int64_t c = item / layer.in_channels % layer.out_channels;
            const std::int64_t t =
                item /
                (static_cast<std::int64_t>(layer.in_channels) * layer.out_channels);
            const T* from = layer.partials +
                            (t * layer.out_channels + c) * layer.channel_stride + i;
            double sum = 0;
            for (int split = 0; split < layer.splits; ++split) {
                sum += from[split * part];
            }
            layer.gradient[(c * layer.in_channels + i) * layer.taps + t] =
                static_cast<T>(sum);
        }
    }
}

}  // namespace

template <typename T>
void sum_partials(const SumPartials<T>& p, Stream stream) {
    std::int64_t most = 0;
    for (int layer = 0; layer < p.layer_count; ++layer) {
        if (p.layers[layer].count > most) most = p.layers[layer].count;
    }
    launch("sum_partials", sum_partials_kernel<T>, one_thread_each(most), stream, p);
}

}  // namespace cuda
}  // namespace fastjac
