// gate_rows:      out[r, l]    = rows[r, l % period] * gate(l)
// gated_sum:      out[r, h]    = sum over n of gate(n, h) * tangents[r, n, h]
// unpool_rows:    out[r, a, q] = gate(a, q) * sum of rows[r, a, p] over the p with
//                                indices[a, p] = q
// pool_tangents:  out[r, a, p] = gate(a, q) * tangents[r, a, q] for q = indices[a, p]
//
// In gated_sum a block owns 32 neighbours h of a row and its warps take turns at the
// samples; their sums meet in shared memory, in a fixed order. Bytes: b R N H for the
// tangents; the gates come from L2 after the first row. In the others a thread owns one
// position of the result (neighbours in memory are neighbouring threads) in up to
// kRowsEach of the rows, for which it reads the gate or the indices once. unpool_rows
// gathers: the thread of an input position looks at the pool windows that cover it, in
// ascending p, so that no two threads write one place, no atomics are needed and the
// order of the sum is fixed.
//
// Bytes, for elements of b bytes and G = ceil(R / kRowsEach): gate_rows 2 b R L + b G
// L; unpool_rows b R planes (P + Q) + 8 G planes P; pool_tangents 2 b R planes P + 8 G
// planes P, its reads scattered. All are bound by memory.
#pragma once

#include "gate_pool.h"
#include "launch.cuh"

namespace fastjac {
namespace cuda {
namespace {

constexpr int kRowsEach = 8;

inline __host__ __device__ std::int64_t row_groups(std::int64_t row_count) {
    return (row_count + kRowsEach - 1) / kRowsEach;
}

// What a thread owns: item = group * length + position.
struct Item {
    std::int64_t position;
    std::int64_t first_row;
    int rows;  // how many from first_row on
};

inline __device__ Item item_at(std::int64_t index, std::int64_t row_count,
                               std::int64_t length) {
    const std::int64_t first_row = index / length * kRowsEach;
    const std::int64_t left = row_count - first_row;
    return {index % length, first_row,
            static_cast<int>(left < kRowsEach ? left : kRowsEach)};
}

// All loads before the first store, so that they are in flight together.
template <typename T>
__device__ void load_rows(T (&values)[kRowsEach], int rows, const T* from,
                          std::int64_t stride) {
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
        if (j < rows) values[j] = from[j * stride];
    }
}

template <typename T>
__device__ void store_rows(const T (&values)[kRowsEach], int rows, T* to,
                           std::int64_t stride) {
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
        if (j < rows) to[j * stride] = values[j];
    }
}

// Multiplies by the gate; a closed one gives 0, whatever the value was.
template <typename T>
__device__ void apply_gate(T (&values)[kRowsEach], T gate, Gate kind) {
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
        values[j] = kind == Gate::factor ? values[j] * gate
                    : gate > T(0)        ? values[j]
                                         : T(0);
    }
}

template <typename T>
__global__ void gate_rows_kernel(GateRows<T> p) {
    const std::int64_t items = row_groups(p.row_count) * p.length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, p.length);
        const T gate = p.gate[item.position];
        const std::int64_t start = item.first_row * p.length + item.position;
        const std::int64_t from =
            item.first_row * p.period +
            (p.period == p.length ? item.position : item.position % p.period);
        T values[kRowsEach] = {};
        load_rows(values, item.rows, p.rows + from, p.period);
        apply_gate(values, gate, p.kind);
        store_rows(values, item.rows, p.out + start, p.length);
    }
}

