// How the gated convolution's kernels share their work among warps and lanes.
//
// A warp works alone: it owns one pixel (pull, push) or one tap (weight) for a tile of
// rows, and no warp waits for another.
#pragma once

#include "gated_conv.h"
#include "pack.cuh"

namespace fastjac {
namespace cuda {
namespace {

// Threads of a block. Blocks are small because warps share nothing but the cache.
constexpr int kConvThreads = 128;

template <int N>
struct Int {
    static constexpr int of = N;
};

// Calls body(Int<rows of a tile>, Int<channels of a pack>).
template <typename Row, typename Body>
void with_tile(const GatedConv<Row>& p, const Body& body) {
    const int rows = tile_rows<Row>(p.row_count);
    const bool packed = channel_pack<Row>(p.channel_stride) == kPack<Row>;
    const auto with_rows = [&](auto pack) {
        if (rows == 1) return body(Int<1>{}, pack);
        if constexpr (sizeof(Row) < 8) {
            if (rows == 10) return body(Int<10>{}, pack);
            if (rows == 12) return body(Int<12>{}, pack);
        }
        body(Int<4>{}, pack);
    };
    packed ? with_rows(Int<kPack<Row>>{}) : with_rows(Int<1>{});
}

// The smallest power of two that is at least `count`, at most a warp.
inline int lanes_for(std::int64_t count) {
    int lanes = 1;
    while (lanes < count && lanes < kWarp) lanes *= 2;
    return lanes;
}

template <typename Row>
__host__ __device__ std::int64_t row_tiles(const GatedConv<Row>& p, int rows) {
    return (p.row_count + rows - 1) / rows;
}

// The entries of one sample.
template <typename Row>
struct Entries {
    const std::int32_t* starts;
    const std::int32_t* channels;
    const std::int32_t* offsets;
    Row* compact;
};

template <typename Row>
__device__ Entries<Row> entries_of(const GatedConv<Row>& p, std::int64_t n) {
    const std::int64_t pixels = static_cast<std::int64_t>(p.out_height) * p.out_width;
    const std::int64_t first = n * p.outputs;
    return {p.starts + n * (pixels + 1), p.channels + first, p.offsets + first,
            p.compact + first * p.compact_stride};
}

// The rows of one input pixel.
template <typename Row>
__device__ Row* input_at(const GatedConv<Row>& p, std::int64_t n, std::int32_t y,
                         std::int32_t x) {
    const std::int64_t pixel = (n * p.in_height + y) * p.in_width + x;
    return p.input + pixel * p.row_count * p.channel_stride;
}

}  // namespace
}  // namespace cuda
}  // namespace fastjac
