// One DeepFool step: to the nearest boundary of the linearised model and beyond.
#pragma once

#include "dispatch.h"

namespace fastjac {

template <typename T>
struct DeepFoolStep {
    const T* rows;            // (N, R, D), gradients; row 0 is the class to leave
    const T* logits;          // (N, R), the same classes
    const T* start;           // (N, D), clean samples
    T* shift;                 // (N, D), accumulated perturbation; updated
    T* x;                     // (N, D), perturbed samples; written
    bool* stuck;              // (N), out: no boundary to first order
    double* sizes;            // (N, R), workspace
    std::int64_t samples;     // N
    std::int64_t row_count;   // R, at least 2
    std::int64_t row_length;  // D
    double margin;            // added to the distance
    double overshoot;         // x = start + (1 + overshoot) shift
    double low, high;         // bounds of x, if bounded
    bool bounded;
    bool linf;  // l_inf perturbations instead of l2
};

FASTJAC_DECLARE_KERNEL(template <typename T>
                       void deepfool_step(const DeepFoolStep<T>& p);)

}  // namespace fastjac
