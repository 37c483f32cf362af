// gate_rows:      out[n, r, m]    = rows[n, r, m] * gate(n, m)
// unpool_rows:    out[n, r, c, q] = sum of rows[n, r, c, p] over the p with
//                                   indices[n, c, p] = q
// pool_tangents:  out[n, r, c, p] = tangents[n, r, c, indices[n, c, p]]
//
// In all three a thread owns one position of one sample (neighbours in memory are
// neighbouring threads) and up to kRowsEach of its rows, for which it reads the gate or
// the indices once. unpool_rows gathers: the thread of an input position looks at the
// pool windows that cover it, in ascending p, so that no two threads write one place,
// no atomics are needed and the order of the sum is fixed.
//
// Bytes, for elements of b bytes: gate_rows 2 b N R M (+ b N M / kRowsEach per row);
// unpool_rows b N R C (P + Q) + 8 N C P; pool_tangents 2 b N R C P + 8 N C P, its reads
// scattered. All are bound by memory.
#pragma once

#include "gate_pool.h"
#include "launch.cuh"

namespace fastjac {
namespace cuda {
namespace {

constexpr int kRowsEach = 8;

// Splits item = (n * groups + group) * length + position.
struct Item {
    std::int64_t sample;
    std::int64_t first_row;
    std::int64_t position;
    int rows;  // how many from first_row on
};

inline __host__ __device__ std::int64_t row_groups(std::int64_t row_count) {
    return (row_count + kRowsEach - 1) / kRowsEach;
}

inline __device__ Item item_at(std::int64_t index, std::int64_t row_count,
                               std::int64_t length) {
    const std::int64_t groups = row_groups(row_count);
    const std::int64_t rest = index / length;
    const std::int64_t first_row = rest % groups * kRowsEach;
    const std::int64_t left = row_count - first_row;
    return {rest / groups, first_row, index % length,
            static_cast<int>(left < kRowsEach ? left : kRowsEach)};
}

template <typename T>
__global__ void gate_rows_kernel(GateRows<T> p) {
    const std::int64_t items = p.samples * row_groups(p.row_count) * p.row_length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, p.row_length);
        const T gate = p.gate[item.sample * p.row_length + item.position];
        const std::int64_t start =
            (item.sample * p.row_count + item.first_row) * p.row_length + item.position;

        // All loads before the first store, so that they are in flight together.
        T values[kRowsEach];
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            if (j < item.rows) values[j] = p.rows[start + j * p.row_length];
        }
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            if (j >= item.rows) break;
            const T gated = p.kind == Gate::factor ? values[j] * gate
                            : gate > T(0)          ? values[j]
                                                   : T(0);
            p.out[start + j * p.row_length] = gated;
        }
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
    const std::int64_t end = i + axis.padding;     // start of the last window
    const std::int64_t begin = end - axis.extent;  // below the start of the first
    const std::int64_t first = begin < 0 ? 0 : begin / axis.stride + 1;
    const std::int64_t last = end / axis.stride;
    return {first, last < axis.output ? last : axis.output - 1};
}

template <typename T>
__global__ void unpool_rows_kernel(UnpoolRows<T> p) {
    const PoolAxis &a = p.axes[0], &b = p.axes[1], &c = p.axes[2];
    const std::int64_t input = a.input * b.input * c.input;
    const std::int64_t pooled = a.output * b.output * c.output;
    const std::int64_t length = p.channels * input;
    const std::int64_t items = p.samples * row_groups(p.row_count) * length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, length);
        const std::int64_t channel = item.position / input;
        const std::int64_t q = item.position % input;
        const std::int64_t row = item.sample * p.row_count + item.first_row;
        const std::int64_t* indices =
            p.indices + (item.sample * p.channels + channel) * pooled;
        const T* rows = p.rows + (row * p.channels + channel) * pooled;

        // Sum over the windows that chose q.
        T sums[kRowsEach] = {};
        const Windows in_a = windows_over(a, q / (b.input * c.input));
        const Windows in_b = windows_over(b, q / c.input % b.input);
        const Windows in_c = windows_over(c, q % c.input);
        for (std::int64_t oa = in_a.first; oa <= in_a.last; ++oa) {
            for (std::int64_t ob = in_b.first; ob <= in_b.last; ++ob) {
                for (std::int64_t oc = in_c.first; oc <= in_c.last; ++oc) {
                    const std::int64_t o = (oa * b.output + ob) * c.output + oc;
                    if (indices[o] != q) continue;
#pragma unroll
                    for (int j = 0; j < kRowsEach; ++j) {
                        if (j < item.rows) sums[j] += rows[j * p.channels * pooled + o];
                    }
                }
            }
        }

        T* out = p.out + row * length + item.position;
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            if (j < item.rows) out[j * length] = sums[j];
        }
    }
}

template <typename T>
__global__ void pool_tangents_kernel(PoolTangents<T> p) {
    const std::int64_t length = p.channels * p.pooled;
    const std::int64_t items = p.samples * row_groups(p.row_count) * length;
    for (std::int64_t i = first_item(); i < items; i += item_step()) {
        const Item item = item_at(i, p.row_count, length);
        const std::int64_t channel = item.position / p.pooled;
        const std::int64_t row = item.sample * p.row_count + item.first_row;
        const std::int64_t winner = p.indices[item.sample * length + item.position];
        const T* tangents = p.tangents + (row * p.channels + channel) * p.input + winner;
        T* out = p.out + row * length + item.position;

        T values[kRowsEach];
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            if (j < item.rows) values[j] = tangents[j * p.channels * p.input];
        }
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
            if (j < item.rows) out[j * length] = values[j];
        }
    }
}

}  // namespace

template <typename T>
void gate_rows(const GateRows<T>& p, Stream stream) {
    const std::int64_t items = p.samples * row_groups(p.row_count) * p.row_length;
    launch("gate_rows", gate_rows_kernel<T>, one_thread_each(items), stream, p);
}

template <typename T>
void unpool_rows(const UnpoolRows<T>& p, Stream stream) {
    const std::int64_t input = p.axes[0].input * p.axes[1].input * p.axes[2].input;
    const std::int64_t items =
        p.samples * row_groups(p.row_count) * p.channels * input;
    launch("unpool_rows", unpool_rows_kernel<T>, one_thread_each(items), stream, p);
}

template <typename T>
void pool_tangents(const PoolTangents<T>& p, Stream stream) {
    const std::int64_t items =
        p.samples * row_groups(p.row_count) * p.channels * p.pooled;
    launch("pool_tangents", pool_tangents_kernel<T>, one_thread_each(items), stream, p);
}

}  // namespace cuda
}  // namespace fastjac
