// Gated convolution with vector lanes over input channels, for wide layers.
//
//   pull    u[p', r, i]  = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//   push    g[e, r]      = sum_{t} sum_i W[t, c(e), i] u[p'(p, t), r, i]
//
// A thread owns pixels. The sums of a tile, up to twelve rows by two vectors, stay in
// registers over all taps and entries, so each multiply-add needs half a broadcast and
// a tenth of a vector load. The gradient of W is in gated_conv_channels_weight.cpp.
//
// Order of the loops. A sample's rows, its live rows and W are meant to fit into L2
// (for the second layer of the paper's MNIST network 250 + 63 + 205 kB), so samples
// come first. Where W alone is larger, tiles come first: then a panel of W stays in L2
// over the samples. A linear layer is the case of one pixel and one tap. Operations: 2
// R C' an entry and tap, in each of the three passes.
#include "channel_tiles.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

template <int KR, int KV, typename T>
inline void pull_tile(const GatedConv<T>& p, const Entries<T>& entries, const Run* runs,
                      int run_count, std::int64_t first_row, const T* weight, T* out) {
    Vector<T> sums[KR][KV] = {};
    for (int i = 0; i < run_count; ++i) {
        const T* run_weight = weight + runs[i].base * p.weight_stride;
        const std::int32_t end = entries.starts[runs[i].end];
        for (std::int32_t e = entries.starts[runs[i].begin]; e < end; ++e) {
            const T* w = run_weight + entries.offsets[e] * p.weight_stride;
            const T* g = entries.compact + e * p.compact_stride + first_row;
            Vector<T> lanes[KV];
            FASTJAC_UNROLL
            for (int v = 0; v < KV; ++v) lanes[v] = load(w + v * kLanes<T>);
            FASTJAC_UNROLL
            for (int r = 0; r < KR; ++r) {
                FASTJAC_UNROLL
                for (int v = 0; v < KV; ++v) sums[r][v] += g[r] * lanes[v];
            }
        }
    }
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            store(out + r * p.input_stride + v * kLanes<T>, sums[r][v]);
        }
    }
}

// Entries and rows of a push tile. The more entries share a vector of the input, the
// less often a window, 25 pixels of R rows, comes from L2 again.
constexpr int kPushEntries = kRegisters >= 32 ? 4 : 2;
constexpr int kPushRows = (kRegisters - kPushEntries - 2) / kPushEntries;

template <int KR, int KE, typename T>
inline void push_tile(const GatedConv<T>& p, const T* sample,
                      const std::int32_t* channels, const Tap* taps, int tap_count,
                      std::int64_t first_row, T* compact) {
    Vector<T> parts[KE * KR] = {};
    const T* weights[KE];
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) weights[e] = p.weight + channels[e] * p.weight_stride;
    const std::int64_t stride = p.input_stride, pixel_size = p.row_count * stride;
    const std::int64_t end = p.in_channels;
    sample += first_row * stride;
    for (int t = 0; t < tap_count; ++t) {
        const T* u[KR];
        const T* w[KE];
        u[0] = sample + taps[t].pixel * pixel_size;
        FASTJAC_UNROLL
        for (int r = 1; r < KR; ++r) u[r] = u[r - 1] + stride;
        FASTJAC_UNROLL
        for (int e = 0; e < KE; ++e) w[e] = weights[e] + taps[t].weight;
        const auto step = [&](std::int64_t i) __attribute__((always_inline)) {
            Vector<T> lanes[KE];
            FASTJAC_UNROLL
            for (int e = 0; e < KE; ++e) lanes[e] = load(w[e] + i);
            FASTJAC_UNROLL
            for (int r = 0; r < KR; ++r) {
                Vector<T> rows = load(u[r] + i);
                keep(rows);
                FASTJAC_UNROLL
                for (int e = 0; e < KE; ++e) parts[e * KR + r] += lanes[e] * rows;
            }
        };
        std::int64_t i = 0;
        for (; i + kLanes<T> < end; i += 2 * kLanes<T>) {
            step(i);
            step(i + kLanes<T>);
        }
        if (i < end) step(i);
    }
    T totals[KE * KR];
    sums<KE * KR, 0, T>(parts, totals);
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) {
        T* to = compact + e * p.compact_stride + first_row;
        FASTJAC_UNROLL
        for (int r = 0; r < KR; ++r) to[r] = totals[e * KR + r];
    }
}

