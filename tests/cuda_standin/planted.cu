// Small kernels that test the stand-in itself: sound ones, which must give their result
// without a complaint, and ones with a planted bug, each of which must be found.
#include "cuda/launch.cuh"

#include <stdexcept>
#include <string>

namespace fastjac {
namespace cuda {

struct Planted {
    const float* in;
    float* out;
    std::int64_t count;
};

namespace {

// ---- sound

__global__ void block_sums(Planted p) {
    FASTJAC_SHARED(float, sums, [64]);
    const int t = threadIdx.x;
    sums[t] = first_item() < p.count ? p.in[first_item()] : 0;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) sums[t] += sums[t + half];
        __syncthreads();
    }
    if (t == 0) p.out[blockIdx.x] = sums[0];
}

__global__ void histogram(Planted p) {
    for (std::int64_t i = first_item(); i < p.count; i += item_step()) {
        atomicAdd(&p.out[static_cast<int>(p.in[i])], 1.0f);
    }
}

__global__ void warp_neighbours(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    const int t = threadIdx.x;
    tile[t] = p.in[t];
    __syncwarp();
    p.out[t] = tile[t ^ 1];
}

__global__ void transpose(Planted p) {
    FASTJAC_SHARED(float, tile, [8][9]);
    const int t = threadIdx.x;
    tile[t / 8][t % 8] = p.in[t];
    __syncthreads();
    p.out[t] = tile[t % 8][t / 8];
}

__global__ void votes(Planted p) {
    const int t = threadIdx.x;
    const unsigned positive = __ballot_sync(kAllLanes, p.in[t] > 0);
    const float next = __shfl_down_sync(kAllLanes, p.in[t], 1);
    p.out[t] = static_cast<float>(__popc(positive)) + next;
}

// ---- with a bug

__global__ void read_past_end(Planted p) {
    for (std::int64_t i = first_item(); i < p.count; i += item_step()) {
        p.out[i] = p.in[i] + p.in[i + 1];
    }
}

__global__ void read_before_start(Planted p) {
    for (std::int64_t i = first_item(); i < p.count; i += item_step()) {
        p.out[i] = p.in[i - 1];
    }
}

__global__ void write_past_end(Planted p) {
    for (std::int64_t i = first_item(); i <= p.count; i += item_step()) p.out[i] = 1;
}

__global__ void shared_past_end(Planted p) {
    FASTJAC_SHARED(float, tile, [63]);
    tile[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void wild_address(Planted p) {
    p.out[std::int64_t{1} << 40] = 1;
}

__global__ void writes_input(Planted p) {
    const_cast<float*>(p.in)[first_item()] = 0;
}

__global__ void leaves_unwritten(Planted p) {
    for (std::int64_t i = first_item(); i < p.count - 1; i += item_step()) p.out[i] = 1;
}

__global__ void reads_unwritten(Planted p) {
    p.out[first_item()] += 1;
}

__global__ void shared_unwritten(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    if (threadIdx.x > 0) tile[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void race_of_writes(Planted p) {
    p.out[first_item() / 2] = 1;
}

__global__ void race_of_blocks(Planted p) {
    if (threadIdx.x == 0) p.out[0] = static_cast<float>(blockIdx.x);
}

__global__ void missing_barrier(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    tile[threadIdx.x] = p.in[threadIdx.x];
    p.out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void missing_second_barrier(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    const int t = threadIdx.x;
    float sum = 0;
    for (int pass = 0; pass < 2; ++pass) {
        tile[t] = p.in[t] + pass;
        __syncthreads();
        sum += tile[63 - t];
    }
    p.out[t] = sum;
}

__global__ void shuffle_is_no_barrier(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    const int t = threadIdx.x;
    tile[t] = p.in[t];
    const float own = __shfl_sync(kAllLanes, p.in[t], t % kWarp);
    p.out[t] = own + tile[t ^ 1];
}

__global__ void syncwarp_is_no_barrier(Planted p) {
    FASTJAC_SHARED(float, tile, [64]);
    tile[threadIdx.x] = p.in[threadIdx.x];
    __syncwarp();
    p.out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void atomic_and_plain(Planted p) {
    if (threadIdx.x == 0) {
        p.out[0] = 0;
    } else {
        atomicAdd(&p.out[0], 1.0f);
    }
}

__global__ void barrier_in_branch(Planted p) {
    if (threadIdx.x < 32) __syncthreads();
    p.out[first_item()] = 1;
}

__global__ void shuffle_in_branch(Planted p) {
    float value = p.in[threadIdx.x];
    if (threadIdx.x % 2 == 0) value = __shfl_down_sync(kAllLanes, value, 1);
    p.out[threadIdx.x] = value;
}

__global__ void shuffle_from_absent_lane(Planted p) {
    const float value = p.in[threadIdx.x];
    if (threadIdx.x % kWarp < 16) {
        p.out[threadIdx.x] = __shfl_sync(0xffffu, value, 20);
    } else {
        p.out[threadIdx.x] = value;
    }
}

struct alignas(16) Four {
    float values[4];
};

__global__ void misaligned(Planted p) {
    if (first_item() > 0) return;
    *reinterpret_cast<Four*>(p.out) = *reinterpret_cast<const Four*>(p.in + 1);
}

__global__ void too_much_shared(Planted p) {
    FASTJAC_SHARED(double, tile, [6145]);
    tile[0] = 0;
    p.out[first_item()] = 1;
}

struct Entry {
    const char* name;
    void (*kernel)(Planted);
};

const Entry kEntries[] = {
#define ENTRY(name) {#name, name}
    ENTRY(block_sums),
    ENTRY(histogram),
    ENTRY(warp_neighbours),
    ENTRY(transpose),
    ENTRY(votes),
    ENTRY(read_past_end),
    ENTRY(read_before_start),
    ENTRY(write_past_end),
    ENTRY(shared_past_end),
    ENTRY(wild_address),
    ENTRY(writes_input),
    ENTRY(leaves_unwritten),
    ENTRY(reads_unwritten),
    ENTRY(shared_unwritten),
    ENTRY(race_of_writes),
    ENTRY(race_of_blocks),
    ENTRY(missing_barrier),
    ENTRY(missing_second_barrier),
    ENTRY(shuffle_is_no_barrier),
    ENTRY(syncwarp_is_no_barrier),
    ENTRY(atomic_and_plain),
    ENTRY(barrier_in_branch),
    ENTRY(shuffle_in_branch),
    ENTRY(shuffle_from_absent_lane),
    ENTRY(misaligned),
    ENTRY(too_much_shared),
#undef ENTRY
};

}  // namespace

void run_planted(const char* name, const float* in, float* out, std::int64_t count,
                 std::int64_t blocks) {
    for (const Entry& entry : kEntries) {
        if (std::string(entry.name) != name) continue;
        launch(entry.name, entry.kernel, Shape{blocks, 64}, Stream{0, nullptr},
               Planted{in, out, count});
        return;
    }
    throw std::invalid_argument(std::string("no planted kernel ") + name);
}

}  // namespace cuda
}  // namespace fastjac
