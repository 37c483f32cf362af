//   u[p', r, i] = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//
// A warp owns an input pixel, a tile of rows and a tile of channels. Its lanes form
// groups: the lanes of a group hold neighbouring packs of channels, and the groups take
// turns at the entries, so that a layer of 32 channels keeps 32 lanes busy with 4
// entries. A thread's sums, RT rows by V channels, stay in registers over all taps and
// entries; at the end the groups' sums are added by shuffles, in a fixed order.
//
// A step of a warp at RT = 10, V = 4 and groups of 8 lanes: 40 FFMA a thread for 1 pack
// of weights, 3 packs of rows, which the lanes of a group share, and 1 offset, that is
// 8 to 11 wavefronts of L1 against 10 cycles of FFMA. Operations: 2 R C' an entry and
// tap. Bytes from memory: R of compact and of input once; weights stay in L1 and L2.
#pragma once

#include "conv_tiles.cuh"

namespace fastjac {
namespace cuda {
namespace {

template <typename Row>
struct PullWork {
    GatedConv<Row> conv;
    int lanes;  // of a group, a power of two
};

// Adds what entries [first, end) send, which meet the pixel in row `base + offset` of
// the weights (csrc/cpu/window.h says why neighbouring output pixels are one loop).
template <int RT, int V, typename Row, typename T>
__device__ void add_entries(const GatedConv<Row>& p, const Entries<Row>& entries,
                            std::int32_t first, std::int32_t end, std::int64_t base,
                            const T* weight, int row, int group, int groups,
                            T (&sums)[RT][V]) {
#pragma unroll 2
    for (std::int32_t e = first + group; e < end; e += groups) {
        const Pack<T, V> w =
            load_pack<V>(weight + (base + entries.offsets[e]) * p.channel_stride);
        T g[RT];
        load_rows_of(
            entries.compact + static_cast<std::int64_t>(e) * p.compact_stride + row, g);
#pragma unroll
        for (int r = 0; r < RT; ++r) {
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][v] += g[r] * w.v[v];
        }
    }
}

// Adds what the output pixels that read input pixel (y, x) send.
template <int RT, int V, typename Row, typename T>
__device__ void add_windows(const GatedConv<Row>& p, const Entries<Row>& entries,
                            std::int32_t y, std::int32_t x, const T* weight, int row,
                            int group, int groups, T (&sums)[RT][V]) {
    const std::int32_t from_x = x + p.padding_x;
    for (std::int32_t a = 0; a < p.kernel_y; ++a) {
        const std::int32_t from_y = y + p.padding_y - a * p.dilation_y;
        const std::int32_t out_y = from_y / p.stride_y;
        if (from_y < 0 || out_y >= p.out_height || out_y * p.stride_y != from_y) {
            continue;
        }
        const std::int32_t* line = entries.starts + out_y * p.out_width;
        if (p.dilation_x == 1) {
            // The columns out_x with 0 <= from_x - out_x * stride_x < kernel_x.
            const std::int32_t lowest = from_x - p.kernel_x + 1;
            const std::int32_t begin =
                lowest <= 0 ? 0 : (lowest + p.stride_x - 1) / p.stride_x;
            std::int32_t end = from_x / p.stride_x + 1;
            if (end > p.out_width) end = p.out_width;
            if (begin >= end) continue;
            add_entries<RT, V>(
                p, entries, line[begin], line[end],
                (static_cast<std::int64_t>(a) * p.kernel_x + from_x) * p.out_channels,
                weight, row, group, groups, sums);
            continue;
        }
        for (std::int32_t b = 0; b < p.kernel_x; ++b) {
            const std::int32_t at_x = from_x - b * p.dilation_x;
            const std::int32_t out_x = at_x / p.stride_x;
            if (at_x < 0 || out_x >= p.out_width || out_x * p.stride_x != at_x) {
                continue;
            }
            const std::int64_t tap = static_cast<std::int64_t>(a) * p.kernel_x + b;
            add_entries<RT, V>(p, entries, line[out_x], line[out_x + 1],
                               (tap + out_x * p.stride_x) * p.out_channels, weight, row,
                               group, groups, sums);
        }
    }
}

template <typename Row, int RT, int V>
__global__ void __launch_bounds__(kConvThreads, 1)
    gated_conv_pull_kernel(PullWork<Row> work) {
    using T = Sum<Row>;
    const GatedConv<Row>& p = work.conv;
    const int lane = threadIdx.x % kWarp, groups = kWarp / work.lanes;
    const int group = lane / work.lanes, column = lane % work.lanes;
    const std::int64_t tiles = row_tiles(p, RT);
    const std::int64_t spans =
        (p.channel_stride + work.lanes * V - 1) / (work.lanes * V);
    const std::int64_t items = p.samples * p.in_height * p.in_width * spans * tiles;
    for (std::int64_t item = first_item() / kWarp; item < items;
         item += item_step() / kWarp) {
        const int row = static_cast<int>(item % tiles) * RT;
        const int channel =
            (static_cast<int>(item / tiles % spans) * work.lanes + column) * V;
        const std::int64_t pixel = item / (tiles * spans);
        const std::int32_t x = static_cast<std::int32_t>(pixel % p.in_width);
        const std::int32_t y =
            static_cast<std::int32_t>(pixel / p.in_width % p.in_height);
        const std::int64_t n =
            pixel / (static_cast<std::int64_t>(p.in_width) * p.in_height);
        // Lanes without channels work along on the first ones.
        const bool inside = channel < p.channel_stride;
        const int from = inside ? channel : 0;

        T sums[RT][V] = {};
        add_windows<RT, V>(p, entries_of(p, n), y, x, p.weight + from, row, group,
                           groups, sums);
        for (int distance = work.lanes; distance < kWarp; distance *= 2) {
#pragma unroll
            for (int r = 0; r < RT; ++r) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    sums[r][v] += __shfl_xor_sync(kAllLanes, sums[r][v], distance);
                }
            }
        }

        // Every group has all sums now; they share the rows to be stored.
        Row* out =
            input_at(p, n, y, x) + static_cast<std::int64_t>(row) * p.channel_stride;
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            if (!inside || row + r >= p.row_count || r % groups != group) continue;
            Pack<T, V> pack;
#pragma unroll
            for (int v = 0; v < V; ++v) pack.v[v] = sums[r][v];
            store_pack<V>(out + static_cast<std::int64_t>(r) * p.channel_stride + from,
                          pack);
        }
    }
}

}  // namespace

template <typename Row>
void gated_conv_pull(const GatedConv<Row>& p, Stream stream) {
    with_tile(p, [&](auto rows, auto pack) {
        PullWork<Row> work{p, lanes_for(p.channel_stride / pack.of)};
        const std::int64_t span = work.lanes * pack.of;
        const std::int64_t warps = p.samples * p.in_height * p.in_width *
                                   ((p.channel_stride + span - 1) / span) *
                                   row_tiles(p, rows.of);
        launch("gated_conv_pull", gated_conv_pull_kernel<Row, rows.of, pack.of>,
               one_thread_each(warps * kWarp, kConvThreads), stream, work);
    });
}

}  // namespace cuda
}  // namespace fastjac
