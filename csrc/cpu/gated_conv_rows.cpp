// Gated convolution with vector lanes over rows, for layers with few input channels.
//
//   pull    u[p', i, r]  = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//   push    g[e, r]      = sum_t sum_i W[t, c(e), i] u[p'(p, t), i, r]
//   weight  dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), i, r]
//
// pull and push: a thread owns pixels, and a tile of sums stays in registers over all
// taps. weight: a thread owns output channels; for each sample the sums of a tile of
// (tap, input channel) columns stay in registers over the channel's live entries.
// Input pixels stand in a frame of zeros, so every window is whole and a tap is a fixed
// distance in memory.
// Operations: 2 R C' an entry and tap; of the lanes, R of input_stride do useful work.
#include "gated_conv.h"
#include "simd.h"
#include "window.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Independent sums of a tile: enough to hide the latency of a multiply-add.
constexpr int kTile = 12;
constexpr int kPullTile = 6;

// Columns of a weight tile: the 25 taps of a 5x5 kernel where there are registers.
constexpr int kColumns = kRegisters >= 32 ? 25 : 12;

// Elements from one line of input pixels to the next.
template <typename T>
inline std::int64_t line_stride(const GatedConv<T>& p) {
    return (p.in_width + 2 * p.padding_x) * p.in_channels * p.input_stride;
}

// Pixel (y, x) of the frame, whose corner is (0, 0).
template <typename T>
inline T* framed(const GatedConv<T>& p, std::int64_t n, std::int64_t y,
                 std::int64_t x) {
    return p.input + (n * (p.in_height + 2 * p.padding_y) + y) * line_stride(p) +
           x * p.in_channels * p.input_stride;
}

// Elements from the first input pixel of a window to that of tap `tap`.
template <typename T>
inline std::int64_t tap_distance(const GatedConv<T>& p, std::int64_t tap) {
    return tap / p.kernel_x * p.dilation_y * line_stride(p) +
           tap % p.kernel_x * p.dilation_x * p.in_channels * p.input_stride;
}

template <int KC, typename T>
inline void pull_tile(const GatedConv<T>& p, std::int64_t n, const Run* runs,
                      int run_count, std::int64_t channel, std::int64_t lane, T* out) {
    // Several sets of sums where one would leave the multiply-adds waiting.
    constexpr int kWays = KC == 1 ? 4 : (KC < 4 ? 2 : 1);
    const std::int64_t first = n * p.out_channels * p.pooled_pixels;
    const std::int32_t* starts = p.starts + n * (p.out_height * p.out_width + 1);
    const std::int32_t* offsets = p.offsets + first;
    const T* compact = p.compact + first * p.compact_stride + lane;
    Vector<T> sums[kWays][KC] = {};
    for (int i = 0; i < run_count; ++i) {
        const T* weight = p.weight + runs[i].base * p.weight_stride + channel;
        const std::int32_t end = starts[runs[i].end];
        std::int32_t e = starts[runs[i].begin];
        for (; e + kWays <= end; e += kWays) {
            FASTJAC_UNROLL
            for (int way = 0; way < kWays; ++way) {
                const T* w = weight + offsets[e + way] * p.weight_stride;
                const Vector<T> g = load(compact + (e + way) * p.compact_stride);
                FASTJAC_UNROLL
                for (int c = 0; c < KC; ++c) sums[way][c] += w[c] * g;
            }
        }
        for (; e < end; ++e) {
            const T* w = weight + offsets[e] * p.weight_stride;
            const Vector<T> g = load(compact + e * p.compact_stride);
            FASTJAC_UNROLL
            for (int c = 0; c < KC; ++c) sums[0][c] += w[c] * g;
        }
    }
    FASTJAC_UNROLL
    for (int c = 0; c < KC; ++c) {
        Vector<T> total = sums[0][c];
        FASTJAC_UNROLL
        for (int way = 1; way < kWays; ++way) total += sums[way][c];
        store(out + c * p.input_stride, total);
    }
}

template <int KE, typename T>
inline void push_tile(const GatedConv<T>& p, const std::int64_t* distances,
                      const std::int32_t* channels, const T* window, T* compact) {
    Vector<T> sums[KE] = {};
    const std::int64_t taps = p.kernel_y * p.kernel_x;
    const T* weights[KE];
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) weights[e] = p.weight + channels[e] * p.weight_stride;
    const std::int64_t step = p.out_channels * p.weight_stride;
    for (std::int64_t t = 0; t < taps; ++t) {
        for (std::int64_t i = 0; i < p.in_channels; ++i) {
            const Vector<T> rows = load(window + distances[t] + i * p.input_stride);
            FASTJAC_UNROLL
            for (int e = 0; e < KE; ++e) sums[e] += weights[e][t * step + i] * rows;
        }
    }
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) store(compact + e * p.compact_stride, sums[e]);
}

