// Three kernels build the list, with no size of it on the host:
//   count  a thread owns a pooled output (c, q) and adds 1 to its pixel's counter if it
//          lives. Counters are apart for S segments of channels. Sums of integers do
//          not depend on their order.
//   scan   a block owns a sample and turns its P S counters into where their entries
//          begin: the sum of all before them.
//   fill   a warp owns a segment of a sample and takes its outputs in order, 32 at a
//          time. Lanes that come from one pixel find each other by a match and line up,
//          so the entries of a pixel are in the order of their channels in every run.
// Bytes: routes and gates read twice, 24 a pooled output written, 8 P S counters.
//
// gather and scatter: a thread owns a pooled output and one pack of rows. Neighbouring
// threads are neighbours in `rows`, along whichever dimension is contiguous there; a
// compact entry is written or read by whole packs. Bytes: R of rows and R of compact.
#pragma once

#include "live_list.h"
#include "pack.cuh"

namespace fastjac {
namespace cuda {
namespace {

template <typename T>
struct Output {
    T factor;            // the product of its gates
    std::int32_t pixel;  // where it came from
};

// Pooled output i = (c, q) of sample n.
template <typename T>
__device__ Output<T> output_at(const LiveList<T>& p, std::int64_t n, std::int32_t i) {
    const std::int64_t pooled =
        n * p.channel_count * static_cast<std::int64_t>(p.pooled_pixels) + i;
    const std::int32_t channel = i / p.pooled_pixels;
    Output<T> out{T(1), 0};
    out.pixel = p.route == nullptr ? i % p.pooled_pixels
                                   : static_cast<std::int32_t>(p.route[pooled]);
    if (p.gate != nullptr) {
        const T gate = p.gate[(n * p.channel_count + channel) * p.pixels + out.pixel];
        out.factor = p.step ? T(gate > T(0)) : gate;
    }
    if (p.pooled_gate != nullptr) {
        const T gate = p.pooled_gate[pooled];
        out.factor *= p.pooled_step ? T(gate > T(0)) : gate;
    }
    return out;
}

template <typename T>
__device__ std::int32_t channels_a_segment(const LiveList<T>& p) {
    return (p.channel_count + p.segments - 1) / p.segments;
}

template <typename T>
__global__ void count_live_kernel(LiveList<T> p) {
    const std::int64_t outputs =
        static_cast<std::int64_t>(p.channel_count) * p.pooled_pixels;
    const std::int32_t each = channels_a_segment(p) * p.pooled_pixels;
    for (std::int64_t item = first_item(); item < p.samples * outputs;
         item += item_step()) {
        const std::int64_t n = item / outputs;
        const std::int32_t i = static_cast<std::int32_t>(item % outputs);
        const Output<T> out = output_at(p, n, i);
        if (out.factor == T(0)) continue;
        atomicAdd(p.cursors + (n * p.pixels + out.pixel) * p.segments + i / each, 1);
    }
}

constexpr int kScanThreads = 256;
constexpr int kScanEach = 4;

template <typename T>
__global__ void scan_live_kernel(LiveList<T> p) {
    FASTJAC_SHARED(std::int32_t, sums, [kScanThreads / kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int32_t length = p.pixels * p.segments;
    for (std::int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
        std::int32_t* cursors = p.cursors + n * length;
        std::int32_t* starts = p.starts + n * (p.pixels + 1);
        std::int32_t before = 0;
        for (std::int32_t tile = 0; tile < length; tile += kScanThreads * kScanEach) {
            const std::int32_t first = tile + threadIdx.x * kScanEach;
            std::int32_t counts[kScanEach], own = 0;
#pragma unroll
            for (int k = 0; k < kScanEach; ++k) {
                counts[k] = first + k < length ? cursors[first + k] : 0;
                own += counts[k];
            }

            // The sum of all threads up to this one, first in the warp, then over them.
            std::int32_t up_to = own;
            for (int distance = 1; distance < kWarp; distance *= 2) {
                const std::int32_t lower = __shfl_up_sync(kAllLanes, up_to, distance);
                if (lane >= distance) up_to += lower;
            }
            if (lane == kWarp - 1) sums[warp] = up_to;
            __syncthreads();
            std::int32_t start = before + up_to - own;
            for (int w = 0; w < kScanThreads / kWarp; ++w) {
                if (w < warp) start += sums[w];
                before += sums[w];
            }
            __syncthreads();

#pragma unroll
            for (int k = 0; k < kScanEach; ++k) {
                if (first + k >= length) break;
                cursors[first + k] = start;
                if ((first + k) % p.segments == 0) {
                    starts[(first + k) / p.segments] = start;
                }
                start += counts[k];
            }
        }
        if (threadIdx.x == 0) starts[p.pixels] = before;
    }
}

// Writes the entries of 32 outputs of one segment, lane by lane in their order.
template <typename T>
__device__ void place_entries(const LiveList<T>& p, std::int64_t n, std::int32_t i,
                              bool inside, const Output<T>& out,
                              std::int32_t* cursors) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t outputs =
        static_cast<std::int64_t>(p.channel_count) * p.pooled_pixels;
    const bool live = inside && out.factor != T(0);
    const unsigned together = __match_any_sync(kAllLanes, live ? out.pixel : -1 - lane);
    const int leader = __ffs(static_cast<int>(together)) - 1;
    std::int32_t entry = 0;
    if (live && lane == leader) {
        entry = cursors[static_cast<std::int64_t>(out.pixel) * p.segments];
        cursors[static_cast<std::int64_t>(out.pixel) * p.segments] =
            entry + __popc(together);
    }
    entry = __shfl_sync(kAllLanes, entry, leader);
    entry += __popc(together & ((1u << lane) - 1));
    if (inside) p.positions[n * outputs + i] = live ? entry : -1;
    if (live) {
        const std::int64_t e = n * outputs + entry;
        const std::int32_t channel = i / p.pooled_pixels;
        p.channels[e] = channel;
        p.sources[e] = i % p.pooled_pixels;
        p.factors[e] = out.factor;
        p.offsets[e] = channel - out.pixel % p.width * p.column_step;
    }
    __syncwarp();  // the next 32 outputs read the cursors
}

// Chunks of 32 outputs whose gates are fetched together.
constexpr int kFillAhead = 4;

template <typename T>
__global__ void fill_live_kernel(LiveList<T> p) {
    const int lane = threadIdx.x % kWarp;
    const std::int32_t outputs = p.channel_count * p.pooled_pixels;
    const std::int32_t each = channels_a_segment(p) * p.pooled_pixels;
    for (std::int64_t item = first_item() / kWarp; item < p.samples * p.segments;
         item += item_step() / kWarp) {
        const std::int64_t n = item / p.segments;
        const std::int32_t segment = static_cast<std::int32_t>(item % p.segments);
        std::int32_t* cursors = p.cursors + n * p.pixels * p.segments + segment;
        const std::int64_t begin = static_cast<std::int64_t>(segment) * each;
        const std::int64_t end = begin + each < outputs ? begin + each : outputs;
        for (std::int64_t first = begin; first < end; first += kFillAhead * kWarp) {
            Output<T> out[kFillAhead];
#pragma unroll
            for (int k = 0; k < kFillAhead; ++k) {
                const std::int64_t i = first + k * kWarp + lane;
                out[k] = {T(0), 0};
                if (i < end) out[k] = output_at(p, n, static_cast<std::int32_t>(i));
            }
#pragma unroll
            for (int k = 0; k < kFillAhead; ++k) {
                const std::int64_t i = first + k * kWarp + lane;
                place_entries(p, n, static_cast<std::int32_t>(i), i < end, out[k],
                              cursors);
            }
        }
    }
}

// What a thread of gather and scatter owns.
struct LiveItem {
    std::int64_t entries;  // first entry of the sample
    std::int64_t output;   // index into positions
    std::int64_t address;  // of row 0 in rows
    std::int32_t row;      // first of its rows
};

template <typename T>
__device__ LiveItem live_item(const LiveRows<T>& p, std::int64_t item, int rows_each) {
    const std::int64_t outputs =
        static_cast<std::int64_t>(p.channel_count) * p.pooled_pixels;
    const std::int64_t n = item / outputs % p.samples;
    const std::int64_t i = item % outputs;
    const bool by_channel = p.stride_channel < p.stride_pixel;
    const std::int64_t c = by_channel ? i % p.channel_count : i / p.pooled_pixels;
    const std::int64_t q = by_channel ? i / p.channel_count : i % p.pooled_pixels;
    return {n * outputs, n * outputs + c * p.pooled_pixels + q,
            n * p.stride_sample + c * p.stride_channel + q * p.stride_pixel,
            static_cast<std::int32_t>(item / (outputs * p.samples)) * rows_each};
}

template <typename T, int V>
__global__ void gather_live_kernel(LiveRows<T> p) {
    const std::int64_t items =
        p.samples * p.channel_count * p.pooled_pixels * (p.row_stride / V);
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const LiveItem item = live_item(p, i, V);
        const std::int32_t position = p.positions[item.output];
        if (position < 0) continue;
        const std::int64_t e = item.entries + position;
        const T factor = p.factors[e];
        Pack<T, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const std::int32_t r = item.row + v;
            pack.v[v] = r < p.row_count
                            ? factor * p.rows[item.address + r * p.stride_row]
                            : T(0);
        }
        store_pack(p.compact + e * p.row_stride + item.row, pack);
    }
}

template <typename T, int V>
__global__ void scatter_live_kernel(LiveRows<T> p) {
    const std::int64_t items =
        p.samples * p.channel_count * p.pooled_pixels * (p.row_stride / V);
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const LiveItem item = live_item(p, i, V);
        const std::int32_t position = p.positions[item.output];
        const std::int64_t e = item.entries + position;
        const T factor = position < 0 ? T(0) : p.factors[e];
        T* to = p.rows + item.address;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const std::int32_t r = item.row + v;
            if (r >= p.row_count) break;
            to[r * p.stride_row] =
                position < 0 ? T(0) : factor * p.compact[e * p.row_stride + r];
        }
    }
}

