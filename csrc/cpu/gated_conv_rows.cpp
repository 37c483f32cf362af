// Gated convolution with vector lanes over rows, for layers with few input channels.
//
//   pull    u[p', i, r]  = sum_{(t, p) reading p'} sum_{e at p} W[c(e), t, i] g[e, r]
//   push    g[e, r]      = sum_t sum_i W[c(e), t, i] u[p'(p, t), i, r]
//   weight  dW[c, t, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), i, r]
//
// A column is a pair (t, i): a window has taps * C' of them, and so has a channel's row
// of W. All three passes hold a tile of columns in registers, all 25 of a 5x5 kernel
// where there are 32 registers, and run over live entries:
//   pull    sums of the window, over the entries of an output pixel; then added to the
//           image. Entries of one pixel share the window, so image traffic is by pixel.
//   push    the window itself, over the entries of an output pixel.
//   weight  sums of W's row, over the entries of a channel.
// A multiply-add needs one broadcast or one load. Input pixels stand in a frame of
// zeros, so every window is whole and a column is a fixed distance in memory.
// Operations: 2 R C' an entry and tap; of the lanes, R of input_stride do useful work.
#include "gated_conv.h"

#include <algorithm>

#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Columns of a tile: with four sums and one vector more they fill the registers.
constexpr int kColumns = kRegisters >= 32 ? 27 : 10;

// Independent sums that hide the latency of a multiply-add.
constexpr int kSums = 4;

// Samples below which pull cuts images into bands, so that threads can share one.
constexpr std::int64_t kFewSamples = 16;

// How many entries ahead the weight gradient asks for rows.
constexpr std::int64_t kAhead = 12;

// Elements from one line of input pixels to the next.
template <typename T>
inline std::int64_t line_stride(const GatedConv<T>& p) {
    return (p.in_width + 2 * p.padding_x) * p.in_channels * p.input_stride;
}

template <typename T>
inline std::int64_t framed_height(const GatedConv<T>& p) {
    return p.in_height + 2 * p.padding_y;
}

// Line y of the frame of sample n, whose corner is (0, 0).
template <typename T>
inline T* framed_line(const GatedConv<T>& p, std::int64_t n, std::int64_t y) {
    return p.input + (n * framed_height(p) + y) * line_stride(p);
}

// Columns [first, first + count) of a window.
struct Columns {
    std::int64_t first;
    int count;
    std::int64_t distances[kColumns];  // from the window's first element
};

// Calls body(columns, Constant<columns.count>) for each tile.
template <typename T, typename Body>
inline void each_tile(const GatedConv<T>& p, const Body& body) {
    const std::int64_t total = p.kernel_y * p.kernel_x * p.in_channels;
    const std::int64_t tiles = (total + kColumns - 1) / kColumns;
    const std::int64_t most = (total + tiles - 1) / tiles;
    for (std::int64_t first = 0; first < total; first += most) {
        const std::int64_t left = total - first;
        Columns columns{first, static_cast<int>(left < most ? left : most), {}};
        for (int k = 0; k < columns.count; ++k) {
            const std::int64_t tap = (first + k) / p.in_channels;
            const std::int64_t channel = (first + k) % p.in_channels;
            columns.distances[k] =
                tap / p.kernel_x * p.dilation_y * line_stride(p) +
                (tap % p.kernel_x * p.dilation_x * p.in_channels + channel) *
                    p.input_stride;
        }
        WithConstant<kColumns>::call(columns.count,
                                     [&](auto count) { body(columns, count); });
    }
}

// Calls body(first entry, end, window) for the output pixels of lines [begin, end) of
// sample n that have live entries. Entries count from the sample's first.
template <typename T, typename Body>
inline void each_pixel(const GatedConv<T>& p, std::int64_t n, std::int64_t begin,
                       std::int64_t end, const Body& body) {
    const std::int32_t* starts = p.starts + n * (p.out_height * p.out_width + 1);
    const std::int64_t right = p.stride_x * p.in_channels * p.input_stride;
    for (std::int64_t y = begin; y < end; ++y) {
        T* window = framed_line(p, n, y * p.stride_y);
        const std::int32_t* line = starts + y * p.out_width;
        for (std::int64_t x = 0; x < p.out_width; ++x, window += right) {
            if (line[x] < line[x + 1]) body(line[x], line[x + 1], window);
        }
    }
}

