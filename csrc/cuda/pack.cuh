// Loads and stores of several neighbouring elements at once, up to 16 bytes a thread.
//
// Rows may be held in 16 bits; they are widened as they are loaded and rounded to the
// nearest, ties to even, as they are stored.
#pragma once

#include "../row_types.h"
#include "launch.cuh"

#if !defined(FASTJAC_CUDA_STANDIN)
#    include <cuda_fp16.h>
#endif

namespace fastjac {
namespace cuda {

// V elements of T, aligned so that the compiler moves them by one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T v[V];
};

// How many elements of T 16 bytes hold. Rows of 16 bits are moved by as many as floats.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(Sum<T>));

inline __device__ float widened(float value) {
    return value;
}
inline __device__ double widened(double value) {
    return value;
}
inline __device__ float widened(Half value) {
#if defined(FASTJAC_CUDA_STANDIN)
    return standin::float_of_half(value.bits);
#else
    return __half2float(__ushort_as_half(value.bits));
#endif
}
inline __device__ float widened(BFloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

inline __device__ void narrow_to(float& to, float value) {
    to = value;
}
inline __device__ void narrow_to(double& to, double value) {
    to = value;
}
inline __device__ void narrow_to(Half& to, float value) {
#if defined(FASTJAC_CUDA_STANDIN)
    to.bits = standin::half_of_float(value);
#else
    to.bits = __half_as_ushort(__float2half_rn(value));
#endif
}
inline __device__ void narrow_to(BFloat16& to, float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (value != value) {
        to.bits = static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
        return;
    }
    to.bits = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <int V, typename T>
__device__ Pack<Sum<T>, V> load_pack(const T* from) {
    const Pack<T, V> loaded = *reinterpret_cast<const Pack<T, V>*>(from);
    Pack<Sum<T>, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.v[v] = widened(loaded.v[v]);
    return pack;
}

template <int V, typename T>
__device__ void store_pack(T* to, const Pack<Sum<T>, V>& pack) {
    Pack<T, V> stored;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow_to(stored.v[v], pack.v[v]);
    *reinterpret_cast<Pack<T, V>*>(to) = stored;
}

// The first R of the values at `from`, which are padded to whole packs unless R is 1.
template <int R, typename Row, typename T>
__device__ void load_rows_of(const Row* from, T (&values)[R]) {
    constexpr int V = R == 1 ? 1 : kPack<Row>;
#pragma unroll
    for (int start = 0; start < R; start += V) {
        const Pack<T, V> pack = load_pack<V>(from + start);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            if (start + v < R) values[start + v] = pack.v[v];
        }
    }
}

}  // namespace cuda
}  // namespace fastjac
