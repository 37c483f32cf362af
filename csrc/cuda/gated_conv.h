// A convolution of two spatial dimensions whose outputs are mostly dead, on the GPU.
#pragma once

#include <cstdint>

#include "../row_types.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

// v[c, p] = sum_{t, i} W[t, c, i] u[i, p'(p, t)] for the live (p, c) of a LiveList
// only, where tap t = (a, b) of the window at output pixel p = (y, x) reads input pixel
//   p' = (y * stride_y - padding_y + a * dilation_y,  likewise x).
//
// R rows share the list. "Compact" arrays hold R values an entry, "input" arrays R rows
// of C' channels at every input pixel. Strides are such that threads move whole packs:
// compact_stride is compact_stride_of(R), input and weights have channel_stride_of(C').
// Channels beyond C' meet zero weights: they may hold any finite value on
// input and hold zeros on output. Rows of compact beyond R hold zeros on input.
//
// Rows may be held in 16 bits; weights are of the type in which everything is summed.
template <typename Row>
struct GatedConv {
    const Sum<Row>* weight;              // (taps, C, channel_stride), zeros beyond C'
    const std::int32_t* starts;          // (N, P + 1), as LiveList
    const std::int32_t* channels;        // (N, C Q)
    const std::int32_t* offsets;         // (N, C Q)
    Row* compact;                        // (N, C Q, compact_stride)
    Row* input;                          // (N, P', R, channel_stride)
    Sum<Row>* partials;                  // (splits, taps, C, channel_stride), see below
    std::int64_t samples;                // N
    std::int64_t outputs;                // C Q
    std::int32_t row_count;              // R
    std::int32_t out_channels;           // C
    std::int32_t in_height, in_width;    // P' = in_height * in_width
    std::int32_t out_height, out_width;  // P = out_height * out_width
    std::int32_t kernel_y, kernel_x;     // taps = kernel_y * kernel_x
    std::int32_t stride_y, stride_x;
    std::int32_t padding_y, padding_x;
    std::int32_t dilation_y, dilation_x;
    std::int32_t channel_stride;
    std::int32_t compact_stride;
    std::int32_t splits;  // parts of the samples, see weight_splits
    bool add;             // whether partials hold sums already, of other samples
};

// How many rows a thread holds in registers: enough that a weight is used often, and
// few of them beyond R. Sums of doubles take two registers each.
template <typename Row>
int tile_rows(std::int64_t row_count) {
    if (row_count == 1) return 1;
    if (sizeof(Row) == 8 || row_count <= 8) return 4;
    if (row_count <= 10) return 10;
    return row_count > 12 && row_count <= 16 ? 4 : 12;
}

inline std::int64_t rounded_up(std::int64_t count, std::int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// The stride of C' channels: whole packs, 16 bytes of sums, unless there are very few.
template <typename Row>
std::int64_t channel_stride_of(std::int64_t in_channels) {
    return in_channels < 3 ? in_channels
                           : rounded_up(in_channels, 16 / sizeof(Sum<Row>));
}

// How many channels a thread moves at once.
template <typename Row>
int channel_pack(std::int64_t channel_stride) {
    const int pack = 16 / static_cast<int>(sizeof(Sum<Row>));
    return channel_stride % pack == 0 ? pack : 1;
}

// The stride of compact entries: whole tiles of rows, each of whole packs.
template <typename Row>
std::int64_t compact_stride_of(std::int64_t row_count) {
    const std::int64_t tile = tile_rows<Row>(row_count);
    if (tile == 1) return 1;
    return rounded_up(rounded_up(row_count, tile), 16 / sizeof(Sum<Row>));
}

// input = W^T compact
template <typename Row>
void gated_conv_pull(const GatedConv<Row>& p, Stream stream);

// compact = W input; what it leaves in rows beyond R is of no use
template <typename Row>
void gated_conv_push(const GatedConv<Row>& p, Stream stream);

// partials (+)= compact (outer) input, summed over pixels, rows and a part of the
// samples
template <typename Row>
void gated_conv_weight(const GatedConv<Row>& p, Stream stream);

// Parts into which the weight gradient cuts N samples, each summed by warps of its own.
// It depends on shapes alone, so the result is the same on every device. Any number of
// parts gives the gradient, so that several calls may share one array of partials.
std::int64_t weight_splits(std::int64_t samples, std::int64_t taps,
                           std::int64_t out_channels, std::int64_t channel_stride,
                           std::int64_t pack);

}  // namespace cuda
}  // namespace fastjac
