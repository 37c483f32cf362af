// u = s rows[0], v = -s rows[1], s the sign of theta: a feature is worth changing if
// it moves the target up (u > 0) and the other classes down (v > 0).
//   one pixel:  argmax u_p v_p                     over open p with u_p > 0, v_p > 0
//   two pixels: argmax (u_p + u_q) (v_p + v_q)     over open p < q with both sums > 0
// The first in order wins a tie. Then x += theta there, clamped; a feature at its bound
// closes.
//
// A block owns whole samples. Pairs without a D x D search, as csrc/cpu/jsma_step.cpp
// explains: at most one other feature can be at least as large in u and in v as either
// member of the best pair. A warp lists, for its own stretch of the features, those
// that fewer than two others of the stretch dominate (a few dozen): 32 features at a
// time meet the list, a lane each, and the few that stay are entered one by one by the
// whole warp. Then the block compares the pairs of what the warps have listed.
//
// `strong` holds 2 * feature + (1 if dominated once), each stretch's list at its own
// beginning, in ascending order.
// Bytes: N 2 D elements and N D flags read. Operations: N D times a list's length.
#pragma once

#include "jsma_step.h"
#include "launch.cuh"

namespace fastjac {
namespace cuda {
namespace {

constexpr int kJsmaThreads = 256;
constexpr int kJsmaWarps = kJsmaThreads / kWarp;

template <typename T>
struct Saliency {
    const T* target;
    const T* others;
    bool increasing;

