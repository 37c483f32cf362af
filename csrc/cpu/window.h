// Which pixels a convolution's window joins.
#pragma once

#include "gated_conv.h"

namespace fastjac {
namespace FASTJAC_ISA {

// Neighbouring output pixels [begin, end) that read one input pixel by one line of the
// kernel. Entry e of theirs meets it in row `base + offsets[e]` of the weights: where
// the kernel moves by single steps, the taps of neighbours differ as their columns do.
// So the entries of a line are one loop, not one a tap.
struct Run {
    std::int32_t begin, end;
    std::int64_t base;
};

// Taps [first, end) of line `line` of the kernel.
struct Taps {
    std::int64_t line, first, end;
};

// The runs of output pixels that read input pixel (y, x) by some taps of a line.
template <typename T>
inline int readers_by_line(const GatedConv<T>& p, std::int64_t y, std::int64_t x,
                           const Taps& taps, Run* runs) {
    const std::int64_t a = taps.line;
    const std::int64_t from_y = y + p.padding_y - a * p.dilation_y;
    const std::int64_t out_y = from_y / p.stride_y;
    if (from_y < 0 || out_y >= p.out_height || out_y * p.stride_y != from_y) return 0;
    const std::int64_t line = out_y * p.out_width;
    const std::int64_t from_x = x + p.padding_x;
    if (p.dilation_x == 1) {
        // The columns out_x with first <= from_x - out_x * stride_x < end.
        const std::int64_t lowest = from_x - taps.end + 1;
        const std::int64_t highest = from_x - taps.first;
        if (highest < 0) return 0;
        const std::int64_t begin =
            lowest <= 0 ? 0 : (lowest + p.stride_x - 1) / p.stride_x;
        std::int64_t end = highest / p.stride_x + 1;
        if (end > p.out_width) end = p.out_width;
        if (begin >= end) return 0;
        runs[0] = {static_cast<std::int32_t>(line + begin),
                   static_cast<std::int32_t>(line + end),
                   (a * p.kernel_x + from_x) * p.out_channels};
        return 1;
    }
    int count = 0;
    for (std::int64_t b = taps.first; b < taps.end; ++b) {
        const std::int64_t at_x = from_x - b * p.dilation_x;
        const std::int64_t out_x = at_x / p.stride_x;
        if (at_x < 0 || out_x >= p.out_width || out_x * p.stride_x != at_x) continue;
        const std::int64_t tap = a * p.kernel_x + b;
        runs[count++] = {static_cast<std::int32_t>(line + out_x),
                         static_cast<std::int32_t>(line + out_x + 1),
                         (tap + out_x * p.stride_x) * p.out_channels};
    }
    return count;
}

// The runs of output pixels that read input pixel (y, x).
template <typename T>
inline int readers_of(const GatedConv<T>& p, std::int64_t y, std::int64_t x,
                      Run* runs) {
    int count = 0;
    for (std::int64_t a = 0; a < p.kernel_y; ++a) {
        count += readers_by_line(p, y, x, Taps{a, 0, p.kernel_x}, runs + count);
    }
    return count;
}

// An input pixel of a window, and where its tap's weights begin in W, by tap.
struct Tap {
    std::int64_t pixel, weight;
};

// The input pixels that output pixel (y, x) reads, with their taps.
template <typename T>
inline int read_by(const GatedConv<T>& p, std::int64_t y, std::int64_t x, Tap* taps) {
    int count = 0;
    for (std::int64_t a = 0; a < p.kernel_y; ++a) {
        const std::int64_t in_y = y * p.stride_y - p.padding_y + a * p.dilation_y;
        if (in_y < 0 || in_y >= p.in_height) continue;
        for (std::int64_t b = 0; b < p.kernel_x; ++b) {
            const std::int64_t in_x = x * p.stride_x - p.padding_x + b * p.dilation_x;
            if (in_x < 0 || in_x >= p.in_width) continue;
            taps[count++] = {in_y * p.in_width + in_x,
                             (a * p.kernel_x + b) * p.out_channels * p.weight_stride};
        }
    }
    return count;
}

}  // namespace FASTJAC_ISA
}  // namespace fastjac