// Adds to the image what the entries of output lines [begin, end) pull.
template <int KC, typename T>
void pull_lines(const GatedConv<T>& p, const Columns& columns, std::int64_t n,
                std::int64_t begin, std::int64_t end) {
    const std::int64_t first = n * p.out_channels * p.pooled_pixels;
    const std::int32_t* channels = p.channels + first;
    const T* compact = p.compact + first * p.compact_stride;
    const T* weight = p.weight + columns.first;
    each_pixel(p, n, begin, end, [&](std::int32_t at, std::int32_t stop, T* window) {
        for (std::int64_t lane = 0; lane < p.input_stride; lane += kLanes<T>) {
            Vector<T> sums[KC] = {};
            for (std::int32_t e = at; e < stop; ++e) {
                const Vector<T> g = load(compact + e * p.compact_stride + lane);
                const T* w = weight + channels[e] * p.weight_stride;
                FASTJAC_UNROLL
                for (int k = 0; k < KC; ++k) sums[k] += w[k] * g;
            }
            FASTJAC_UNROLL
            for (int k = 0; k < KC; ++k) {
                T* to = window + columns.distances[k] + lane;
                store(to, load(to) + sums[k]);
            }
        }
    });
}

// Pushes one window to KE of its entries.
template <int KC, int KE, typename T>
inline void push_entries(const GatedConv<T>& p, const Vector<T> (&window)[KC],
                         const T* weight, const std::int32_t* channels, bool add,
                         T* compact) {
    constexpr int kWays = kSums / KE;
    Vector<T> sums[KE][kWays] = {};
    const T* w[KE];
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) w[e] = weight + channels[e] * p.weight_stride;
    FASTJAC_UNROLL
    for (int k = 0; k < KC; ++k) {
        FASTJAC_UNROLL
        for (int e = 0; e < KE; ++e) sums[e][k % kWays] += w[e][k] * window[k];
    }
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) {
        Vector<T> total = sums[e][0];
        FASTJAC_UNROLL
        for (int way = 1; way < kWays; ++way) total += sums[e][way];
        T* to = compact + e * p.compact_stride;
        store(to, add ? load(to) + total : total);
    }
}

// Pushes to the entries of output lines [begin, end).
template <int KC, typename T>
void push_lines(const GatedConv<T>& p, const Columns& columns, std::int64_t n,
                std::int64_t begin, std::int64_t end) {
    const std::int64_t first = n * p.out_channels * p.pooled_pixels;
    const T* weight = p.weight + columns.first;
    const bool add = columns.first != 0;
    each_pixel(p, n, begin, end, [&](std::int32_t at, std::int32_t stop, T* from) {
        for (std::int64_t lane = 0; lane < p.input_stride; lane += kLanes<T>) {
            Vector<T> window[KC];
            FASTJAC_UNROLL
            for (int k = 0; k < KC; ++k) {
                window[k] = load(from + columns.distances[k] + lane);
            }
            std::int32_t e = at;
            const auto push = [&](auto together) {
                push_entries<KC, together.of>(
                    p, window, weight, p.channels + first + e, add,
                    p.compact + (first + e) * p.compact_stride + lane);
                e += together.of;
            };
            while (e + 4 <= stop) push(Constant<4>{});
            if (e + 2 <= stop) push(Constant<2>{});
            if (e < stop) push(Constant<1>{});
        }
    });
}

