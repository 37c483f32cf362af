// Tiles of rows by vectors of input channels, for the gated convolutions of wide
// layers.
#pragma once

#include "gated_conv.h"
#include "simd.h"
#include "window.h"

namespace fastjac {
namespace FASTJAC_ISA {

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

}  // namespace FASTJAC_ISA
}  // namespace fastjac
