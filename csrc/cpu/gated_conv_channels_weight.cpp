// The gradient of a gated convolution's weights, vector lanes over input channels.
//
//   dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), r, i]
//
// A tile of an input pixel's rows stays in registers over the entries that read it by
// one line of the kernel, and meets their rows of dW. Operations: 2 R C' an entry and
// tap; for R = 10 rows an entry takes 20 multiply-adds of vectors, ten broadcasts, two
// loads and two stores.
#include "channel_tiles.h"
#include "weight_tasks.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Adds what the entries of a run contribute by way of one input pixel's rows.
template <int KR, int KV, typename T>
inline void weight_tile(const GatedConv<T>& p, const Entries<T>& entries,
                        const Run& run, std::int64_t first_row, const T* input,
                        T* gradient) {
    constexpr int kWays = KR > 1 ? 2 : 1;  // shorter chains of multiply-adds
    Vector<T> rows[KR][KV];
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            rows[r][v] = load(input + r * p.input_stride + v * kLanes<T>);
        }
    }
    T* run_gradient = gradient + run.base * p.weight_stride;
    const std::int32_t end = entries.starts[run.end];
    for (std::int32_t e = entries.starts[run.begin]; e < end; ++e) {
        T* to = run_gradient + entries.offsets[e] * p.weight_stride;
        const T* g = entries.compact + e * p.compact_stride + first_row;
        Vector<T> sums[kWays][KV] = {};
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) sums[0][v] = load(to + v * kLanes<T>);
        FASTJAC_UNROLL
        for (int r = 0; r < KR; ++r) {
            FASTJAC_UNROLL
            for (int v = 0; v < KV; ++v) sums[r % kWays][v] += g[r] * rows[r][v];
        }
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            store(to + v * kLanes<T>,
                  kWays > 1 ? sums[0][v] + sums[kWays - 1][v] : sums[0][v]);
        }
    }
}

// Asks for a tile of the next pixel's rows, which stream from beyond L2.
template <typename T>
inline void prefetch_rows(const GatedConv<T>& p, const T* rows) {
    for (std::int64_t r = 0; r < p.row_count; ++r) {
        FASTJAC_UNROLL
        for (int v = 0; v < kTileVectors; ++v) {
            __builtin_prefetch(rows + r * p.input_stride + v * kLanes<T>);
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_weight_channels(const GatedConv<T>& p) {
    const std::int64_t pixel_size = p.row_count * p.input_stride;
    each_reader(p, [&](const Reader& reader) {
        const T* input = input_at(p, reader.n, reader.pixel);
        const Entries<T> entries = entries_of(p, reader.n);
        prefetch_rows(p, input + pixel_size + reader.tile * kTileVectors * kLanes<T>);
        for (int i = 0; i < reader.run_count; ++i) {
            each_row_tile(p, reader.tile,
                          [&](std::int64_t r, auto kr, std::int64_t lane, auto kv) {
                              weight_tile<kr.of, kv.of>(
                                  p, entries, reader.runs[i], r,
                                  input + r * p.input_stride + lane,
                                  p.weight_gradient + lane);
                          });
        }
    });
}

template void gated_conv_weight_channels<float>(const GatedConv<float>&);
template void gated_conv_weight_channels<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