template <int KC, typename T>
inline void weight_tile(const GatedConv<T>& p, std::int64_t n, std::int64_t c,
                        const std::int64_t* distances, const std::int64_t* columns) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t first = n * outputs + c * p.pooled_pixels;
    const T* corner = framed(p, n, 0, 0);
    const std::int64_t down = p.stride_y * line_stride(p);
    const std::int64_t right = p.stride_x * p.in_channels * p.input_stride;
    for (std::int64_t lane = 0; lane < p.row_count; lane += kLanes<T>) {
        Vector<T> parts[KC] = {};
        for (std::int64_t q = 0; q < p.pooled_pixels; ++q) {
            const std::int32_t e = p.positions[first + q];
            if (e < 0) continue;
            const std::int64_t pixel = p.route == nullptr ? q : p.route[first + q];
            const std::int32_t y = static_cast<std::int32_t>(pixel) /
                                   static_cast<std::int32_t>(p.out_width);
            const T* window =
                corner + y * down + (pixel - y * p.out_width) * right + lane;
            const Vector<T> g =
                load(p.compact + (n * outputs + e) * p.compact_stride + lane);
            FASTJAC_UNROLL
            for (int k = 0; k < KC; ++k) parts[k] += g * load(window + distances[k]);
        }
        T totals[KC];
        sums<KC, 0, T>(parts, totals);
        FASTJAC_UNROLL
        for (int k = 0; k < KC; ++k) {
            p.weight_gradient[columns[k] + c * p.weight_stride] += totals[k];
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_pull_rows(const GatedConv<T>& p) {
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t y = 0; y < p.in_height; ++y) {
            for (std::int64_t x = 0; x < p.in_width; ++x) {
                Run runs[kMostTaps];
                const int count = readers_of(p, y, x, runs);
                T* out = framed(p, n, y + p.padding_y, x + p.padding_x);
                for (std::int64_t i = 0; i < p.in_channels; i += kPullTile) {
                    const std::int64_t left = p.in_channels - i;
                    const int channels =
                        static_cast<int>(left < kPullTile ? left : kPullTile);
                    for (std::int64_t lane = 0; lane < p.input_stride;
                         lane += kLanes<T>) {
                        WithConstant<kPullTile>::call(channels, [&](auto kc) {
                            pull_tile<kc.of>(p, n, runs, count, i, lane,
                                             out + i * p.input_stride + lane);
                        });
                    }
                }
            }
        }
    }
}

template <typename T>
void gated_conv_push_rows(const GatedConv<T>& p) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t pixels = p.out_height * p.out_width;
    std::int64_t distances[kMostTaps];
    for (std::int64_t t = 0; t < p.kernel_y * p.kernel_x; ++t) {
        distances[t] = tap_distance(p, t);
    }
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            const std::int32_t* starts = p.starts + n * (pixels + 1);
            const std::int32_t end = starts[pixel + 1];
            const T* window = framed(p, n, pixel / p.out_width * p.stride_y,
                                     pixel % p.out_width * p.stride_x);
            for (std::int32_t e = starts[pixel]; e < end;) {
                const int entries = end - e < kTile ? end - e : kTile;
                for (std::int64_t lane = 0; lane < p.input_stride; lane += kLanes<T>) {
                    WithConstant<kTile>::call(entries, [&](auto ke) {
                        push_tile<ke.of>(
                            p, distances, p.channels + n * outputs + e, window + lane,
                            p.compact + (n * outputs + e) * p.compact_stride + lane);
                    });
                }
                e += entries;
            }
        }
    }
}

template <typename T>
void gated_conv_weight_rows(const GatedConv<T>& p) {
    const std::int64_t total = p.kernel_y * p.kernel_x * p.in_channels;
    const std::int64_t tiles = (total + kColumns - 1) / kColumns;
    const std::int64_t most = (total + tiles - 1) / tiles;
#pragma omp parallel
    for (std::int64_t n = 0; n < p.samples; ++n) {
        // Every thread meets the same channels for every sample, so nobody has to wait.
#pragma omp for schedule(static) nowait
        for (std::int64_t c = 0; c < p.out_channels; ++c) {
            for (std::int64_t first = 0; first < total; first += most) {
                const std::int64_t left = total - first;
                const int count = static_cast<int>(left < most ? left : most);
                std::int64_t distances[kColumns], columns[kColumns];
                for (int k = 0; k < count; ++k) {
                    const std::int64_t tap = (first + k) / p.in_channels;
                    const std::int64_t channel = (first + k) % p.in_channels;
                    distances[k] = tap_distance(p, tap) + channel * p.input_stride;
                    columns[k] = tap * p.out_channels * p.weight_stride + channel;
                }
                WithConstant<kColumns>::call(count, [&](auto kc) {
                    weight_tile<kc.of>(p, n, c, distances, columns);
                });
            }
        }
    }
}

template void gated_conv_pull_rows<float>(const GatedConv<float>&);
template void gated_conv_pull_rows<double>(const GatedConv<double>&);
template void gated_conv_push_rows<float>(const GatedConv<float>&);
template void gated_conv_push_rows<double>(const GatedConv<double>&);
template void gated_conv_weight_rows<float>(const GatedConv<float>&);
template void gated_conv_weight_rows<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
