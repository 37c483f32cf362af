// Which pixels a convolution's window joins.
#pragma once

#include "gated_conv.h"

namespace fastjac {
namespace FASTJAC_ISA {

struct Tap {
    std::int32_t tap;    // index into the kernel
    std::int32_t pixel;  // the pixel at the other end
};

// The output pixels that read input pixel (y, x), with the tap that each reads it by.
template <typename T>
inline int readers_of(const GatedConv<T>& p, std::int64_t y, std::int64_t x,
                      Tap* taps) {
    int count = 0;
    for (std::int64_t a = 0; a < p.kernel_y; ++a) {
        const std::int64_t from_y = y + p.padding_y - a * p.dilation_y;
        const std::int64_t out_y = from_y / p.stride_y;
        if (from_y < 0 || out_y >= p.out_height || out_y * p.stride_y != from_y)
            continue;
        for (std::int64_t b = 0; b < p.kernel_x; ++b) {
            const std::int64_t from_x = x + p.padding_x - b * p.dilation_x;
            const std::int64_t out_x = from_x / p.stride_x;
            if (from_x < 0 || out_x >= p.out_width || out_x * p.stride_x != from_x) {
                continue;
            }
            taps[count].tap = static_cast<std::int32_t>(a * p.kernel_x + b);
            taps[count].pixel = static_cast<std::int32_t>(out_y * p.out_width + out_x);
            ++count;
        }
    }
    return count;
}

// The input pixels that output pixel (y, x) reads, with the tap that it reads each by.
template <typename T>
inline int read_by(const GatedConv<T>& p, std::int64_t y, std::int64_t x, Tap* taps) {
    int count = 0;
    for (std::int64_t a = 0; a < p.kernel_y; ++a) {
        const std::int64_t in_y = y * p.stride_y - p.padding_y + a * p.dilation_y;
        if (in_y < 0 || in_y >= p.in_height) continue;
        for (std::int64_t b = 0; b < p.kernel_x; ++b) {
            const std::int64_t in_x = x * p.stride_x - p.padding_x + b * p.dilation_x;
            if (in_x < 0 || in_x >= p.in_width) continue;
            taps[count].tap = static_cast<std::int32_t>(a * p.kernel_x + b);
            taps[count].pixel = static_cast<std::int32_t>(in_y * p.in_width + in_x);
            ++count;
        }
    }
    return count;
}

}  // namespace FASTJAC_ISA
}  // namespace fastjac