// Pulls to one input pixel the lanes of some tiles.
template <typename T>
void pull_pixel(const GatedConv<T>& p, std::int64_t n, std::int64_t pixel,
                std::int64_t first_tile, std::int64_t end_tile) {
    Run runs[kMostTaps];
    const int count = readers_of(p, pixel / p.in_width, pixel % p.in_width, runs);
    const Entries<T> entries = entries_of(p, n);
    T* out = input_at(p, n, pixel);
    for (std::int64_t tile = first_tile; tile < end_tile; ++tile) {
        each_row_tile(p, tile, [&](std::int64_t r, auto kr, std::int64_t i, auto kv) {
            pull_tile<kr.of, kv.of>(p, entries, runs, count, r, p.weight + i,
                                    out + r * p.input_stride + i);
        });
    }
    if (end_tile < tile_count(p)) return;
    // Lanes that no tile wrote, because C' needs fewer vectors than the layout has.
    const std::int64_t written = vectors_of<T>(p.in_channels) * kLanes<T>;
    for (std::int64_t r = 0; r < p.row_count; ++r) {
        for (std::int64_t i = written; i < p.input_stride; ++i) {
            out[r * p.input_stride + i] = 0;
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_pull_channels(const GatedConv<T>& p) {
    const std::int64_t pixels = p.in_height * p.in_width, tiles = tile_count(p);
    if (large_weights(p)) {
#pragma omp parallel for collapse(3) schedule(static)
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            for (std::int64_t n = 0; n < p.samples; ++n) {
                for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
                    pull_pixel(p, n, pixel, tile, tile + 1);
                }
            }
        }
    } else {
#pragma omp parallel for collapse(2) schedule(static)
        for (std::int64_t n = 0; n < p.samples; ++n) {
            for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
                pull_pixel(p, n, pixel, 0, tiles);
            }
        }
    }
}

template <typename T>
void gated_conv_push_channels(const GatedConv<T>& p) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t pixels = p.out_height * p.out_width;
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            const std::int32_t* starts = p.starts + n * (pixels + 1);
            const std::int32_t first = starts[pixel];
            const std::int64_t entries = starts[pixel + 1] - first;
            if (entries == 0) continue;
            Tap taps[kMostTaps];
            const int count =
                read_by(p, pixel / p.out_width, pixel % p.out_width, taps);
            const T* sample = input_at(p, n, 0);
            const std::int32_t* channels = p.channels + n * outputs + first;
            T* compact = p.compact + (n * outputs + first) * p.compact_stride;
            for (std::int64_t r = 0; r < p.row_count;) {
                const int rows = part_of(p.row_count, r, kPushRows);
                for (std::int64_t e = 0; e < entries;) {
                    const int together = part_of(entries, e, kPushEntries);
                    WithConstant<kPushRows>::call(rows, [&](auto kr) {
                        WithConstant<kPushEntries>::call(together, [&](auto ke) {
                            push_tile<kr.of, ke.of>(p, sample, channels + e, taps,
                                                    count, r,
                                                    compact + e * p.compact_stride);
                        });
                    });
                    e += together;
                }
                r += rows;
            }
        }
    }
}

template void gated_conv_pull_channels<float>(const GatedConv<float>&);
template void gated_conv_pull_channels<double>(const GatedConv<double>&);
template void gated_conv_push_channels<float>(const GatedConv<float>&);
template void gated_conv_push_channels<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
