// The weight gradients of a classifier's last two linear layers, in one product.
#pragma once

#include "dispatch.h"

namespace fastjac {

// Below the logits stands v = B (d o (W u)): H hidden units with gates d[n, j], and
// rows that all samples share when they enter the hidden layer, B of (H, R). Both
// weights' gradients come from the tangents u at the bottom by one sum over live
// samples,
//   M[j, r, i] = sum_{n live at j} d[n, j] u[n, r, i]
//   dW[j, i]  += sum_r B[j, r] M[j, r, i]
//   dB[j, r]  += sum_i W[j, i] M[j, r, i]
// so that no tangent has to be pushed through W.
template <typename T>
struct GatedHead {
    const T* weight;              // W, (H, stride)
    const T* rows;                // B, (H, R)
    const T* input;               // u, (N, R, stride)
    const std::int32_t* starts;   // (H + 1) first live sample of each unit
    const std::int32_t* samples;  // (N H) live samples, unit by unit
    const T* factors;             // (N H) their gates
    T* weight_gradient;           // dW, (H, stride), added to
    T* partials;                  // (kHeadParts, H, R) zeros, workspace
    T* panels;                    // (kHeadParts, N, R, kHeadLanes), workspace
    T* row_gradient;              // dB, (H, R), added to
    std::int64_t sample_count;    // N
    std::int64_t units;           // H
    std::int64_t row_count;       // R
    std::int64_t in_channels;     // i < in_channels; stride is a multiple of vectors
    std::int64_t stride;
};

// Into how many partial sums dB is cut, whatever the number of threads.
constexpr std::int64_t kHeadParts = 16;

// Elements of the widest vector of the smallest type.
constexpr std::int64_t kHeadLanes = 16;

FASTJAC_DECLARE_KERNEL(template <typename T> void gated_head(const GatedHead<T>& p);)

}  // namespace fastjac
