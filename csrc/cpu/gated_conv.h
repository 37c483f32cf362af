// A convolution of two spatial dimensions whose outputs are mostly dead.
#pragma once

#include "dispatch.h"

namespace fastjac {

// v[c, p] = sum_{t, i} W[t, c, i] u[i, p'(p, t)] for the live (p, c) of a LiveList
// only, where tap t = (a, b) of the window at output pixel p = (y, x) reads input pixel
//   p' = (y * stride_y - padding_y + a * dilation_y,  likewise x).
//
// R rows share the list. "Compact" arrays hold R values an entry; "input" arrays hold R
// rows at every input pixel in one of three layouts:
//
//   "channels": (N, H', W', R, input_stride)
//     vector lanes run over the C' input channels;
//
//   "rows": (N, H' + 2 padding_y, W' + 2 padding_x, C', input_stride)
//     they run over the R rows, and the frame of padding pixels holds zeros, so that no
//     window ends outside;
//
//   "live": (N, H', W', C', input_stride)
//     they run over the R rows, and only those inputs are read and written that are
//     listed, because the layer below has them alive.
//
// `input_stride` is a multiple of the widest vector; lanes beyond C' or R may hold any
// finite value on input and hold zeros on output.
template <typename T>
struct GatedConv {
    const T* weight;  // "rows": (C, taps, C'), weight_stride = taps * C'; else
                      // (taps, C, weight_stride), zeros beyond C'
    const std::int32_t* starts;          // (N, P + 1), as LiveList
    const std::int32_t* channels;        // (N, C Q)
    const std::int32_t* offsets;         // (N, C Q)
    const std::int32_t* positions;       // (N, C, Q), or null where not needed
    const std::int64_t* route;           // (N, C, Q), or null: q itself
    const std::int32_t* input_starts;    // (N, P' + 1), for "live", the layer below's
    const std::int32_t* input_channels;  // (N, C' P'), for "live", likewise
    T* compact;                          // (N, C Q, compact_stride)
    T* input;                            // (N, P', R or C', input_stride)
    T* weight_gradient;                  // as weight, added to
    std::int64_t samples;                // N
    std::int64_t row_count;              // R
    std::int64_t in_channels;            // C'
    std::int64_t out_channels;           // C
    std::int64_t in_height, in_width;    // P' = in_height * in_width
    std::int64_t out_height, out_width;  // P = out_height * out_width
    std::int64_t pooled_pixels;          // Q
    std::int64_t kernel_y, kernel_x;     // taps = kernel_y * kernel_x
    std::int64_t stride_y, stride_x;
    std::int64_t padding_y, padding_x;
    std::int64_t dilation_y, dilation_x;
    std::int64_t weight_stride;   // "channels": C' rounded up to the widest vector
    std::int64_t compact_stride;  // "channels": at least R; else as input_stride
    std::int64_t input_stride;
};

// The most taps a window may have.
constexpr std::int64_t kMostTaps = 256;

// pull: input = W^T compact.   push: compact = W input.
// weight_gradient += compact (outer) input, summed over samples, pixels and rows.
FASTJAC_DECLARE_KERNEL(
    template <typename T> void gated_conv_pull_channels(const GatedConv<T>& p);
    template <typename T> void gated_conv_push_channels(const GatedConv<T>& p);
    template <typename T> void gated_conv_weight_channels(const GatedConv<T>& p);
    template <typename T> void gated_conv_pull_rows(const GatedConv<T>& p);
    template <typename T> void gated_conv_push_rows(const GatedConv<T>& p);
    template <typename T> void gated_conv_weight_rows(const GatedConv<T>& p);
    template <typename T> void gated_conv_pull_live(const GatedConv<T>& p);
    template <typename T> void gated_conv_push_live(const GatedConv<T>& p);
    template <typename T> void gated_conv_weight_live(const GatedConv<T>& p);)

}  // namespace fastjac
