// w_k = rows[k - 1],  f_k = logits[k] - logits[0],  k* = argmin |f_k| / |w_k|,  k >= 1
// shift += (|f_k*| / |w_k*| + margin) w_k* / |w_k*|      (l2; sign(w_k*) for l_inf)
// x = start + (1 + overshoot) shift, clamped, with shift following the clamp
//
// |w| is the dual norm: l2 for l2 perturbations, l1 for l_inf. A sample whose every w_k
// is zero is marked stuck and stays where it is. Of equally near boundaries the first
// in order of classes is taken.
//
// A block owns whole samples: it measures the w_k, kRowsEach at a time, a thread every
// kStepThreads-th element of each; then its first warp finds the nearest; then all move
// the sample. Sums are in double and in a fixed tree: the same in every run.
// Bytes: N (R + 2) D elements read, 2 N D written. Operations: 2 N R D in double.
#pragma once

#include "deepfool_step.h"
#include "launch.cuh"

namespace fastjac {
namespace cuda {
namespace {

constexpr int kRowsEach = 8;
constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / kWarp;

// Writes sizes[1..R-1], the dual norms of the rows.
template <typename T>
__device__ void measure(const DeepFoolStep<T>& p, const T* rows, double* sizes) {
    FASTJAC_SHARED(double, parts, [kRowsEach][kStepWarps]);
    const int warp = threadIdx.x / kWarp;
    for (std::int64_t first = 1; first < p.class_count; first += kRowsEach) {
        const std::int64_t left = p.class_count - first;
        const int count = static_cast<int>(left < kRowsEach ? left : kRowsEach);
        double sums[kRowsEach] = {};
        for (std::int64_t i = threadIdx.x; i < p.row_length; i += kStepThreads) {
#pragma unroll
            for (int j = 0; j < kRowsEach; ++j) {
                if (j >= count) continue;
                const double w = rows[(first - 1 + j) * p.row_length + i];
                sums[j] += p.linf ? fabs(w) : w * w;
            }
        }

        // Over the lanes of each warp, then over the warps.
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            const double sum = warp_sum(sums[j]);
            if (threadIdx.x % kWarp == 0) parts[j][warp] = sum;
        }
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < count) {
            double total = 0;
            for (int w = 0; w < kStepWarps; ++w) total += parts[threadIdx.x][w];
            sizes[first + threadIdx.x] = p.linf ? total : sqrt(total);
        }
        __syncthreads();
    }
}

// The boundary to a class and how far it is; class 0 stands for none.
struct Boundary {
    int to;
    double distance;
};

inline __device__ bool nearer(const Boundary& a, const Boundary& b) {
    if (a.to == 0 || b.to == 0) return a.to != 0;
    return a.distance < b.distance || (a.distance == b.distance && a.to < b.to);
}

// The nearest boundary among those that have a direction, in every lane of a warp.
template <typename T>
__device__ Boundary nearest_of(const T* logits, const double* sizes, int classes) {
    Boundary best{0, 0};
    for (int k = 1 + threadIdx.x % kWarp; k < classes; k += kWarp) {
        if (!(sizes[k] > 0)) continue;
        const double gap = fabs(static_cast<double>(logits[k] - logits[0]));
        const Boundary found{k, gap / sizes[k]};
        if (nearer(found, best)) best = found;
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const Boundary other{__shfl_xor_sync(kAllLanes, best.to, distance),
                             __shfl_xor_sync(kAllLanes, best.distance, distance)};
        if (nearer(other, best)) best = other;
    }
    return best;
}

// Adds scale * w to shift and moves x along.
template <typename T>
__device__ void move(const DeepFoolStep<T>& p, std::int64_t n, const T* row,
                     double scale) {
    const T gain = static_cast<T>(1 + p.overshoot);
    const T low = static_cast<T>(p.low), high = static_cast<T>(p.high);
    for (std::int64_t i = threadIdx.x; i < p.row_length; i += kStepThreads) {
        const std::int64_t at = n * p.row_length + i;
        const T w = row[i];
        const double along = p.linf ? static_cast<double>((w > 0) - (w < 0)) : w;
        T moved = p.shift[at] + static_cast<T>(scale * along);
        T reached = p.start[at] + gain * moved;
        if (p.bounded) {
            reached = reached < low ? low : (reached > high ? high : reached);
            moved = (reached - p.start[at]) / gain;
        }
        p.shift[at] = moved;
        p.x[at] = reached;
    }
}

template <typename T>
__global__ void deepfool_step_kernel(DeepFoolStep<T> p) {
    FASTJAC_SHARED(int, nearest, [1]);
    FASTJAC_SHARED(double, scale, [1]);
    for (std::int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
        const T* rows = p.rows + n * (p.class_count - 1) * p.row_length;
        double* sizes = p.sizes + n * p.class_count;
        measure(p, rows, sizes);

        // One warp decides where to go.
        if (threadIdx.x < kWarp) {
            const Boundary best = nearest_of(p.logits + n * p.class_count, sizes,
                                             static_cast<int>(p.class_count));
            if (threadIdx.x == 0) {
                p.stuck[n] = best.to == 0;
                nearest[0] = best.to;
                scale[0] = (best.distance + p.margin) /
                           (p.linf || best.to == 0 ? 1.0 : sizes[best.to]);
            }
        }
        __syncthreads();
        if (nearest[0] != 0) {
            move(p, n, rows + (nearest[0] - 1) * p.row_length, scale[0]);
        }
        __syncthreads();
    }
}

}  // namespace

template <typename T>
void deepfool_step(const DeepFoolStep<T>& p, Stream stream) {
    launch("deepfool_step", deepfool_step_kernel<T>,
           one_block_each(p.samples, kStepThreads), stream, p);
}

}  // namespace cuda
}  // namespace fastjac
