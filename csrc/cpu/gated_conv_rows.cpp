// Gated convolution with vector lanes over rows, for layers with few input channels.
//
//   pull    u[p', i, r]  = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//   push    g[e, r]      = sum_t sum_i W[t, c(e), i] u[p'(p, t), i, r]
//   weight  dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), i, r]
//
// pull and push: a thread owns pixels, and a tile of sums stays in registers over all
// taps. weight: a thread owns output channels; for each sample the sums of a tile of
// (tap, input channel) columns stay in registers over the channel's live entries.
// Operations: 2 R C' an entry and tap; of the lanes, R of input_stride do useful work.
#include "gated_conv.h"
#include "simd.h"
#include "window.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Independent sums of a tile: enough to hide the latency of a multiply-add.
constexpr int kTile = 12;

template <typename T>
inline T* input_at(const GatedConv<T>& p, std::int64_t n, std::int64_t pixel) {
    return p.input +
           (n * p.in_height * p.in_width + pixel) * p.in_channels * p.input_stride;
}

template <int KC, typename T>
inline void pull_tile(const GatedConv<T>& p, const std::int32_t* starts,
                      const std::int32_t* channels, const T* compact, const Tap* taps,
                      int tap_count, const T* weight, T* out) {
    // Two sets of sums, for every other entry: one channel alone would wait for itself.
    Vector<T> even[KC] = {}, odd[KC] = {};
    for (int t = 0; t < tap_count; ++t) {
        const T* tap_weight = weight + taps[t].tap * p.out_channels * p.weight_stride;
        const std::int32_t end = starts[taps[t].pixel + 1];
        std::int32_t e = starts[taps[t].pixel];
        for (; e + 1 < end; e += 2) {
            const T* w0 = tap_weight + channels[e] * p.weight_stride;
            const T* w1 = tap_weight + channels[e + 1] * p.weight_stride;
            const Vector<T> g0 = load(compact + e * p.compact_stride);
            const Vector<T> g1 = load(compact + (e + 1) * p.compact_stride);
            FASTJAC_UNROLL
            for (int c = 0; c < KC; ++c) {
                even[c] += w0[c] * g0;
                odd[c] += w1[c] * g1;
            }
        }
        if (e < end) {
            const T* w = tap_weight + channels[e] * p.weight_stride;
            const Vector<T> g = load(compact + e * p.compact_stride);
            FASTJAC_UNROLL
            for (int c = 0; c < KC; ++c) even[c] += w[c] * g;
        }
    }
    FASTJAC_UNROLL
    for (int c = 0; c < KC; ++c) store(out + c * p.input_stride, even[c] + odd[c]);
}

template <int KE, typename T>
inline void push_tile(const GatedConv<T>& p, const std::int32_t* channels,
                      const Tap* taps, int tap_count, const T* input, T* compact) {
    Vector<T> sums[KE] = {};
    for (int t = 0; t < tap_count; ++t) {
        const T* w = p.weight + taps[t].tap * p.out_channels * p.weight_stride;
        const T* u = input + taps[t].pixel * p.in_channels * p.input_stride;
        for (std::int64_t i = 0; i < p.in_channels; ++i) {
            const Vector<T> rows = load(u + i * p.input_stride);
            FASTJAC_UNROLL
            for (int e = 0; e < KE; ++e) {
                sums[e] += w[channels[e] * p.weight_stride + i] * rows;
            }
        }
    }
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) store(compact + e * p.compact_stride, sums[e]);
}

// One (tap, input channel) of a kernel.
struct Column {
    std::int64_t y, x, channel, weight;
};

template <typename T>
inline Column column_at(const GatedConv<T>& p, std::int64_t index) {
    const std::int64_t tap = index / p.in_channels, channel = index % p.in_channels;
    return {tap / p.kernel_x * p.dilation_y - p.padding_y,
            tap % p.kernel_x * p.dilation_x - p.padding_x, channel,
            tap * p.out_channels * p.weight_stride + channel};
}

