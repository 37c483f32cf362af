// Where and in what shape a kernel runs. Plain C++, so that bindings need no CUDA
// header.
#pragma once

#include <cstdint>

namespace fastjac {
namespace cuda {

struct Stream {
    int device;    // ordinal of the GPU that holds the arrays
    void* handle;  // cudaStream_t, torch's current one
};

// One-dimensional launches only: kernels loop, so that any size fits.
struct Shape {
    std::int64_t blocks;
    int threads;  // in each block, a multiple of the warp's 32
};

}  // namespace cuda
}  // namespace fastjac
