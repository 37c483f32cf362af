// The gradient of a gated convolution's weights, vector lanes over input channels.
//
//   dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), r, i]
//
// A tile of an input pixel's rows stays in registers over the entries that read it by
// one line of the kernel, and meets their rows of dW. A thread owns taps and tiles of
// lanes, so no two threads add to one place and the order of the additions does not
// depend on their number. Operations: 2 R C' an entry and tap; for R = 10 rows an entry
// takes 20 multiply-adds of vectors, ten broadcasts, two loads and two stores.
#include <omp.h>

#include <algorithm>

#include "channel_tiles.h"

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

// Adds what sample n contributes to the gradients of taps [first, end), for one tile.
template <typename T>
void weight_of_taps(const GatedConv<T>& p, std::int64_t n, std::int64_t first,
                    std::int64_t end, std::int64_t tile) {
    const Entries<T> entries = entries_of(p, n);
    const std::int64_t pixel_size = p.row_count * p.input_stride;
    const std::int64_t last_line = (end - 1) / p.kernel_x;
    for (std::int64_t y = 0; y < p.in_height; ++y) {
        for (std::int64_t a = first / p.kernel_x; a <= last_line; ++a) {
            const std::int64_t line = a * p.kernel_x;
            const Taps taps{a, std::max<std::int64_t>(first - line, 0),
                            std::min(end - line, p.kernel_x)};
            const T* input = input_at(p, n, y * p.in_width);
            for (std::int64_t x = 0; x < p.in_width; ++x, input += pixel_size) {
                Run runs[kMostTaps];
                const int count = readers_by_line(p, y, x, taps, runs);
                if (count == 0) continue;
                prefetch_rows(p, input + pixel_size + tile * kTileVectors * kLanes<T>);
                for (int i = 0; i < count; ++i) {
                    each_row_tile(
                        p, tile,
                        [&](std::int64_t r, auto kr, std::int64_t lane, auto kv) {
                            weight_tile<kr.of, kv.of>(p, entries, runs[i], r,
                                                      input + r * p.input_stride + lane,
                                                      p.weight_gradient + lane);
                        });
                }
            }
        }
    }
}

}  // namespace

template <typename T>
void gated_conv_weight_channels(const GatedConv<T>& p) {
    const std::int64_t taps = p.kernel_y * p.kernel_x, tasks = taps * tile_count(p);
#pragma omp parallel
    {
        const std::int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        const std::int64_t begin = tasks * me / threads;
        const std::int64_t end = tasks * (me + 1) / threads;
        // This thread's tasks, tile by tile, for some samples.
        const auto add = [&](std::int64_t first_sample, std::int64_t end_sample) {
            for (std::int64_t tile = begin / taps; tile * taps < end; ++tile) {
                const std::int64_t first =
                    std::max<std::int64_t>(begin - tile * taps, 0);
                const std::int64_t last = std::min(end - tile * taps, taps);
                for (std::int64_t n = first_sample; n < end_sample; ++n) {
                    weight_of_taps(p, n, first, last, tile);
                }
            }
        };
        if (large_weights(p)) {
            add(0, p.samples);
        } else {
            for (std::int64_t n = 0; n < p.samples; ++n) add(n, n + 1);
        }
    }
}

template void gated_conv_weight_channels<float>(const GatedConv<float>&);
template void gated_conv_weight_channels<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
