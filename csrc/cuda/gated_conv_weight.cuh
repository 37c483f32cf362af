//   dW[t, c, i] = sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), r, i]
//
// A warp owns a tile of channels c, some taps and channels i, and a part
// of the samples. Its lanes form groups: a group has one tap, its lanes neighbouring
// packs of i. A thread keeps its sums for kWeightTile channels c in shared memory, in a
// column that no other thread touches; it holds the rows of the input pixel that its
// tap reads in registers, walks the entries of the output pixel, which come in the
// order of c, and adds RT products to the sum of each. Each part of the samples has
// sums of its own, to which later calls add; sum_partials.cuh adds the parts, in order.
// So the result is the same in every run.
//
// An entry at RT = 10, V = 4: 40 FFMA a thread for 3 packs of rows, which the whole
// warp shares, and a load and a store of the sums: 11 wavefronts of L1 and shared
// memory against 10 cycles of FFMA, and 40 wavefronts for the input of a pixel.
// Operations: 2 R C' an entry and tap. Bytes from memory: R of compact and of input a
// tile of taps and channels, from L2 after the first; the partial sums twice.
#pragma once

#include "conv_tiles.cuh"

namespace fastjac {
namespace cuda {
namespace {

// Channels c of a warp: 32 kB of sums, so that 7 warps fit a multiprocessor of 227 kB.
constexpr int kWeightTile = 64;

template <typename Row>
struct WeightWork {
    GatedConv<Row> conv;
    int lanes;  // of a group, a power of two
};

// How the weights are cut among warps.
struct WeightTiles {
    std::int64_t taps;      // groups of taps
    std::int64_t channels;  // tiles of c
    std::int64_t spans;     // tiles of i

