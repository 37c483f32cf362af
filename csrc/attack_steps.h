// What the steps of the attacks are given, the same on a CPU and on a GPU.
#pragma once

#include <cstdint>

namespace fastjac {

// To the nearest boundary of the linearised model and beyond; cpu/deepfool_step.cpp has
// the formula.
template <typename T>
struct DeepFoolStep {
    const T* rows;             // (N, R - 1, D), gradients of logits k >= 1 less logit 0
    const T* logits;           // (N, R), the class to leave and the others
    const T* start;            // (N, D), clean samples
    T* shift;                  // (N, D), accumulated perturbation; updated
    T* x;                      // (N, D), perturbed samples; written
    bool* stuck;               // (N), out: no boundary to first order
    double* sizes;             // (N, R), workspace of the GPU's kernel
    std::int64_t samples;      // N
    std::int64_t class_count;  // R, at least 2
    std::int64_t row_length;   // D
    double margin;             // added to the distance
    double overshoot;          // x = start + (1 + overshoot) shift
    double low, high;          // bounds of x, if bounded
    bool bounded;
    bool linf;  // l_inf perturbations instead of l2
};

// One step of the Jacobian saliency map attack: pick one or two features, change them;
// cpu/jsma_step.cpp has the formula.
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

}  // namespace fastjac
