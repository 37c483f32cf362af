// Vectors hold the rows of one input. The sums of several inputs stay in registers over
// the layer's live outputs: a multiply-add for each pair of a live output and a live
// input, a vector load for each output, and a broadcast of a weight in each
// multiply-add.
//
// A thread owns tiles: the same fraction of every sample's entries below, which are
// sorted, so that the weights of about the same inputs stay in L2 over the samples.
// Operations: 2 R for each pair; of the lanes, R of row_stride do useful work.
#include "live_pull.h"

#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Inputs whose sums are in registers together, and bytes of weights that stay in L2.
constexpr int kInputs = kRegisters >= 32 ? 12 : 8;
constexpr std::int64_t kTileBytes = 512 * 1024;

template <int KI, typename T>
inline void pull_inputs(const LivePull<T>& p, std::int64_t n,
                        const std::int64_t* inputs) {
    const std::int32_t count = p.starts[2 * n + 1];
    const std::int32_t* channels = p.channels + n * p.channel_count;
    const T* weights[KI];
    FASTJAC_UNROLL
    for (int i = 0; i < KI; ++i) weights[i] = p.weight + inputs[i] * p.channel_count;
    for (std::int64_t lane = 0; lane < p.row_stride; lane += kLanes<T>) {
        const T* rows = p.compact + n * p.channel_count * p.row_stride + lane;
        Vector<T> sums[KI] = {};
        for (std::int32_t e = 0; e < count; ++e) {
            const std::int32_t c = channels[e];
            const Vector<T> row = load(rows + e * p.row_stride);
            FASTJAC_UNROLL
            for (int i = 0; i < KI; ++i) sums[i] += weights[i][c] * row;
        }
        T* out = p.out + n * p.input_count * p.row_stride + lane;
        FASTJAC_UNROLL
        for (int i = 0; i < KI; ++i) store(out + inputs[i] * p.row_stride, sums[i]);
    }
}

// Pulls to the inputs of the entries [first, end) below.
template <typename T>
void pull_tile(const LivePull<T>& p, std::int64_t n, std::int64_t first,
               std::int64_t end) {
    const std::int32_t* channels = p.below_channels + n * p.input_count;
    const std::int32_t* sources = p.below_sources + n * p.input_count;
    while (first < end) {
        const int count =
            static_cast<int>(end - first < kInputs ? end - first : kInputs);
        std::int64_t inputs[kInputs];
        for (int i = 0; i < count; ++i) {
            inputs[i] = channels[first + i] * p.below_pooled + sources[first + i];
        }
        WithConstant<kInputs>::call(count,
                                    [&](auto ki) { pull_inputs<ki.of>(p, n, inputs); });
        first += count;
    }
}

}  // namespace

template <typename T>
void live_pull(const LivePull<T>& p) {
    const std::int64_t bytes =
        p.input_count * p.channel_count * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t tiles = (bytes + kTileBytes - 1) / kTileBytes;
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        for (std::int64_t n = 0; n < p.samples; ++n) {
            const std::int64_t live =
                p.below_starts[n * (p.below_pixels + 1) + p.below_pixels];
            pull_tile(p, n, live * tile / tiles, live * (tile + 1) / tiles);
        }
    }
}

template void live_pull<float>(const LivePull<float>&);
template void live_pull<double>(const LivePull<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
