// Gated convolution with vector lanes over input channels, for wide layers.
//
//   pull    u[p', r, i]  = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//   push    g[e, r]      = sum_{t} sum_i W[t, c(e), i] u[p'(p, t), r, i]
//   weight  dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), r, i]
//
// pull and push: a thread owns pixels. The sums of a tile, up to twelve rows by two
// vectors, stay in registers over all taps and entries, so each multiply-add needs half
// a broadcast and a tenth of a vector load. weight: a thread owns (tap, tile) pairs, so
// that no two threads add to one place and the order of the additions does not depend
// on their number; the rows of a tile stay in registers over the entries of a pixel.
//
// Order of the loops. A sample's rows, its live rows and W are meant to fit into L2
// (for the second layer of the paper's MNIST network 250 + 63 + 205 kB), so samples
// come first. Where W alone is larger, tiles come first: then a panel of W stays in L2
// over the samples. A linear layer is the case of one pixel and one tap. Operations: 2
// R C' an entry and tap, in each of the three passes.
#include "gated_conv.h"
#include "simd.h"
#include "window.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Rows of a tile of two vectors: its sums and one weight pair fit the registers.
constexpr int kRows = (kRegisters - 4) / 2 > 12 ? 12 : (kRegisters - 4) / 2;

// Cuts `total` into nearly equal parts of at most `most`; the size of that at `first`.
inline int part_of(std::int64_t total, std::int64_t first, int most) {
    const std::int64_t parts = (total + most - 1) / most;
    const std::int64_t size = (total + parts - 1) / parts;
    return static_cast<int>(total - first < size ? total - first : size);
}

// How many rows the tiles of R rows hold.
inline int tile_rows(std::int64_t rows, std::int64_t first) {
    return part_of(rows, first, kRows);
}

// Vectors of a tile, and the bytes of W from which on tiles come before samples.
constexpr int kTileVectors = 2;
constexpr std::int64_t kLargeWeights = 384 * 1024;

template <typename T>
inline bool large_weights(const GatedConv<T>& p) {
    return p.kernel_y * p.kernel_x * p.out_channels * p.weight_stride *
               static_cast<std::int64_t>(sizeof(T)) >
           kLargeWeights;
}

template <typename T>
inline std::int64_t tile_count(const GatedConv<T>& p) {
    const std::int64_t lanes = kTileVectors * kLanes<T>;
    return (p.in_channels + lanes - 1) / lanes;
}

// Calls body(first row, Constant<rows>, first lane, Constant<vectors>) for a tile of
// lanes, with all rows.
template <typename T, typename Body>
inline void each_row_tile(const GatedConv<T>& p, std::int64_t tile, const Body& body) {
    const std::int64_t lane = tile * kTileVectors * kLanes<T>;
    const bool full = lane + kLanes<T> < p.in_channels;
    for (std::int64_t r = 0; r < p.row_count;) {
        const int rows = tile_rows(p.row_count, r);
        WithConstant<kRows>::call(rows, [&](auto kr) {
            if (full) {
                body(r, kr, lane, Constant<2>{});
            } else {
                body(r, kr, lane, Constant<1>{});
            }
        });
        r += rows;
    }
}

template <typename T>
inline T* input_at(const GatedConv<T>& p, std::int64_t n, std::int64_t pixel) {
    return p.input +
           (n * p.in_height * p.in_width + pixel) * p.row_count * p.input_stride;
}

// The entries of one sample.
template <typename T>
struct Entries {
    const std::int32_t* starts;
    const std::int32_t* channels;
    const std::int32_t* offsets;
    const T* compact;
};

template <typename T>
inline Entries<T> entries_of(const GatedConv<T>& p, std::int64_t n) {
    const std::int64_t first = n * p.out_channels * p.pooled_pixels;
    return {p.starts + n * (p.out_height * p.out_width + 1), p.channels + first,
            p.offsets + first, p.compact + first * p.compact_stride};
}

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
inline void push_tile(const GatedConv<T>& p, const std::int32_t* channels,
                      const Tap* taps, int tap_count, const T* input,
                      std::int64_t first_row, T* compact) {
    Vector<T> parts[KE * KR] = {};
    for (int t = 0; t < tap_count; ++t) {
        const T* w = p.weight + taps[t].tap * p.out_channels * p.weight_stride;
        const T* u = input + (taps[t].pixel * p.row_count + first_row) * p.input_stride;
        for (std::int64_t i = 0; i < p.in_channels; i += kLanes<T>) {
            Vector<T> lanes[KE];
            FASTJAC_UNROLL
            for (int e = 0; e < KE; ++e) {
                lanes[e] = load(w + channels[e] * p.weight_stride + i);
            }
            FASTJAC_UNROLL
            for (int r = 0; r < KR; ++r) {
                const Vector<T> row = load(u + r * p.input_stride + i);
                FASTJAC_UNROLL
                for (int e = 0; e < KE; ++e) parts[e * KR + r] += lanes[e] * row;
            }
        }
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

template <int KR, int KV, typename T>
inline void weight_tile(const GatedConv<T>& p, std::int32_t first, std::int32_t end,
                        const std::int32_t* channels, const T* compact, const T* input,
                        T* gradient) {
    Vector<T> rows[KR][KV];
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            rows[r][v] = load(input + r * p.input_stride + v * kLanes<T>);
        }
    }
    for (std::int32_t e = first; e < end; ++e) {
        T* to = gradient + channels[e] * p.weight_stride;
        const T* g = compact + e * p.compact_stride;
        Vector<T> sums[KV];
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) sums[v] = load(to + v * kLanes<T>);
        FASTJAC_UNROLL
        for (int r = 0; r < KR; ++r) {
            FASTJAC_UNROLL
            for (int v = 0; v < KV; ++v) sums[v] += g[r] * rows[r][v];
        }
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) store(to + v * kLanes<T>, sums[v]);
    }
}

