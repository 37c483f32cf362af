// Where a launch runs. Plain C++, so that bindings need no CUDA header.
#pragma once

namespace fastjac {
namespace cuda {

struct Stream {
    int device;    // ordinal of the GPU that holds the arrays
    void* handle;  // cudaStream_t, torch's current one
};

}  // namespace cuda
}  // namespace fastjac
