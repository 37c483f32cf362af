// Vectors of the instruction set that this file is compiled for.
//
// They are the compiler's own vector types: arithmetic is written with + and *, and
// a * b + c becomes a fused multiply-add where there is one. Loads and stores need no
// alignment. Include inside no namespace; everything lives in fastjac::FASTJAC_ISA.
#pragma once

#include <cstdint>
#include <cstring>

// Before a loop of a constant count: unroll it, so that arrays become registers.
#define FASTJAC_UNROLL _Pragma("GCC unroll 16")

namespace fastjac {
namespace FASTJAC_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct VectorOf {
    typedef T type __attribute__((vector_size(kVectorBytes)));
    typedef T unaligned
        __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline __attribute__((always_inline)) Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
inline __attribute__((always_inline)) void store(T* to, Vector<T> value) {
    *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// The sum of all lanes, in a fixed order.
template <typename T>
inline __attribute__((always_inline)) T sum(Vector<T> value) {
    T lanes[kLanes<T>];
    store(lanes, value);
    for (int half = kLanes<T> / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

template <int value>
struct Constant {
    static constexpr int of = value;
};

// WithConstant<Most>::call(count, f) calls f(Constant<count>{}) for count in 1..Most.
template <int Most>
struct WithConstant {
    template <typename F>
    static inline __attribute__((always_inline)) void call(int count, const F& f) {
        if (count == Most) {
            f(Constant<Most>{});
        } else {
            WithConstant<Most - 1>::call(count, f);
        }
    }
};

template <>
struct WithConstant<0> {
    template <typename F>
    static inline void call(int, const F&) {}
};

}  // namespace FASTJAC_ISA
}  // namespace fastjac
