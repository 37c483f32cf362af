//   g[e, r] = sum_t sum_i W[t, c(e), i] u[p'(p, t), r, i]
//
// A warp owns an output pixel and a tile of rows. Four groups of eight lanes take ET
// entries of the pixel each; the lanes of a group take turns at the packs of channels,
// tap after tap, and add their sums by shuffles at the end. All groups read the same
// input, so a pack of it is used by 4 ET entries.
//
// A step of a warp at RT = 10, V = 4, ET = 3: 120 FFMA a thread for 3 packs of weights
// and 10 of input, 22 wavefronts of L1 against 30 cycles of FFMA. Operations: 2 R C' an
// entry and tap. Bytes from memory: R of compact and of input once.
#pragma once

#include "conv_tiles.cuh"

namespace fastjac {
namespace cuda {
namespace {

constexpr int kPushGroups = 4;
constexpr int kPushLanes = kWarp / kPushGroups;
constexpr int kPushMost = 3;

// The sums of one lane over its taps and channels, for ET entries and RT rows.
template <int ET, int RT, int V, typename Row, typename T>
__device__ void add_window(const GatedConv<Row>& p, const Row* input, std::int32_t y,
                           std::int32_t x, int row, const T* const (&weight)[ET],
                           T (&sums)[ET][RT]) {
    const int lane = threadIdx.x % kPushLanes;
    const int packs = p.channel_stride / V;
    // Taps side by side in the lanes of a group where the channels do not fill them.
    const int together = packs < kPushLanes ? kPushLanes / packs : 1;
    const int first_pack = together > 1 ? lane % packs : lane;
    int tap = together > 1 ? lane / packs : 0;
    if (tap >= together) return;
    const int taps = p.kernel_y * p.kernel_x;
    const int last_row = p.row_count - 1 - row;
    for (; tap < taps; tap += together) {
        const std::int32_t in_y =
            y * p.stride_y - p.padding_y + tap / p.kernel_x * p.dilation_y;
        const std::int32_t in_x =
            x * p.stride_x - p.padding_x + tap % p.kernel_x * p.dilation_x;
        if (in_y < 0 || in_y >= p.in_height || in_x < 0 || in_x >= p.in_width) continue;
        const std::int64_t pixel = static_cast<std::int64_t>(in_y) * p.in_width + in_x;
        const Row* u = input + (pixel * p.row_count + row) * p.channel_stride;
        const std::int64_t of_tap =
            static_cast<std::int64_t>(tap) * p.out_channels * p.channel_stride;
        for (int pack = first_pack; pack < packs; pack += kPushLanes) {
            Pack<T, V> w[ET];
#pragma unroll
            for (int e = 0; e < ET; ++e) {
                w[e] = load_pack<V>(weight[e] + of_tap + pack * V);
            }
#pragma unroll
            for (int r = 0; r < RT; ++r) {
                // Rows beyond the last repeat it, and nobody looks at their sums.
                const std::int64_t at = r < last_row ? r : last_row;
                const Pack<T, V> values =
                    load_pack<V>(u + at * p.channel_stride + pack * V);
#pragma unroll
                for (int e = 0; e < ET; ++e) {
#pragma unroll
                    for (int v = 0; v < V; ++v) sums[e][r] += w[e].v[v] * values.v[v];
                }
            }
        }
    }
}

// Entries [first, end) of a pixel, at most kPushGroups * ET of them.
template <int ET, int RT, int V, typename Row>
__device__ void push_entries(const GatedConv<Row>& p, const Entries<Row>& entries,
                             const Row* input, std::int32_t y, std::int32_t x, int row,
                             std::int32_t first, std::int32_t end) {
    using T = Sum<Row>;
    const int lane = threadIdx.x % kPushLanes;
    const int group = threadIdx.x % kWarp / kPushLanes;
    const std::int32_t own = first + group * ET;
    const T* weight[ET];
#pragma unroll
    for (int e = 0; e < ET; ++e) {
        // Groups without entries work along on the last one.
        const std::int32_t entry = own + e < end ? own + e : end - 1;
        weight[e] = p.weight + static_cast<std::int64_t>(entries.channels[entry]) *
                                   p.channel_stride;
    }
    T sums[ET][RT] = {};
    add_window<ET, RT, V>(p, input, y, x, row, weight, sums);
    for (int distance = 1; distance < kPushLanes; distance *= 2) {
#pragma unroll
        for (int e = 0; e < ET; ++e) {
#pragma unroll
            for (int r = 0; r < RT; ++r) {
                sums[e][r] += __shfl_xor_sync(kAllLanes, sums[e][r], distance);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < ET; ++e) {
        if (own + e >= end) break;
        Row* to = entries.compact +
                  static_cast<std::int64_t>(own + e) * p.compact_stride + row;
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            if (r % kPushLanes == lane && row + r < p.row_count) {
                narrow_to(to[r], sums[e][r]);
            }
        }
    }
}

template <typename Row, int RT, int V>
__global__ void __launch_bounds__(kConvThreads, 1)
    gated_conv_push_kernel(GatedConv<Row> p) {
    const std::int64_t tiles = row_tiles(p, RT);
    const std::int64_t pixels = static_cast<std::int64_t>(p.out_height) * p.out_width;
    const std::int64_t items = p.samples * pixels * tiles;
    for (std::int64_t item = first_item() / kWarp; item < items;
         item += item_step() / kWarp) {
        const int row = static_cast<int>(item % tiles) * RT;
        const std::int32_t pixel = static_cast<std::int32_t>(item / tiles % pixels);
        const std::int64_t n = item / (tiles * pixels);
        const Entries<Row> entries = entries_of(p, n);
        const Row* input = input_at(p, n, 0, 0);
        const std::int32_t y = pixel / p.out_width, x = pixel % p.out_width;
        const std::int32_t end = entries.starts[pixel + 1];
        for (std::int32_t e = entries.starts[pixel]; e < end;) {
            const std::int32_t left = end - e;
            if (left > 2 * kPushGroups) {
                const std::int32_t most = kPushMost * kPushGroups;
                const std::int32_t stop = left < most ? end : e + most;
                push_entries<kPushMost, RT, V>(p, entries, input, y, x, row, e, stop);
                e = stop;
            } else {
                const std::int32_t stop = left < kPushGroups ? end : e + kPushGroups;
                push_entries<1, RT, V>(p, entries, input, y, x, row, e, stop);
                e = stop;
            }
        }
    }
}

}  // namespace

template <typename Row>
void gated_conv_push(const GatedConv<Row>& p, Stream stream) {
    with_tile(p, [&](auto rows, auto pack) {
        const std::int64_t warps =
            p.samples * p.out_height * p.out_width * row_tiles(p, rows.of);
        launch("gated_conv_push", gated_conv_push_kernel<Row, rows.of, pack.of>,
               one_thread_each(warps * kWarp, kConvThreads), stream, p);
    });
}

}  // namespace cuda
}  // namespace fastjac
