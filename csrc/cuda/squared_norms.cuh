// norms[n] = sum_r weights[r] * sum_m rows[r, n, m]^2, accumulated in double, NaN where
// what is watched is not finite; totals = sum_n norms[n], its root, and 1 / root.
//
// First kernel: a warp owns one piece of one row and writes its sum of squares. Second:
// a warp owns one sample and adds its pieces. Third: one block adds the norms. Where
// one block can do the second's work as well, these two are one. Lanes stride by 32 and
// are summed in a fixed tree, so the result is the same in every run.
// Bytes: R N M elements read once, 16 a piece. Operations: 2 R N M in double.
#pragma once

#include <type_traits>

#include "pack.cuh"
#include "squared_norms.h"

namespace fastjac {
namespace cuda {
namespace {

inline __host__ __device__ std::int64_t pieces_of(std::int64_t row_length) {
    return (row_length + kSquaredNormsPiece - 1) / kSquaredNormsPiece;
}

template <typename Row>
__global__ void piece_norms_kernel(SquaredNorms<Row> p) {
    const std::int64_t pieces = pieces_of(p.row_length);
    const std::int64_t total = p.samples * p.row_count * pieces;
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t i = first_item() / kWarp; i < total; i += item_step() / kWarp) {
        const std::int64_t start = i % pieces * kSquaredNormsPiece;
        const std::int64_t left = p.row_length - start;
        const std::int64_t count =
            left < kSquaredNormsPiece ? left : kSquaredNormsPiece;
        const Row* piece = p.rows + i / pieces * p.row_length + start;

        double sum = 0;
#pragma unroll 4
        for (std::int64_t m = lane; m < count; m += kWarp) {
            const double value = widened(piece[m]);
            sum += value * value;
        }
        sum = warp_sum(sum);
        if (lane == 0) p.partials[i] = sum;
    }
}

// 0 if the lane's share of what is watched of sample n is finite, else NaN.
inline __device__ double watch(const Watched& p, std::int64_t n, int lane) {
    bool finite = true;
    for (std::int64_t k = lane; p.values != nullptr && k < p.each; k += kWarp) {
        const std::int64_t at = n * p.each + k;
        std::uint64_t bits;
        if (p.bytes == 8) {
            bits = static_cast<const std::uint64_t*>(p.values)[at];
        } else if (p.bytes == 4) {
            bits = static_cast<const std::uint32_t*>(p.values)[at];
        } else {
            bits = static_cast<const std::uint16_t*>(p.values)[at];
        }
        finite = finite && (bits & p.exponent) != p.exponent;
    }
    const double zero = 0;
    return finite ? zero : zero / zero;
}

// The norms of samples first, first + step, ..., a warp each.
template <typename Row>
__device__ void add_pieces(const SquaredNorms<Row>& p, std::int64_t first,
                           std::int64_t step) {
    const std::int64_t pieces = pieces_of(p.row_length);
    const std::int64_t each = p.row_count * pieces;
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t n = first; n < p.samples; n += step) {
        double sum = watch(p.watched, n, lane);
        for (std::int64_t i = lane; i < each; i += kWarp) {
            const std::int64_t r = i / pieces;
            const double weight = p.weights == nullptr ? 1 : p.weights[r];
            sum += weight * p.partials[(r * p.samples + n) * pieces + i % pieces];
        }
        sum = warp_sum(sum);
        if (lane == 0) p.norms[n] = p.add ? p.norms[n] + sum : sum;
    }
}

constexpr int kTotalThreads = 1024;

// One block adds the norms.
template <typename T>
__device__ void add_norms(const NormTotals<T>& p) {
    FASTJAC_SHARED(double, sums, [kTotalThreads / kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    double sum = 0;
    for (std::int64_t n = threadIdx.x; n < p.samples; n += kTotalThreads) {
        sum += p.norms[n];
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0;
    for (int w = 0; w < kTotalThreads / kWarp; ++w) total += sums[w];
    const double root = sqrt(total);
    p.totals[0] = static_cast<T>(total);
    p.totals[1] = static_cast<T>(root);
    p.totals[2] = static_cast<T>(total == 0 ? 0 : 1 / root);
}

template <typename Row>
__global__ void sample_norms_kernel(SquaredNorms<Row> p) {
    add_pieces(p, first_item() / kWarp, item_step() / kWarp);
}

template <typename T>
__global__ void __launch_bounds__(kTotalThreads) total_norms_kernel(NormTotals<T> p) {
    add_norms(p);
}

template <typename Row>
struct FinishNorms {
    SquaredNorms<Row> norms;
    NormTotals<Sum<Row>> totals;
};

template <typename Row>
__global__ void __launch_bounds__(kTotalThreads)
    finish_norms_kernel(FinishNorms<Row> p) {
    add_pieces(p.norms, threadIdx.x / kWarp, kTotalThreads / kWarp);
    __syncthreads();
    add_norms(p.totals);
}

// Partial sums and watched values that one block adds up in some 20 microseconds.
constexpr std::int64_t kMostOfOneBlock = 1 << 17;

template <typename Row>
std::int64_t launch_pieces(const SquaredNorms<Row>& p, Stream stream) {
    const std::int64_t pieces = p.samples * p.row_count * pieces_of(p.row_length);
    launch("piece_norms", piece_norms_kernel<Row>, one_thread_each(pieces * kWarp),
           stream, p);
    return pieces;
}

}  // namespace

template <typename Row>
void squared_norms(const SquaredNorms<Row>& p, Stream stream) {
    launch_pieces(p, stream);
    launch("sample_norms", sample_norms_kernel<Row>, one_thread_each(p.samples * kWarp),
           stream, p);
}

template <typename Row>
void squared_norms_and_totals(const SquaredNorms<Row>& p,
                              const NormTotals<Sum<Row>>& totals, Stream stream) {
    const std::int64_t pieces = launch_pieces(p, stream);
    if (pieces + p.samples * p.watched.each <= kMostOfOneBlock) {
        const FinishNorms<Row> work{p, totals};
        launch("finish_norms", finish_norms_kernel<Row>, {1, kTotalThreads}, stream,
               work);
        return;
    }
    launch("sample_norms", sample_norms_kernel<Row>, one_thread_each(p.samples * kWarp),
           stream, p);
    launch("total_norms", total_norms_kernel<Sum<Row>>, {1, kTotalThreads}, stream,
           totals);
}

}  // namespace cuda
}  // namespace fastjac