constexpr int kSumThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kSumThreads) gated_sum_kernel(GatedSum<T> p) {
    FASTJAC_SHARED(T, sums, [kSumThreads]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    constexpr int kWarps = kSumThreads / kWarp;
    const std::int64_t spans = (p.length + kWarp - 1) / kWarp;
    for (std::int64_t item = blockIdx.x; item < spans * p.row_count;
         item += gridDim.x) {
        const std::int64_t h = item % spans * kWarp + lane, row = item / spans;
        T sum = 0;
        if (h < p.length) {
            const T* tangents = p.tangents + row * p.samples * p.length + h;
#pragma unroll 4
            for (std::int64_t n = warp; n < p.samples; n += kWarps) {
                const T gate = p.gate[n * p.length + h];
                const T value = tangents[n * p.length];
                sum += p.kind == Gate::factor ? value * gate
                       : gate > T(0)          ? value
                                              : T(0);
            }
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (warp == 0 && h < p.length) {
            for (int w = 1; w < kWarps; ++w) sum += sums[w * kWarp + lane];
            p.out[row * p.length + h] = sum;
        }
        __syncthreads();  // before the next item's sums
    }
}

// The outputs [first, last] of an axis whose windows can cover input position i.
struct Windows {
    std::int64_t first;
    std::int64_t last;
};

inline __device__ Windows windows_over(const PoolAxis& axis, std::int64_t i) {
    if (axis.stride == 0) {
        return {i * axis.output / axis.input,
                ((i + 1) * axis.output + axis.input - 1) / axis.input - 1};
    }
    const std::int64_t end = i + axis.padding;     // the last start of a window over i
    const std::int64_t begin = end - axis.extent;  // one below the first such start
    const std::int64_t first = begin < 0 ? 0 : begin / axis.stride + 1;
    const std::int64_t last = end / axis.stride;
    return {first, last < axis.output ? last : axis.output - 1};
}

template <typename T>
__global__ void unpool_rows_kernel(UnpoolRows<T> p) {
    const PoolAxis &a = p.axes[0], &b = p.axes[1], &c = p.axes[2];
    const std::int64_t input = a.input * b.input * c.input;
    const std::int64_t pooled = a.output * b.output * c.output;
    const std::int64_t length = p.planes * input;
    const std::int64_t items = row_groups(p.row_count) * length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, length);
        const std::int64_t plane = item.position / input;
        const std::int64_t q = item.position % input;
        const std::int64_t* indices = p.indices + plane * pooled;
        const T* rows = p.rows + (item.first_row * p.planes + plane) * pooled;

        // Sum over the windows that chose q.
        T sums[kRowsEach] = {};
        const Windows over_a = windows_over(a, q / (b.input * c.input));
        const Windows over_b = windows_over(b, q / c.input % b.input);
        const Windows over_c = windows_over(c, q % c.input);
        for (std::int64_t oa = over_a.first; oa <= over_a.last; ++oa) {
            for (std::int64_t ob = over_b.first; ob <= over_b.last; ++ob) {
                for (std::int64_t oc = over_c.first; oc <= over_c.last; ++oc) {
                    const std::int64_t o = (oa * b.output + ob) * c.output + oc;
                    if (indices[o] != q) continue;
                    T values[kRowsEach] = {};
                    load_rows(values, item.rows, rows + o, p.planes * pooled);
#pragma unroll
                    for (int j = 0; j < kRowsEach; ++j) sums[j] += values[j];
                }
            }
        }
        if (p.gate != nullptr) apply_gate(sums, p.gate[item.position], p.kind);
        T* out = p.out + item.first_row * length + item.position;
        store_rows(sums, item.rows, out, length);
    }
}

template <typename T>
__global__ void pool_tangents_kernel(PoolTangents<T> p) {
    const std::int64_t length = p.planes * p.pooled;
    const std::int64_t items = row_groups(p.row_count) * length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, length);
        const std::int64_t plane = item.position / p.pooled;
        const std::int64_t q = p.indices[item.position];
        const T* winner =
            p.tangents + (item.first_row * p.planes + plane) * p.input + q;
        T values[kRowsEach] = {};
        load_rows(values, item.rows, winner, p.planes * p.input);
        if (p.gate != nullptr) {
            apply_gate(values, p.gate[plane * p.input + q], p.kind);
        }
        T* out = p.out + item.first_row * length + item.position;
        store_rows(values, item.rows, out, length);
    }
}

}  // namespace

template <typename T>
void gate_rows(const GateRows<T>& p, Stream stream) {
    const std::int64_t items = row_groups(p.row_count) * p.length;
    launch("gate_rows", gate_rows_kernel<T>, one_thread_each(items), stream, p);
}

template <typename T>
void gated_sum(const GatedSum<T>& p, Stream stream) {
    const std::int64_t spans = (p.length + kWarp - 1) / kWarp;
    launch("gated_sum", gated_sum_kernel<T>,
           one_block_each(spans * p.row_count, kSumThreads), stream, p);
}

template <typename T>
void unpool_rows(const UnpoolRows<T>& p, Stream stream) {
    const std::int64_t input = p.axes[0].input * p.axes[1].input * p.axes[2].input;
    const std::int64_t items = row_groups(p.row_count) * p.planes * input;
    launch("unpool_rows", unpool_rows_kernel<T>, one_thread_each(items), stream, p);
}

template <typename T>
void pool_tangents(const PoolTangents<T>& p, Stream stream) {
    const std::int64_t items = row_groups(p.row_count) * p.planes * p.pooled;
    launch("pool_tangents", pool_tangents_kernel<T>, one_thread_each(items), stream, p);
}

}  // namespace cuda
}  // namespace fastjac