    __device__ T u(std::int64_t i) const { return increasing ? target[i] : -target[i]; }
    __device__ T v(std::int64_t i) const { return increasing ? -others[i] : others[i]; }
};

// Features p < q, or p alone with q = -1; p = -1 if nothing is salient.
template <typename T>
struct Choice {
    T score;
    std::int64_t p, q;
};

// The features of warp `warp`: [stretch(warp), stretch(warp + 1)).
inline __device__ std::int64_t stretch(std::int64_t length, int warp) {
    return length * warp / kJsmaWarps;
}

template <typename T>
__device__ bool better(const Choice<T>& a, const Choice<T>& b) {
    if (a.p < 0 || b.p < 0) return a.p >= 0;
    if (a.score != b.score) return a.score > b.score;
    return a.p < b.p || (a.p == b.p && a.q < b.q);
}

template <typename T>
__device__ void offer(Choice<T>& best, T u, T v, std::int64_t p, std::int64_t q) {
    // A score may round to zero: such a choice is none.
    if (!(u > 0 && v > 0 && u * v > 0)) return;
    const Choice<T> found{u * v, p, q};
    if (better(found, best)) best = found;
}

template <typename T>
__device__ Choice<T> best_pixel(const Saliency<T>& map, const bool* open,
                                std::int64_t length) {
    Choice<T> best{0, -1, -1};
    for (std::int64_t i = threadIdx.x; i < length; i += kJsmaThreads) {
        if (open[i]) offer(best, map.u(i), map.v(i), i, std::int64_t{-1});
    }
    return best;
}

// How many of the `kept` listed features dominate one with u and v, up to two.
template <typename T>
__device__ int dominators(const Saliency<T>& map, const std::int64_t* list, int kept,
                          T u, T v) {
    int over = 0;
    for (int j = 0; j < kept && over < 2; ++j) {
        const std::int64_t other = list[j] >> 1;
        if (map.u(other) >= u && map.v(other) >= v) ++over;
    }
    return over;
}

// Enters feature i, the whole warp at once, unless two dominate it; drops those that it
// dominates as the second. Returns the length of the list.
template <typename T>
__device__ int enter(const Saliency<T>& map, std::int64_t i, std::int64_t* list,
                     int kept) {
    const int lane = threadIdx.x % kWarp;
    const unsigned before = (1u << lane) - 1;
    const T u = map.u(i), v = map.v(i);
    int over = 0, left = 0;
    for (int first = 0; first < kept; first += kWarp) {
        bool dominates = false;
        if (first + lane < kept) {
            const std::int64_t other = list[first + lane] >> 1;
            dominates = map.u(other) >= u && map.v(other) >= v;
        }
        over += __popc(__ballot_sync(kAllLanes, dominates));
    }
    if (over >= 2) return kept;
    for (int first = 0; first < kept; first += kWarp) {
        std::int64_t entry = 0;
        bool stays = false;
        if (first + lane < kept) {
            entry = list[first + lane];
            const T ou = map.u(entry >> 1), ov = map.v(entry >> 1);
            const bool under = u >= ou && v >= ov && (u > ou || v > ov);
            stays = !(under && (entry & 1));
            entry |= static_cast<std::int64_t>(under);
        }
        const unsigned staying = __ballot_sync(kAllLanes, stays);
        __syncwarp();  // a ballot orders no memory: all have read what is written now
        if (stays) list[left + __popc(staying & before)] = entry;
        left += __popc(staying);
    }
    if (lane == 0) list[left] = 2 * i + over;
    __syncwarp();
    return left + 1;
}

// Lists the strong features of a warp's stretch; returns how many.
template <typename T>
__device__ int strong_features(const Saliency<T>& map, const bool* open,
                               std::int64_t begin, std::int64_t end,
                               std::int64_t* list) {
    const int lane = threadIdx.x % kWarp;
    int kept = 0;
    for (std::int64_t first = begin; first < end; first += kWarp) {
        const std::int64_t i = first + lane;
        const bool strong =
            i < end && open[i] && dominators(map, list, kept, map.u(i), map.v(i)) < 2;
        unsigned entering = __ballot_sync(kAllLanes, strong);
        for (; entering != 0; entering &= entering - 1) {
            kept =
                enter(map, first + __ffs(static_cast<int>(entering)) - 1, list, kept);
        }
    }
    return kept;
}

template <typename T>
__device__ Choice<T> best_pair(const Saliency<T>& map, const bool* open,
                               std::int64_t length, std::int64_t* strong) {
    FASTJAC_SHARED(int, counts, [kJsmaWarps]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t begin = stretch(length, warp), end = stretch(length, warp + 1);
    const int count = strong_features(map, open, begin, end, strong + begin);
    if (lane == 0) counts[warp] = count;
    __syncthreads();

    // A warp owns every kJsmaWarps-th first member, a lane every 32nd second one.
    Choice<T> best{0, -1, -1};
    for (int a = 0; a < kJsmaWarps; ++a) {
        const std::int64_t* firsts = strong + stretch(length, a);
        for (int i = warp; i < counts[a]; i += kJsmaWarps) {
            const std::int64_t p = firsts[i] >> 1;
            const T up = map.u(p), vp = map.v(p);
            for (int b = a; b < kJsmaWarps; ++b) {
                const std::int64_t* seconds = strong + stretch(length, b);
                for (int j = (a == b ? i + 1 : 0) + lane; j < counts[b]; j += kWarp) {
                    const std::int64_t q = seconds[j] >> 1;
                    offer(best, up + map.u(q), vp + map.v(q), p, q);
                }
            }
        }
    }
    return best;
}

// The best of all threads' choices, in thread 0.
template <typename T>
__device__ Choice<T> best_of_block(Choice<T> best) {
    FASTJAC_SHARED(T, scores, [kJsmaWarps]);
    FASTJAC_SHARED(std::int64_t, features, [kJsmaWarps][2]);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const Choice<T> other{__shfl_xor_sync(kAllLanes, best.score, distance),
                              __shfl_xor_sync(kAllLanes, best.p, distance),
                              __shfl_xor_sync(kAllLanes, best.q, distance)};
        if (better(other, best)) best = other;
    }
    const int warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0) {
        scores[warp] = best.score;
        features[warp][0] = best.p;
        features[warp][1] = best.q;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < kJsmaWarps; ++w) {
            const Choice<T> other{scores[w], features[w][0], features[w][1]};
            if (better(other, best)) best = other;
        }
    }
    __syncthreads();
    return best;
}

// Changes a chosen feature and closes it if it has arrived at its bound.
template <typename T>
__device__ void change(const JsmaStep<T>& p, std::int64_t at) {
    const T low = static_cast<T>(p.low), high = static_cast<T>(p.high);
    const T moved = p.x[at] + static_cast<T>(p.theta);
    const T value = moved < low ? low : (moved > high ? high : moved);
    p.x[at] = value;
    p.open[at] = p.theta > 0 ? value < high : value > low;
}

template <typename T>
__global__ void jsma_step_kernel(JsmaStep<T> p) {
    for (std::int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
        const std::int64_t first = n * p.row_length;
        const T* rows = p.rows + 2 * first;
        const Saliency<T> map{rows, rows + p.row_length, p.theta > 0};
        const bool* open = p.open + first;
        const Choice<T> best = best_of_block(
            p.pixels == 1 ? best_pixel(map, open, p.row_length)
                          : best_pair(map, open, p.row_length, p.strong + first));
        if (threadIdx.x != 0) continue;
        p.chosen[n * p.pixels] = best.p;
        if (p.pixels == 2) p.chosen[n * 2 + 1] = best.q;
        if (best.p >= 0) change(p, first + best.p);
        if (best.q >= 0) change(p, first + best.q);
    }
}

}  // namespace

template <typename T>
void jsma_step(const JsmaStep<T>& p, Stream stream) {
    launch("jsma_step", jsma_step_kernel<T>, one_block_each(p.samples, kJsmaThreads),
           stream, p);
}

}  // namespace cuda
}  // namespace fastjac
