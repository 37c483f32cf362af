// Gates and pool routes applied to rows and tangents on the GPU.
//
// R rows; L elements of a value (samples and all); planes (samples times channels) of P
// pooled positions and of Q input positions, each flattened over up to three axes. What
// a row has, all R rows share: arrays are contiguous in the order given, R outermost.
#pragma once

#include <cstdint>

#include "stream.h"

namespace fastjac {
namespace cuda {

enum class Gate {
    positive,  // 1 where the gate array is > 0, else 0: the result of a ReLU
    factor,    // the gate array itself
};

template <typename T>
struct GateRows {
    const T* rows;           // (R, period)
    const T* gate;           // (L)
    T* out;                  // (R, L), may be `rows` itself
    std::int64_t row_count;  // R
    std::int64_t length;     // L
    std::int64_t period;     // L, or a part of it that is repeated: all samples' row
    Gate kind;
};

// out[r, h] = sum_n gate(n, h) * tangents[r, n, h]
template <typename T>
struct GatedSum {
    const T* tangents;       // (R, N, H)
    const T* gate;           // (N, H)
    T* out;                  // (R, H)
    std::int64_t row_count;  // R
    std::int64_t samples;    // N
    std::int64_t length;     // H
    Gate kind;
};

// One axis of a pool: output o covers the inputs o * stride - padding + [0, extent),
// or, if stride is 0 (adaptive), floor(o * input / output) to ceil((o + 1) * input /
// output). Extent counts the dilation in: (kernel - 1) * dilation + 1.
struct PoolAxis {
    std::int64_t input;
    std::int64_t output;
    std::int64_t extent;
    std::int64_t stride;
    std::int64_t padding;
};

template <typename T>
struct UnpoolRows {
    const T* rows;                // (R, planes, P)
    const std::int64_t* indices;  // (planes, P), the winner's position in [0, Q)
    const T* gate;                // (planes, Q) at the pool's input, or null: all open
    T* out;                       // (R, planes, Q)
    PoolAxis axes[3];             // slowest first; P and Q are the products
    std::int64_t row_count;       // R
    std::int64_t planes;
    Gate kind;
};

template <typename T>
struct PoolTangents {
    const T* tangents;            // (R, planes, Q)
    const std::int64_t* indices;  // (planes, P), the winner's position in [0, Q)
    const T* gate;                // (planes, Q) at the pool's input, or null: all open
    T* out;                       // (R, planes, P)
    std::int64_t row_count;       // R
    std::int64_t planes;
    std::int64_t pooled;  // P
    std::int64_t input;   // Q
    Gate kind;
};

template <typename T>
void gate_rows(const GateRows<T>& p, Stream stream);

template <typename T>
void gated_sum(const GatedSum<T>& p, Stream stream);

template <typename T>
void unpool_rows(const UnpoolRows<T>& p, Stream stream);

template <typename T>
void pool_tangents(const PoolTangents<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
