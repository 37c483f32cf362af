// The list is built in four steps, with no size of it on the host:
//   clear  sets the counters to 0.
//   count  a thread takes an output (c, q) and adds 1 to its pixel's counter if it
//          lives. Counters are apart for S segments of channels. Sums of integers do
//          not depend on their order.
//   scan   a block takes a sample and turns its P S counters into where their entries
//          begin: the sum of all before them.
//   fill   a warp takes a segment of a sample and its outputs in order, 32 at a time.
//          Lanes that come from one pixel find each other by a match and line up, so
//          the entries of a pixel are in the order of their channels in every run.
// A block takes all steps for one sample, in one launch; where samples are few and
// large, each step is a launch for all of them.
// Bytes: routes and gates read twice, 24 an output written, 12 P S counters.
#pragma once

#include "launch.cuh"
#include "live_list.h"

namespace fastjac {
namespace cuda {
namespace {

template <typename T>
struct Output {
    T factor;            // the product of its gates
    std::int32_t pixel;  // where it came from
};

// Where pixel q is written before an average pool; q itself without one, -1 if no
// window holds it.
template <typename T>
__device__ std::int32_t source_of(const LiveList<T>& p, std::int32_t q) {
    if (p.window_y == 1 && p.window_x == 1) return q;
    const std::int32_t across = p.width / p.window_x;
    const std::int32_t y = q / p.width / p.window_y, x = q % p.width / p.window_x;
    const bool inside = y < p.pixels / p.width / p.window_y && x < across;
    return inside ? y * across + x : -1;
}

// Output i = (c, q) of sample n.
template <typename T>
__device__ Output<T> output_at(const LiveList<T>& p, std::int64_t n, std::int32_t i) {
    const std::int64_t pooled =
        n * p.channel_count * static_cast<std::int64_t>(p.pooled_pixels) + i;
    const std::int32_t channel = i / p.pooled_pixels;
    Output<T> out{p.scale, 0};
    out.pixel = p.route == nullptr ? i % p.pooled_pixels
                                   : static_cast<std::int32_t>(p.route[pooled]);
    if (p.gate != nullptr) {
        const T gate = p.gate[(n * p.channel_count + channel) * p.pixels + out.pixel];
        out.factor *= p.step ? T(gate > T(0)) : gate;
    }
    if (p.pooled_gate != nullptr) {
        const T gate = p.pooled_gate[pooled];
        out.factor *= p.pooled_step ? T(gate > T(0)) : gate;
    }
    if (source_of(p, i % p.pooled_pixels) < 0) out.factor = T(0);
    return out;
}

template <typename T>
__device__ std::int32_t channels_a_segment(const LiveList<T>& p) {
    return (p.channel_count + p.segments - 1) / p.segments;
}

// Sets the counters of samples [begin, end) to 0, by threads `first`, `first + step`...
template <typename T>
__device__ void clear_counters(const LiveList<T>& p, std::int64_t begin,
                               std::int64_t end, std::int64_t first,
                               std::int64_t step) {
    const std::int64_t each = static_cast<std::int64_t>(p.pixels) * p.segments;
    for (std::int64_t i = begin * each + first; i < end * each; i += step) {
        p.cursors[i] = 0;
    }
}

// Counts the living of samples [begin, end), by threads `first`, `first + step`, ...
template <typename T>
__device__ void count_outputs(const LiveList<T>& p, std::int64_t begin,
                              std::int64_t end, std::int64_t first, std::int64_t step) {
    const std::int64_t outputs =
        static_cast<std::int64_t>(p.channel_count) * p.pooled_pixels;
    const std::int32_t each = channels_a_segment(p) * p.pooled_pixels;
    for (std::int64_t item = begin * outputs + first; item < end * outputs;
         item += step) {
        const std::int64_t n = item / outputs;
        const std::int32_t i = static_cast<std::int32_t>(item % outputs);
        const Output<T> out = output_at(p, n, i);
        if (out.factor == T(0)) continue;
        atomicAdd(p.cursors + (n * p.pixels + out.pixel) * p.segments + i / each, 1);
    }
}

constexpr int kScanEach = 4;

// Turns the counters of a sample into starts; all threads of the block take part.
template <typename T>
__device__ void scan_sample(const LiveList<T>& p, std::int64_t n) {
    FASTJAC_SHARED(std::int32_t, sums, [kListThreads / kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int32_t length = p.pixels * p.segments;
    std::int32_t* cursors = p.cursors + n * length;
    std::int32_t* starts = p.starts + n * (p.pixels + 1);
    std::int32_t before = 0;
    for (std::int32_t tile = 0; tile < length; tile += kListThreads * kScanEach) {
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
        for (int w = 0; w < kListThreads / kWarp; ++w) {
            if (w < warp) start += sums[w];
            before += sums[w];
        }
        __syncthreads();

#pragma unroll
        for (int k = 0; k < kScanEach; ++k) {
            if (first + k >= length) break;
            cursors[first + k] = start;
            if ((first + k) % p.segments == 0) starts[(first + k) / p.segments] = start;
            start += counts[k];
        }
    }
    if (threadIdx.x == 0) starts[p.pixels] = before;
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
        p.sources[e] = source_of(p, i % p.pooled_pixels);
        p.factors[e] = out.factor;
        p.offsets[e] = channel - out.pixel % p.width * p.column_step;
    }
    __syncwarp();  // the next 32 outputs read the cursors
}

// Chunks of 32 outputs whose gates are fetched together.
constexpr int kFillAhead = 4;

// Fills in the entries of a segment of sample n; a warp takes part.
template <typename T>
__device__ void fill_segment(const LiveList<T>& p, std::int64_t n,
                             std::int32_t segment) {
    const int lane = threadIdx.x % kWarp;
    const std::int32_t outputs = p.channel_count * p.pooled_pixels;
    const std::int32_t each = channels_a_segment(p) * p.pooled_pixels;
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
            place_entries(p, n, static_cast<std::int32_t>(i), i < end, out[k], cursors);
        }
    }
}

// Makes the list of one sample; all threads of a block take part.
template <typename T>
__global__ void __launch_bounds__(kListThreads) list_live_kernel(LiveList<T> p) {
    for (std::int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
        clear_counters(p, n, n + 1, threadIdx.x, blockDim.x);
        __syncthreads();
        count_outputs(p, n, n + 1, threadIdx.x, blockDim.x);
        __syncthreads();
        scan_sample(p, n);
        __syncthreads();
        for (std::int32_t s = threadIdx.x / kWarp; s < p.segments;
             s += blockDim.x / kWarp) {
            fill_segment(p, n, s);
        }
    }
}

template <typename T>
__global__ void clear_live_kernel(LiveList<T> p) {
    clear_counters(p, 0, p.samples, first_item(), item_step());
}

template <typename T>
__global__ void count_live_kernel(LiveList<T> p) {
    count_outputs(p, 0, p.samples, first_item(), item_step());
}

template <typename T>
__global__ void __launch_bounds__(kListThreads) scan_live_kernel(LiveList<T> p) {
    for (std::int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) scan_sample(p, n);
}

template <typename T>
__global__ void fill_live_kernel(LiveList<T> p) {
    for (std::int64_t item = first_item() / kWarp; item < p.samples * p.segments;
         item += item_step() / kWarp) {
        fill_segment(p, item / p.segments,
                     static_cast<std::int32_t>(item % p.segments));
    }
}

}  // namespace

template <typename T>
void live_list(const LiveList<T>& p, Stream stream) {
    const std::int64_t outputs =
        static_cast<std::int64_t>(p.channel_count) * p.pooled_pixels;
    if (one_block_lists(p.samples, outputs)) {
        launch("list_live", list_live_kernel<T>,
               one_block_each(p.samples, kListThreads), stream, p);
        return;
    }
    const std::int64_t counters = p.samples * p.pixels * p.segments;
    launch("clear_live", clear_live_kernel<T>, one_thread_each(counters), stream, p);
    launch("count_live", count_live_kernel<T>, one_thread_each(p.samples * outputs),
           stream, p);
    launch("scan_live", scan_live_kernel<T>, one_block_each(p.samples, kListThreads),
           stream, p);
    launch("fill_live", fill_live_kernel<T>,
           one_thread_each(p.samples * p.segments * kWarp, 4 * kWarp), stream, p);
}

}  // namespace cuda
}  // namespace fastjac
