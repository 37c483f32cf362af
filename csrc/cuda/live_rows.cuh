// A thread owns one place of rows, or for gather one that may be an entry, and one pack
// of rows. Neighbouring threads are neighbours in `rows`, along whichever dimension is
// contiguous there; a compact entry is written or read by whole packs. So nobody adds
// to what another thread writes, and all of `rows` is written. Bytes: R of rows and R
// of compact, and the positions.
#pragma once

#include "live_rows.h"
#include "pack.cuh"

namespace fastjac {
namespace cuda {
namespace {

// How many places of rows a channel has.
template <typename Row>
__host__ __device__ std::int32_t windows_of(const LiveRows<Row>& p) {
    if (p.window_y == 1 && p.window_x == 1) return p.pooled_pixels;
    return p.pooled_pixels / p.width / p.window_y * (p.width / p.window_x);
}

// The place of rows that q belongs to.
template <typename Row>
__device__ std::int32_t window_at(const LiveRows<Row>& p, std::int32_t q) {
    if (p.window_y == 1 && p.window_x == 1) return q;
    return q / p.width / p.window_y * (p.width / p.window_x) + q % p.width / p.window_x;
}

// What a thread owns.
struct LiveItem {
    std::int64_t n;
    std::int32_t channel;
    std::int32_t place;  // q, or for scatter its window
    std::int32_t row;    // first of its rows
};

// Item number `item` of those with so many places a channel.
template <typename Row>
__device__ LiveItem live_item(const LiveRows<Row>& p, std::int64_t item,
                              std::int32_t places, int rows_each) {
    const std::int64_t outputs = static_cast<std::int64_t>(p.channel_count) * places;
    const std::int32_t i = static_cast<std::int32_t>(item % outputs);
    const bool by_channel = p.stride_channel < p.stride_pixel;
    return {item / outputs % p.samples, by_channel ? i % p.channel_count : i / places,
            by_channel ? i / p.channel_count : i % places,
            static_cast<std::int32_t>(item / (outputs * p.samples)) * rows_each};
}

// The address of row 0 of a place.
template <typename Row>
__device__ Row* place_of(const LiveRows<Row>& p, const LiveItem& item,
                         std::int32_t window) {
    return p.rows + item.n * p.stride_sample + item.channel * p.stride_channel +
           window * p.stride_pixel;
}

// The entry of (n, c, q), or -1.
template <typename Row>
__device__ std::int64_t entry_of(const LiveRows<Row>& p, const LiveItem& item,
                                 std::int32_t q) {
    const std::int64_t first =
        item.n * p.channel_count * static_cast<std::int64_t>(p.pooled_pixels);
    const std::int32_t position =
        p.positions[first + item.channel * static_cast<std::int64_t>(p.pooled_pixels) +
                    q];
    return position < 0 ? -1 : first + position;
}

template <typename Row, int V>
__global__ void gather_live_kernel(LiveRows<Row> p) {
    const std::int64_t items =
        p.samples * p.channel_count * p.pooled_pixels * (p.row_stride / V);
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const LiveItem item = live_item(p, i, p.pooled_pixels, V);
        const std::int64_t e = entry_of(p, item, item.place);
        if (e < 0) continue;
        const Row* from = place_of(p, item, window_at(p, item.place));
        const Sum<Row> factor = p.factors[e];
        Pack<Sum<Row>, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const std::int32_t r = item.row + v;
            pack.v[v] = r < p.row_count ? factor * widened(from[r * p.stride_row])
                                        : Sum<Row>(0);
        }
        store_pack<V>(p.compact + e * p.row_stride + item.row, pack);
    }
}

// Adds the rows of an entry, times its factor.
template <int V, typename Row>
__device__ void add_entry(const LiveRows<Row>& p, std::int64_t e, std::int32_t row,
                          Pack<Sum<Row>, V>& sums) {
    if (e < 0) return;
    const Sum<Row> factor = p.factors[e];
    const Row* from = p.compact + e * p.row_stride + row;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (row + v < p.row_count) sums.v[v] += factor * widened(from[v]);
    }
}

template <typename Row, int V>
__global__ void scatter_live_kernel(LiveRows<Row> p) {
    const std::int32_t windows = windows_of(p);
    const bool single = p.window_y == 1 && p.window_x == 1;
    const std::int64_t items =
        p.samples * p.channel_count * windows * (p.row_stride / V);
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const LiveItem item = live_item(p, i, windows, V);
        Pack<Sum<Row>, V> sums = {};
        if (single) {
            add_entry<V>(p, entry_of(p, item, item.place), item.row, sums);
        } else {
            const std::int32_t across = p.width / p.window_x;
            const std::int32_t y = item.place / across * p.window_y;
            const std::int32_t x = item.place % across * p.window_x;
            for (std::int32_t b = 0; b < p.window_y; ++b) {
                for (std::int32_t a = 0; a < p.window_x; ++a) {
                    const std::int32_t q = (y + b) * p.width + x + a;
                    add_entry<V>(p, entry_of(p, item, q), item.row, sums);
                }
            }
        }
        Row* to = place_of(p, item, item.place);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const std::int32_t r = item.row + v;
            if (r < p.row_count) narrow_to(to[r * p.stride_row], sums.v[v]);
        }
    }
}

// Starts a kernel over `places` a channel, with as many rows a thread as fit.
template <typename Row, typename Pick>
void launch_rows(const char* name, const LiveRows<Row>& p, std::int64_t places,
                 Stream stream, const Pick& kernel) {
    const std::int64_t outputs = p.samples * p.channel_count * places;
    const int packed = p.row_stride % kPack<Row> == 0 ? kPack<Row> : 1;
    launch(name, kernel(packed), one_thread_each(outputs * (p.row_stride / packed)),
           stream, p);
}

}  // namespace

template <typename Row>
void gather_live(const LiveRows<Row>& p, Stream stream) {
    launch_rows("gather_live", p, p.pooled_pixels, stream, [](int packed) {
        return packed == 1 ? gather_live_kernel<Row, 1>
                           : gather_live_kernel<Row, kPack<Row>>;
    });
}

template <typename Row>
void scatter_live(const LiveRows<Row>& p, Stream stream) {
    launch_rows("scatter_live", p, windows_of(p), stream, [](int packed) {
        return packed == 1 ? scatter_live_kernel<Row, 1>
                           : scatter_live_kernel<Row, kPack<Row>>;
    });
}

}  // namespace cuda
}  // namespace fastjac