    __host__ __device__ std::int64_t count() const { return taps * channels * spans; }
};

inline __host__ __device__ WeightTiles weight_tiles(std::int64_t taps,
                                                    std::int64_t out_channels,
                                                    std::int64_t channel_stride,
                                                    std::int64_t pack, int lanes) {
    const std::int64_t groups = kWarp / lanes, span = lanes * pack;
    return {(taps + groups - 1) / groups,
            (out_channels + kWeightTile - 1) / kWeightTile,
            (channel_stride + span - 1) / span};
}

// The first of the entries [first, end) of a pixel whose channel is at least `channel`.
inline __device__ std::int32_t first_from(const std::int32_t* channels,
                                          std::int32_t first, std::int32_t end,
                                          std::int32_t channel) {
    while (first < end) {
        const std::int32_t middle = first + (end - first) / 2;
        if (channels[middle] < channel) {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    return first;
}

// sums += g (outer) u for one entry.
template <int RT, int V, typename T>
__device__ void add_rows(const T (&g)[RT], const Pack<T, V> (&u)[RT],
                         Pack<T, V>& sums) {
#pragma unroll
    for (int r = 0; r < RT; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums.v[v] += g[r] * u[r].v[v];
    }
}

// Adds the entries [first, end) of a pixel to this thread's column of sums, two at a
// time: their loads are in flight together. They may be of one channel, if two windows
// of a pool have one winner.
template <int RT, int V, typename Row, typename T>
__device__ void add_pixel(const GatedConv<Row>& p, const Entries<Row>& entries, int row,
                          std::int32_t first, std::int32_t end, std::int32_t channel,
                          const Pack<T, V> (&u)[RT], Pack<T, V>* column) {
    std::int32_t e = first;
    for (; e + 1 < end; e += 2) {
        const int c = (entries.channels[e] - channel) * kWarp;
        const int d = (entries.channels[e + 1] - channel) * kWarp;
        const Row* at =
            entries.compact + static_cast<std::int64_t>(e) * p.compact_stride;
        T g[RT], h[RT];
        load_rows_of(at + row, g);
        load_rows_of(at + p.compact_stride + row, h);
        Pack<T, V> sums = column[c], others = {};
        if (d != c) others = column[d];
        add_rows<RT, V>(g, u, sums);
        add_rows<RT, V>(h, u, others);
        if (d != c) {
            column[d] = others;
        } else {
#pragma unroll
            for (int v = 0; v < V; ++v) sums.v[v] += others.v[v];
        }
        column[c] = sums;
    }
    if (e < end) {
        const int c = (entries.channels[e] - channel) * kWarp;
        T g[RT];
        load_rows_of(
            entries.compact + static_cast<std::int64_t>(e) * p.compact_stride + row, g);
        Pack<T, V> sums = column[c];
        add_rows<RT, V>(g, u, sums);
        column[c] = sums;
    }
}

// Adds what one sample contributes. The thread's tap is (a, b), its input channels
// begin at `from`; without a tap, `inside` is false and it works along on zeros.
template <int RT, int V, typename Row, typename T>
__device__ void add_sample(const GatedConv<Row>& p, std::int64_t n,
                           std::int32_t channel, std::int32_t a, std::int32_t b,
                           int from, bool inside, Pack<T, V>* column) {
    const Entries<Row> entries = entries_of(p, n);
    std::int32_t pixel = 0;
    for (std::int32_t y = 0; y < p.out_height; ++y) {
        const std::int32_t in_y = y * p.stride_y - p.padding_y + a * p.dilation_y;
        for (std::int32_t x = 0; x < p.out_width; ++x, ++pixel) {
            std::int32_t first = entries.starts[pixel], end = entries.starts[pixel + 1];
            if (p.out_channels > kWeightTile) {
                first = first_from(entries.channels, first, end, channel);
                end = first_from(entries.channels, first, end, channel + kWeightTile);
            }
            if (first == end) continue;
            const std::int32_t in_x = x * p.stride_x - p.padding_x + b * p.dilation_x;
            const bool reads = inside && in_y >= 0 && in_y < p.in_height && in_x >= 0 &&
                               in_x < p.in_width;
            for (int row = 0; row < p.row_count; row += RT) {
                Pack<T, V> u[RT] = {};
                if (reads) {
                    const Row* input =
                        input_at(p, n, in_y, in_x) +
                        static_cast<std::int64_t>(row) * p.channel_stride + from;
#pragma unroll
                    for (int r = 0; r < RT; ++r) {
                        if (row + r < p.row_count) {
                            u[r] = load_pack<V>(input + static_cast<std::int64_t>(r) *
                                                            p.channel_stride);
                        }
                    }
                }
                add_pixel<RT, V>(p, entries, row, first, end, channel, u, column);
            }
        }
    }
}

template <typename Row, int RT, int V>
__global__ void __launch_bounds__(kWarp, 1)
    gated_conv_weight_kernel(WeightWork<Row> work) {
    const GatedConv<Row>& p = work.conv;
    using T = Sum<Row>;
    using Sums = Pack<T, V>;
    FASTJAC_SHARED(Sums, sums, [kWeightTile * kWarp]);
    Sums* column = sums + threadIdx.x;
    const std::int32_t taps = p.kernel_y * p.kernel_x;
    const WeightTiles tiles =
        weight_tiles(taps, p.out_channels, p.channel_stride, V, work.lanes);
    const int group = threadIdx.x / work.lanes, lane = threadIdx.x % work.lanes;
    for (std::int64_t item = blockIdx.x; item < tiles.count() * p.splits;
         item += gridDim.x) {
        const std::int64_t tile = item % tiles.count(), split = item / tiles.count();
        const std::int32_t tap =
            static_cast<std::int32_t>(tile % tiles.taps * (kWarp / work.lanes) + group);
        const std::int32_t channel =
            static_cast<std::int32_t>(tile / tiles.taps % tiles.channels * kWeightTile);
        const int from =
            (static_cast<int>(tile / (tiles.taps * tiles.channels)) * work.lanes +
             lane) *
            V;
        const bool inside = tap < taps && from < p.channel_stride;
        const std::int32_t left = p.out_channels - channel;
        const std::int32_t channels = left < kWeightTile ? left : kWeightTile;

        T* partials =
            p.partials +
            ((split * taps + tap) * p.out_channels + channel) * p.channel_stride + from;
        for (int c = 0; c < channels; ++c) {
            column[c * kWarp] = Pack<T, V>{};
            if (p.add && inside) {
                column[c * kWarp] = load_pack<V>(
                    partials + static_cast<std::int64_t>(c) * p.channel_stride);
            }
        }
        const std::int64_t stop = (split + 1) * p.samples / p.splits;
        for (std::int64_t n = split * p.samples / p.splits; n < stop; ++n) {
            add_sample<RT, V>(p, n, channel, tap / p.kernel_x, tap % p.kernel_x, from,
                              inside, column);
        }
        if (!inside) continue;
        for (int c = 0; c < channels; ++c) {
            store_pack<V>(partials + static_cast<std::int64_t>(c) * p.channel_stride,
                          column[c * kWarp]);
        }
    }
}

}  // namespace

std::int64_t weight_splits(std::int64_t samples, std::int64_t taps,
                           std::int64_t out_channels, std::int64_t channel_stride,
                           std::int64_t pack) {
    // Two rounds of 7 warps on each of 132 multiprocessors; at most 64 MB of floats.
    constexpr std::int64_t kWarpsWanted = 2 * 7 * 132, kMostSums = 16 << 20;
    const std::int64_t tiles = weight_tiles(taps, out_channels, channel_stride, pack,
                                            lanes_for(channel_stride / pack))
                                   .count();
    std::int64_t splits = (kWarpsWanted + tiles - 1) / tiles;
    const std::int64_t most = kMostSums / (taps * out_channels * channel_stride);
    if (splits > most) splits = most;
    if (splits > samples) splits = samples;
    return splits < 1 ? 1 : splits;
}

template <typename Row>
void gated_conv_weight(const GatedConv<Row>& p, Stream stream) {
    with_tile(p, [&](auto rows, auto pack) {
        WeightWork<Row> work{p, lanes_for(p.channel_stride / pack.of)};
        const WeightTiles tiles = weight_tiles(p.kernel_y * p.kernel_x, p.out_channels,
                                               p.channel_stride, pack.of, work.lanes);
        launch("gated_conv_weight", gated_conv_weight_kernel<Row, rows.of, pack.of>,
               one_block_each(tiles.count() * p.splits, kWarp), stream, work);
    });
}

}  // namespace cuda
}  // namespace fastjac
