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
    const T* rows;                // B, (H, R); (R, H) for gated_head_subsets
    const T* input;               // u, (N, R, input_stride)
    const std::int32_t* starts;   // (H + 1) first live sample of each unit
    const std::int32_t* samples;  // (N H) live samples, unit by unit
    const T* factors;             // (N H) their gates
    const T* gate;                // (N, H) step gates, for gated_head_subsets
    unsigned char* members;       // (H, groups of kHeadGroup samples), its workspace
    T* weight_gradient;           // dW, (H, stride), added to
    T* partials;                  // (kHeadParts, H, R) zeros, workspace
    T* panels;                    // (kHeadParts, head_panel(...)), workspace
    T* row_gradient;              // dB, as B, added to
    std::int64_t sample_count;    // N
    std::int64_t units;           // H
    std::int64_t row_count;       // R
    std::int64_t in_channels;     // i < in_channels; strides hold whole vectors
    std::int64_t stride;
    std::int64_t input_stride;
};

// Into how many partial sums dB is cut, whatever the number of threads.
constexpr std::int64_t kHeadParts = 16;

// Elements of the widest vector of the smallest type.
constexpr std::int64_t kHeadLanes = 16;

// Samples whose subsets gated_head_subsets sums.
constexpr std::int64_t kHeadGroup = 4;

// Groups whose subset sums stay in L1 together.
constexpr std::int64_t kHeadBlock = 24;

// Elements of a part's workspace.
constexpr std::int64_t head_panel(bool subsets, std::int64_t samples, std::int64_t rows,
                                  std::int64_t units) {
    return kHeadLanes *
           (subsets ? kHeadBlock * (1 << kHeadGroup) + 2 * units : samples * rows);
}

// gated_head takes any gates, as lists; gated_head_subsets takes step gates as they
// are, and pays where more than a quarter of them are open.
FASTJAC_DECLARE_KERNEL(template <typename T> void gated_head(const GatedHead<T>& p);
                       template <typename T>
                       void gated_head_subsets(const GatedHead<T>& p);)

}  // namespace fastjac
