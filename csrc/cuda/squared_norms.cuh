// norms[n] = sum_r weights[r] * sum_m rows[r, n, m]^2, accumulated in double.
//
// First kernel: a warp owns one piece of one row and writes its sum of squares. Second:
// a warp owns one sample and adds its pieces. Lanes stride by 32 and are summed in a
// fixed tree, so the result is the same in every run.
// Bytes: R N M elements read once, 16 per piece. Operations: 2 R N M in double.
#pragma once

#include "launch.cuh"
#include "squared_norms.h"

namespace fastjac {
namespace cuda {
namespace {

inline __host__ __device__ std::int64_t pieces_of(std::int64_t row_length) {
    return (row_length + kSquaredNormsPiece - 1) / kSquaredNormsPiece;
}

template <typename T>
__global__ void piece_norms_kernel(SquaredNorms<T> p) {
    const std::int64_t pieces = pieces_of(p.row_length);
    const std::int64_t total = p.samples * p.row_count * pieces;
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t i = first_item() / kWarp; i < total; i += item_step() / kWarp) {
        const std::int64_t start = i % pieces * kSquaredNormsPiece;
        const std::int64_t left = p.row_length - start;
        const std::int64_t count =
            left < kSquaredNormsPiece ? left : kSquaredNormsPiece;
        const T* piece = p.rows + i / pieces * p.row_length + start;

        double sum = 0;
        for (std::int64_t m = lane; m < count; m += kWarp) {
            const double value = piece[m];
            sum += value * value;
        }
        sum = warp_sum(sum);
        if (lane == 0) p.partials[i] = sum;
    }
}

template <typename T>
__global__ void sample_norms_kernel(SquaredNorms<T> p) {
    const std::int64_t pieces = pieces_of(p.row_length);
    const std::int64_t each = p.row_count * pieces;
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t n = first_item() / kWarp; n < p.samples;
         n += item_step() / kWarp) {
        double sum = 0;
        for (std::int64_t i = lane; i < each; i += kWarp) {
            const std::int64_t r = i / pieces;
            const double weight = p.weights == nullptr ? 1 : p.weights[r];
            sum += weight * p.partials[(r * p.samples + n) * pieces + i % pieces];
        }
        sum = warp_sum(sum);
        if (lane == 0) p.norms[n] = sum;
    }
}

}  // namespace

template <typename T>
void squared_norms(const SquaredNorms<T>& p, Stream stream) {
    const std::int64_t pieces = p.samples * p.row_count * pieces_of(p.row_length);
    launch("piece_norms", piece_norms_kernel<T>, one_thread_each(pieces * kWarp),
           stream, p);
    launch("sample_norms", sample_norms_kernel<T>, one_thread_each(p.samples * kWarp),
           stream, p);
}

}  // namespace cuda
}  // namespace fastjac