// Adds what sample n contributes to the gradient of one channel's tile of weights.
template <int KC, typename T>
inline void weight_tile(const GatedConv<T>& p, const Columns& columns, std::int64_t n,
                        std::int64_t c) {
    const std::int64_t first = (n * p.out_channels + c) * p.pooled_pixels;
    const std::int32_t* positions = p.positions + first;
    const std::int64_t* route = p.route == nullptr ? nullptr : p.route + first;
    const T* compact =
        p.compact + n * p.out_channels * p.pooled_pixels * p.compact_stride;
    const T* corner = framed_line(p, n, 0);
    const std::int64_t down = p.stride_y * line_stride(p);
    const std::int64_t right = p.stride_x * p.in_channels * p.input_stride;
    for (std::int64_t lane = 0; lane < p.row_count; lane += kLanes<T>) {
        Vector<T> parts[KC] = {};
        for (std::int64_t q = 0; q < p.pooled_pixels; ++q) {
            if (q + kAhead < p.pooled_pixels) {
                // A channel's entries lie apart, where no hardware expects them.
                const std::int64_t ahead = positions[q + kAhead];
                __builtin_prefetch(compact + ahead * p.compact_stride + lane);
            }
            const std::int32_t e = positions[q];
            if (e < 0) continue;
            const std::int64_t pixel = route == nullptr ? q : route[q];
            const std::int32_t y = static_cast<std::int32_t>(pixel) /
                                   static_cast<std::int32_t>(p.out_width);
            const T* window =
                corner + y * down + (pixel - y * p.out_width) * right + lane;
            const Vector<T> g = load(compact + e * p.compact_stride + lane);
            FASTJAC_UNROLL
            for (int k = 0; k < KC; ++k) {
                parts[k] += g * load(window + columns.distances[k]);
            }
        }
        T totals[KC];
        sums<KC, 0, T>(parts, totals);
        T* to = p.weight_gradient + c * p.weight_stride + columns.first;
        FASTJAC_UNROLL
        for (int k = 0; k < KC; ++k) to[k] += totals[k];
    }
}

// Zeros in the frame around the image of sample n.
template <typename T>
void clear_frame(const GatedConv<T>& p, std::int64_t n) {
    const std::int64_t side = p.padding_x * p.in_channels * p.input_stride;
    const std::int64_t line = line_stride(p);
    for (std::int64_t y = 0; y < framed_height(p); ++y) {
        T* at = framed_line(p, n, y);
        if (y < p.padding_y || y >= p.padding_y + p.in_height) {
            std::fill(at, at + line, T(0));
        } else {
            std::fill(at, at + side, T(0));
            std::fill(at + line - side, at + line, T(0));
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_pull_rows(const GatedConv<T>& p) {
    const std::int64_t lines = p.out_height;
    // Windows of two bands that are not neighbours do not meet.
    const std::int64_t reach = (p.kernel_y - 1) * p.dilation_y / p.stride_y + 1;
    const std::int64_t band =
        p.samples < kFewSamples ? std::max<std::int64_t>(reach, 4) : lines;
    const std::int64_t bands = (lines + band - 1) / band;
    const std::int64_t size = framed_height(p) * line_stride(p);
#pragma omp parallel
    {
        if (bands > 1) {
#pragma omp for schedule(static)
            for (std::int64_t n = 0; n < p.samples; ++n) {
                std::fill(p.input + n * size, p.input + (n + 1) * size, T(0));
            }
        }
        for (std::int64_t parity = 0; parity < (bands > 1 ? 2 : 1); ++parity) {
#pragma omp for collapse(2) schedule(static)
            for (std::int64_t n = 0; n < p.samples; ++n) {
                for (std::int64_t half = 0; half < (bands + 1) / 2; ++half) {
                    const std::int64_t begin = (2 * half + parity) * band;
                    const std::int64_t end = std::min(begin + band, lines);
                    if (bands == 1) {
                        std::fill(p.input + n * size, p.input + (n + 1) * size, T(0));
                    }
                    each_tile(p, [&](const Columns& columns, auto count) {
                        pull_lines<count.of>(p, columns, n, begin, end);
                    });
                    if (bands == 1) clear_frame(p, n);
                }
            }
        }
        if (bands > 1) {
#pragma omp for schedule(static)
            for (std::int64_t n = 0; n < p.samples; ++n) clear_frame(p, n);
        }
    }
}

template <typename T>
void gated_conv_push_rows(const GatedConv<T>& p) {
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t y = 0; y < p.out_height; ++y) {
            each_tile(p, [&](const Columns& columns, auto count) {
                push_lines<count.of>(p, columns, n, y, y + 1);
            });
        }
    }
}

template <typename T>
void gated_conv_weight_rows(const GatedConv<T>& p) {
#pragma omp parallel
    for (std::int64_t n = 0; n < p.samples; ++n) {
        // Every thread meets the same channels for every sample, so nobody has to wait.
#pragma omp for schedule(static) nowait
        for (std::int64_t c = 0; c < p.out_channels; ++c) {
            each_tile(p, [&](const Columns& columns, auto count) {
                weight_tile<count.of>(p, columns, n, c);
            });
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
