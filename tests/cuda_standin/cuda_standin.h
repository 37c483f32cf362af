// The device's names for a compiler that knows no device.
//
// Included by csrc/cuda/launch.cuh when FASTJAC_CUDA_STANDIN is defined, so that the
// very kernels that ship compile as C++. Only what runtime.h declares does any work.
// Code here is instrumented like the kernels that it is inlined into, unless marked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/stream.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define STANDIN_UNSEEN __attribute__((no_sanitize("thread")))

// FASTJAC_SHARED(float, tile, [8][33]) declares `float tile[8][33]` for the block.
#define FASTJAC_SHARED(type, name, dimensions)                      \
    typedef type name##_standin_type dimensions;                    \
    name##_standin_type& name = *static_cast<name##_standin_type*>( \
        ::standin::shared_array(#name, sizeof(name##_standin_type), sizeof(type)))

struct Index3 {
    unsigned x = 1, y = 1, z = 1;
};
extern Index3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

inline void __syncthreads() {
    standin::barrier();
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    standin::exchange(standin::Collective::syncwarp, mask, 0);
}

// Orders nothing between threads by itself, so there is nothing to do.
inline void __threadfence() {}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

inline int __popcll(unsigned long long bits) {
    return __builtin_popcountll(bits);
}

inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}

inline int __clz(int bits) {
    return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}

// `received` is the runtime's memory, which kernels may not see.
STANDIN_UNSEEN inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const std::uint64_t* received =
        standin::exchange(standin::Collective::ballot, mask, predicate != 0);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        votes |= static_cast<unsigned>(received[lane]) << lane;
    }
    return votes;
}

// The lanes that brought the same value as the caller.
template <typename T>
STANDIN_UNSEEN unsigned __match_any_sync(unsigned mask, T value) {
    static_assert(std::is_integral<T>::value, "");
    const std::uint64_t own = static_cast<std::uint64_t>(value);
    const std::uint64_t* received =
        standin::exchange(standin::Collective::match, mask, own);
    unsigned same = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if ((mask >> lane & 1) && received[lane] == own) same |= 1u << lane;
    }
    return same;
}

inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}

namespace standin {

// The value of lane `source`, which must take part.
template <typename T>
STANDIN_UNSEEN T shuffle(unsigned mask, T value, int source) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    const std::uint64_t* received = exchange(Collective::shuffle, mask, bits);
    if (!(mask >> source & 1)) {
        fail("warp divergence: a shuffle reads lane " + std::to_string(source) +
             ", which takes no part");
    }
    std::memcpy(&value, &received[source], sizeof(T));
    return value;
}

// Conversions of 16-bit floating-point numbers, as the device's instructions round.
STANDIN_UNSEEN inline float float_of_half(std::uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof(half));
    return static_cast<float>(half);
}

STANDIN_UNSEEN inline std::uint16_t half_of_float(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof(bits));
    return bits;
}

inline int lane() {
    return static_cast<int>(threadIdx.x % 32);
}

// Applies `update` to the value at `address` and returns the value before.
template <typename T, typename Update>
STANDIN_UNSEEN T atomic(T* address, Update update) {
    check_access(reinterpret_cast<std::uintptr_t>(address), sizeof(T), Access::atomic,
                 true);
    const T before = *address;
    *address = update(before);
    return before;
}

}  // namespace standin

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int start = standin::lane() / width * width;
    return standin::shuffle(mask, value, start + (source & (width - 1)));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int lane = standin::lane(), source = lane ^ bits;
    const bool inside = source < (lane / width + 1) * width;
    return standin::shuffle(mask, value, inside ? source : lane);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    const int lane = standin::lane(), source = lane + static_cast<int>(distance);
    const bool inside = source < (lane / width + 1) * width;
    return standin::shuffle(mask, value, inside ? source : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    const int lane = standin::lane(), source = lane - static_cast<int>(distance);
    const bool inside = source >= lane / width * width;
    return standin::shuffle(mask, value, inside ? source : lane);
}

template <typename T>
T atomicAdd(T* address, T value) {
    return standin::atomic(address, [=](T old) { return old + value; });
}

template <typename T>
T atomicMax(T* address, T value) {
    return standin::atomic(address, [=](T old) { return std::max(old, value); });
}

template <typename T>
T atomicMin(T* address, T value) {
    return standin::atomic(address, [=](T old) { return std::min(old, value); });
}

template <typename T>
T atomicOr(T* address, T value) {
    return standin::atomic(address, [=](T old) { return old | value; });
}

template <typename T>
T atomicExch(T* address, T value) {
    return standin::atomic(address, [=](T) { return value; });
}

template <typename T>
T atomicCAS(T* address, T expected, T value) {
    return standin::atomic(address,
                           [=](T old) { return old == expected ? value : old; });
}

namespace fastjac {
namespace cuda {

inline std::int64_t most_blocks() {
    return standin::get_most_blocks();
}

namespace standin_detail {

template <typename Params>
struct Call {
    void (*kernel)(Params);
    const Params& params;

    static STANDIN_UNSEEN void run(const void* context) {
        const Call& call = *static_cast<const Call*>(context);
        call.kernel(call.params);
    }
};

}  // namespace standin_detail

template <typename Params>
void launch(const char* name, void (*kernel)(Params), Shape shape, Stream,
            const Params& params) {
    if (shape.blocks == 0) return;
    const standin_detail::Call<Params> call{kernel, params};
    standin::run(name, shape.blocks, shape.threads, standin_detail::Call<Params>::run,
                 &call);
}

}  // namespace cuda
}  // namespace fastjac