template <typename T>
std::int64_t live_rows_items(const LiveRows<T>& p, int rows_each) {
    return p.samples * p.channel_count * p.pooled_pixels * (p.row_stride / rows_each);
}

}  // namespace

template <typename T>
void live_list(const LiveList<T>& p, Stream stream) {
    const std::int64_t outputs =
        p.samples * p.channel_count * static_cast<std::int64_t>(p.pooled_pixels);
    launch("count_live", count_live_kernel<T>, one_thread_each(outputs), stream, p);
    launch("scan_live", scan_live_kernel<T>, one_block_each(p.samples, kScanThreads),
           stream, p);
    launch("fill_live", fill_live_kernel<T>,
           one_thread_each(p.samples * p.segments * kWarp, 4 * kWarp), stream, p);
}

template <typename T>
void gather_live(const LiveRows<T>& p, Stream stream) {
    if (p.row_stride % kPack<T> == 0) {
        launch("gather_live", gather_live_kernel<T, kPack<T>>,
               one_thread_each(live_rows_items(p, kPack<T>)), stream, p);
    } else {
        launch("gather_live", gather_live_kernel<T, 1>,
               one_thread_each(live_rows_items(p, 1)), stream, p);
    }
}

template <typename T>
void scatter_live(const LiveRows<T>& p, Stream stream) {
    if (p.row_stride % kPack<T> == 0) {
        launch("scatter_live", scatter_live_kernel<T, kPack<T>>,
               one_thread_each(live_rows_items(p, kPack<T>)), stream, p);
    } else {
        launch("scatter_live", scatter_live_kernel<T, 1>,
               one_thread_each(live_rows_items(p, 1)), stream, p);
    }
}

}  // namespace cuda
}  // namespace fastjac
