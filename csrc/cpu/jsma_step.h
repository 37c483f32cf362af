// One step of the Jacobian saliency map attack: pick one or two features, change them.
#pragma once

#include "dispatch.h"

namespace fastjac {

template <typename T>
struct JsmaStep {
    const T* rows;         // (N, 2, D), gradients of the target and of the others' sum
    T* x;                  // (N, D), perturbed samples; updated
    bool* open;            // (N, D), features that may be chosen; updated
    std::int64_t* chosen;  // (N, pixels), out: the features in order, or -1
    std::int64_t* strong;  // (N, D), workspace; unused if pixels is 1
    std::int64_t samples;  // N
    std::int64_t row_length;  // D
    std::int64_t pixels;      // features a step, 1 or 2
    double theta;             // change of a chosen feature, of either sign
    double low, high;         // bounds of x
};

FASTJAC_DECLARE_KERNEL(template <typename T> void jsma_step(const JsmaStep<T>& p);)

}  // namespace fastjac
