// Tangents pushed through an elementwise factor, with the factor's gradient.
#pragma once

#include "dispatch.h"

namespace fastjac {

template <typename T>
struct ScalePush {
    const T* rows;            // (R, M), contiguous: cotangents behind the factor
    const T* tangents;        // (R, M), contiguous: tangents before it
    const T* factor;          // (M)
    T* pushed;                // (R, M), the result; may be `tangents`
    T* gradient;              // (M), the result
    std::int64_t row_count;   // R
    std::int64_t row_length;  // M
};

FASTJAC_DECLARE_KERNEL(template <typename T> void scale_push(const ScalePush<T>& p);)

}  // namespace fastjac
