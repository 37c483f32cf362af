// What a kernel file needs besides its own code: launching, index arithmetic, sums.
//
// A kernel `foo` is three files:
//   foo.h    the parameter struct and the launcher's declaration, plain C++
//   foo.cuh  __global__ code and the launcher, a template over the element type
//   foo.cu   the explicit instantiations
// foo.cu is compiled by nvcc, and by the tests as C++ against a stand-in for the
// device (FASTJAC_CUDA_STANDIN), which runs the same blocks and threads on the CPU and
// watches each memory access. Hence two rules: shared memory is declared with
// FASTJAC_SHARED, and kernels are started by launch(), never by <<<>>>.
#pragma once

#include <cstdint>

#include "stream.h"

#if defined(FASTJAC_CUDA_STANDIN)
#    include "cuda_standin.h"
#else
#    include <cuda_runtime.h>

#    include <stdexcept>
#    include <string>

// FASTJAC_SHARED(float, tile, [8][33]) declares `float tile[8][33]` for the block.
#    define FASTJAC_SHARED(type, name, dimensions) __shared__ type name dimensions
#endif

namespace fastjac {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if !defined(FASTJAC_CUDA_STANDIN)

inline void check(const char* kernel, const char* what, cudaError_t status) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": " + what + ": " +
                             cudaGetErrorString(status));
}

inline std::int64_t most_blocks() {
    return std::int64_t{1} << 30;
}

// Starts kernel(params) on the stream and returns at once.
template <typename Params>
void launch(const char* name, void (*kernel)(Params), Shape shape, Stream stream,
            const Params& params) {
    if (shape.blocks == 0) return;
    int device = 0;
    check(name, "cudaGetDevice", cudaGetDevice(&device));
    if (device != stream.device) {
        check(name, "cudaSetDevice", cudaSetDevice(stream.device));
    }
    kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, 0,
             static_cast<cudaStream_t>(stream.handle)>>>(params);
    const cudaError_t status = cudaGetLastError();
    if (device != stream.device) {
        check(name, "cudaSetDevice", cudaSetDevice(device));
    }
    check(name, "launch", status);
}

#endif

// The shape for one thread an item; the kernel loops from first_item by item_step.
inline Shape one_thread_each(std::int64_t items, int threads = 256) {
    const std::int64_t blocks = (items + threads - 1) / threads;
    return {blocks < most_blocks() ? blocks : most_blocks(), threads};
}

// The shape for one block an item; the kernel loops from blockIdx.x by gridDim.x.
inline Shape one_block_each(std::int64_t items, int threads) {
    return {items < most_blocks() ? items : most_blocks(), threads};
}

inline __device__ std::int64_t first_item() {
    return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

inline __device__ std::int64_t item_step() {
    return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

// The sum over the 32 lanes of a warp, in every lane, in a fixed order.
template <typename T>
__device__ T warp_sum(T value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
}

}  // namespace cuda
}  // namespace fastjac