// Adds what one sample contributes to the gradient of one tap's weights, for one tile.
template <typename T>
void weight_of_tap(const GatedConv<T>& p, std::int64_t n, std::int64_t tap,
                   std::int64_t tile) {
    const std::int64_t a = tap / p.kernel_x, b = tap % p.kernel_x;
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int32_t* starts = p.starts + n * (p.out_height * p.out_width + 1);
    const std::int32_t* channels = p.channels + n * outputs;
    const T* compact = p.compact + n * outputs * p.compact_stride;
    T* gradient = p.weight_gradient + tap * p.out_channels * p.weight_stride;
    for (std::int64_t y = 0; y < p.out_height; ++y) {
        const std::int64_t in_y = y * p.stride_y - p.padding_y + a * p.dilation_y;
        if (in_y < 0 || in_y >= p.in_height) continue;
        for (std::int64_t x = 0; x < p.out_width; ++x) {
            const std::int64_t in_x = x * p.stride_x - p.padding_x + b * p.dilation_x;
            if (in_x < 0 || in_x >= p.in_width) continue;
            const std::int32_t first = starts[y * p.out_width + x];
            const std::int32_t end = starts[y * p.out_width + x + 1];
            if (first == end) continue;
            const T* input = input_at(p, n, in_y * p.in_width + in_x);
            each_row_tile(
                p, tile, [&](std::int64_t r, auto kr, std::int64_t i, auto kv) {
                    weight_tile<kr.of, kv.of>(p, first, end, channels, compact + r,
                                              input + r * p.input_stride + i,
                                              gradient + i);
                });
        }
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
    const std::int64_t written =
        (p.in_channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
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
            const T* input = input_at(p, n, 0);
            const std::int32_t* channels = p.channels + n * outputs + first;
            T* compact = p.compact + (n * outputs + first) * p.compact_stride;
            for (std::int64_t r = 0; r < p.row_count;) {
                const int rows = part_of(p.row_count, r, kPushRows);
                for (std::int64_t e = 0; e < entries;) {
                    const int together = part_of(entries, e, kPushEntries);
                    WithConstant<kPushRows>::call(rows, [&](auto kr) {
                        WithConstant<kPushEntries>::call(together, [&](auto ke) {
                            push_tile<kr.of, ke.of>(p, channels + e, taps, count, input,
                                                    r, compact + e * p.compact_stride);
                        });
                    });
                    e += together;
                }
                r += rows;
            }
        }
    }
}

template <typename T>
void gated_conv_weight_channels(const GatedConv<T>& p) {
    const std::int64_t tiles = tile_count(p), tasks = p.kernel_y * p.kernel_x * tiles;
    if (large_weights(p)) {
#pragma omp parallel for schedule(static)
        for (std::int64_t task = 0; task < tasks; ++task) {
            for (std::int64_t n = 0; n < p.samples; ++n) {
                weight_of_tap(p, n, task / tiles, task % tiles);
            }
        }
        return;
    }
#pragma omp parallel
    for (std::int64_t n = 0; n < p.samples; ++n) {
        // Every thread meets the same tasks for every sample, so nobody has to wait.
#pragma omp for schedule(static) nowait
        for (std::int64_t task = 0; task < tasks; ++task) {
            weight_of_tap(p, n, task / tiles, task % tiles);
        }
    }
}

template void gated_conv_pull_channels<float>(const GatedConv<float>&);
template void gated_conv_pull_channels<double>(const GatedConv<double>&);
template void gated_conv_push_channels<float>(const GatedConv<float>&);
template void gated_conv_push_channels<double>(const GatedConv<double>&);
template void gated_conv_weight_channels<float>(const GatedConv<float>&);
template void gated_conv_weight_channels<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
