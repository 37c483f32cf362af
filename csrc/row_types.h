// The types that rows are held in, and the one in which sums over them are made.
#pragma once

#include <cstdint>

namespace fastjac {

// 16-bit floating-point numbers as they lie in memory; csrc/cuda/pack.cuh reads them.
struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

template <typename Row>
struct SumOf {
    using type = Row;
};
template <>
struct SumOf<Half> {
    using type = float;
};
template <>
struct SumOf<BFloat16> {
    using type = float;
};

// What products of weights and rows of type Row are added up in.
template <typename Row>
using Sum = typename SumOf<Row>::type;

}  // namespace fastjac
