// Loads and stores of several neighbouring elements at once, up to 16 bytes a thread.
#pragma once

#include "launch.cuh"

namespace fastjac {
namespace cuda {

// V elements of T, aligned so that the compiler moves them by one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T v[V];
};

// How many elements of T 16 bytes hold.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <int V, typename T>
__device__ Pack<T, V> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, typename T>
__device__ void store_pack(T* to, const Pack<T, V>& pack) {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// The first R of the values at `from`, which are padded to whole packs unless R is 1.
template <int R, typename T>
__device__ void load_rows_of(const T* from, T (&values)[R]) {
    constexpr int V = R == 1 ? 1 : kPack<T>;
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
