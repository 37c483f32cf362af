// Vectors of the instruction set that this file is compiled for.
//
// They are the compiler's own vector types: arithmetic is written with + and *, and
// a * b + c becomes a fused multiply-add where there is one. Loads and stores need no
// alignment. Include inside no namespace; everything lives in fastjac::FASTJAC_ISA.
#pragma once

#include <cstdint>
#include <cstring>

// Before a loop of a constant count: unroll it, so that arrays become registers.
#define FASTJAC_UNROLL _Pragma("GCC unroll 32")

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

// How many vectors it takes to hold `count` elements.
template <typename T>
constexpr std::int64_t vectors_of(std::int64_t count) {
    return (count + kLanes<T> - 1) / kLanes<T>;
}

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

// Keeps a value in a register, where the compiler would load it again for each use.
template <typename T>
inline __attribute__((always_inline)) void keep(T& value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__x86_64__)
    asm("" : "+x"(value));
#endif
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

// Integers that choose the lanes of a shuffle, as wide as T.
template <int bytes>
struct IntegerOf;
template <>
struct IntegerOf<4> {
    typedef std::int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct IntegerOf<8> {
    typedef std::int64_t type __attribute__((vector_size(kVectorBytes)));
};

// One step of summing many vectors at once. Each block of `block` lanes of `a` and `b`
// holds parts of one sum; the result holds them in blocks half as large, a's first.
template <int block, typename T>
inline __attribute__((always_inline)) Vector<T> fold(Vector<T> a, Vector<T> b) {
    constexpr int kHalf = block / 2;
    typename IntegerOf<sizeof(T)>::type low{}, high{};
    FASTJAC_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) {
        low[i] = i / kHalf * block + i % kHalf;
        high[i] = low[i] + kHalf;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Folds vectors first, first + stride, ... of `from` until each sum is one lane.
template <int block, int first, int count, typename T>
inline __attribute__((always_inline)) Vector<T> folded(const Vector<T> (&from)[count]) {
    if constexpr (block == 2 * kLanes<T>) {
        return from[first < count ? first : count - 1];
    } else {
        constexpr int kSide = kLanes<T> / block;  // vectors below each argument
        if constexpr (first + kSide < count) {
            return fold<block, T>(folded<2 * block, first, count, T>(from),
                                  folded<2 * block, first + kSide, count, T>(from));
        } else {
            const Vector<T> one = folded<2 * block, first, count, T>(from);
            return fold<block, T>(one, one);
        }
    }
}

// The sums of `count` vectors, written to `to`: a tree of folds, which takes a third of
// the instructions of summing each vector on its own.
template <int count, int first, typename T>
inline __attribute__((always_inline)) void sums(const Vector<T> (&from)[count], T* to) {
    const Vector<T> all = folded<2, first, count, T>(from);
    constexpr int kHere = count - first < kLanes<T> ? count - first : kLanes<T>;
    T lanes[kLanes<T>];
    store(lanes, all);
    FASTJAC_UNROLL
    for (int i = 0; i < kHere; ++i) to[first + i] = lanes[i];
    if constexpr (first + kLanes<T> < count) {
        sums<count, first + kLanes<T>, T>(from, to);
    }
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