template <int KC, typename T>
inline void weight_tile(const GatedConv<T>& p, std::int64_t n, std::int64_t c,
                        const Column* columns, const T* zeros) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t first = n * outputs + c * p.pooled_pixels;
    const T* input = input_at(p, n, 0);
    for (std::int64_t lane = 0; lane < p.row_count; lane += kLanes<T>) {
        Vector<T> sums[KC] = {};
        for (std::int64_t q = 0; q < p.pooled_pixels; ++q) {
            const std::int32_t e = p.positions[first + q];
            if (e < 0) continue;
            const std::int64_t pixel = p.route == nullptr ? q : p.route[first + q];
            const std::int64_t y = pixel / p.out_width * p.stride_y;
            const std::int64_t x = pixel % p.out_width * p.stride_x;
            const Vector<T> g =
                load(p.compact + (n * outputs + e) * p.compact_stride + lane);
            FASTJAC_UNROLL
            for (int k = 0; k < KC; ++k) {
                const std::int64_t in_y = y + columns[k].y, in_x = x + columns[k].x;
                const bool inside =
                    in_y >= 0 && in_y < p.in_height && in_x >= 0 && in_x < p.in_width;
                const T* u = input + ((in_y * p.in_width + in_x) * p.in_channels +
                                      columns[k].channel) *
                                         p.input_stride;
                sums[k] += g * load(inside ? u + lane : zeros);
            }
        }
        FASTJAC_UNROLL
        for (int k = 0; k < KC; ++k) {
            p.weight_gradient[columns[k].weight + c * p.weight_stride] +=
                sum<T>(sums[k]);
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_pull_rows(const GatedConv<T>& p) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < p.in_height * p.in_width; ++pixel) {
            Tap taps[kMostTaps];
            const int count =
                readers_of(p, pixel / p.in_width, pixel % p.in_width, taps);
            T* out = input_at(p, n, pixel);
            for (std::int64_t i = 0; i < p.in_channels;) {
                const std::int64_t left = p.in_channels - i;
                const int channels =
                    static_cast<int>(left < kTile / 2 ? left : kTile / 2);
                for (std::int64_t lane = 0; lane < p.input_stride; lane += kLanes<T>) {
                    WithConstant<kTile / 2>::call(channels, [&](auto kc) {
                        pull_tile<kc.of>(
                            p, p.starts + n * (p.out_height * p.out_width + 1),
                            p.channels + n * outputs,
                            p.compact + n * outputs * p.compact_stride + lane, taps,
                            count, p.weight + i, out + i * p.input_stride + lane);
                    });
                }
                i += channels;
            }
        }
    }
}

template <typename T>
void gated_conv_push_rows(const GatedConv<T>& p) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t pixels = p.out_height * p.out_width;
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            const std::int32_t* starts = p.starts + n * (pixels + 1);
            const std::int32_t end = starts[pixel + 1];
            if (starts[pixel] == end) continue;
            Tap taps[kMostTaps];
            const int count =
                read_by(p, pixel / p.out_width, pixel % p.out_width, taps);
            for (std::int32_t e = starts[pixel]; e < end;) {
                const int entries = end - e < kTile ? end - e : kTile;
                for (std::int64_t lane = 0; lane < p.input_stride; lane += kLanes<T>) {
                    WithConstant<kTile>::call(entries, [&](auto ke) {
                        push_tile<ke.of>(
                            p, p.channels + n * outputs + e, taps, count,
                            input_at(p, n, 0) + lane,
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
    const std::int64_t tiles = (total + kTile - 1) / kTile;
    const std::int64_t most = (total + tiles - 1) / tiles;
    const T zeros[kLanes<T>] = {};
#pragma omp parallel
    for (std::int64_t n = 0; n < p.samples; ++n) {
#pragma omp for schedule(static) nowait
        for (std::int64_t c = 0; c < p.out_channels; ++c) {
            for (std::int64_t first = 0; first < total; first += most) {
                const std::int64_t left = total - first;
                const int count = static_cast<int>(left < most ? left : most);
                Column columns[kTile];
                for (int k = 0; k < count; ++k) columns[k] = column_at(p, first + k);
                WithConstant<kTile>::call(count, [&](auto kc) {
                    weight_tile<kc.of>(p, n, c, columns, zeros);
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
