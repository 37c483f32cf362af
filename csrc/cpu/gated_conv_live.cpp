// Gated convolution between live outputs and live inputs, vector lanes over rows.
//
//   pull    u[p', i, r]  = sum_{(t, p) reading p'} sum_{e at p} W[t, c(e), i] g[e, r]
//   push    g[e, r]      = sum_t sum_{i at p'(p, t)} W[t, c(e), i] u[p'(p, t), i, r]
//   weight  dW[t, c, i] += sum_{n, e: c(e) = c} sum_r g[e, r] u[p'(p(e), t), i, r]
//
// for those inputs (p', i) alone that the layer below has alive, half of them where a
// ReLU stands there. With lanes over channels the dead ones would fill vectors in vain.
// It pays for many rows: they have to fill vectors, and in the gradient of W a pair of
// an output and an input ends in a sum over lanes.
//
// A thread owns pixels, or in the gradient of W taps and tiles of input channels.
// Tiles:
//   pull    some inputs of a pixel by up to kVectors vectors of rows; their sums stay
//   in
//           registers over all taps and entries that read the pixel.
//   push    some entries of an output pixel, likewise, over all taps and live inputs.
//   weight  some entries by some inputs, over the vectors of all rows.
// Operations: 2 R for each pair of a live output and a live input that a tap joins.
#include "weight_tasks.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Vectors of rows, and outputs or inputs, of a tile of pull and push.
constexpr int kVectors = kRegisters >= 32 ? 4 : 3;
constexpr int kTogether = kRegisters >= 32 ? 6 : 3;

// Entries and inputs of a tile of the gradient: their sums over lanes are one vector.
constexpr int kEntries = kRegisters >= 32 ? 4 : 3;
constexpr int kInputs = kRegisters >= 32 ? 4 : 3;

// The live input channels of one pixel, and its rows.
template <typename T>
struct LiveInputs {
    const std::int32_t* channels;
    std::int32_t count;
    T* rows;
};

template <typename T>
inline LiveInputs<T> live_inputs(const GatedConv<T>& p, std::int64_t n,
                                 std::int64_t pixel) {
    const std::int64_t pixels = p.in_height * p.in_width;
    const std::int32_t* starts = p.input_starts + n * (pixels + 1) + pixel;
    return {p.input_channels + n * pixels * p.in_channels + starts[0],
            starts[1] - starts[0],
            p.input + (n * pixels + pixel) * p.in_channels * p.input_stride};
}

// Calls body(first, Constant<size>) for parts of nearly equal sizes, `most` at most.
template <int most, typename Body>
inline void in_parts(std::int64_t total, const Body& body) {
    for (std::int64_t first = 0; first < total;) {
        const int size = part_of(total, first, most);
        WithConstant<most>::call(size, [&](auto known) { body(first, known); });
        first += size;
    }
}

// Adds to the sums of a tile the rows at `from` times a weight for each.
template <int K, int KV, typename T>
inline __attribute__((always_inline)) void add_rows(Vector<T> (&sums)[K][KV],
                                                    const T (&weights)[K],
                                                    const T* from) {
    Vector<T> rows[KV];
    FASTJAC_UNROLL
    for (int v = 0; v < KV; ++v) rows[v] = load(from + v * kLanes<T>);
    FASTJAC_UNROLL
    for (int k = 0; k < K; ++k) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) sums[k][v] += weights[k] * rows[v];
    }
}

template <int KI, int KV, typename T>
inline void pull_tile(const GatedConv<T>& p, const Entries<T>& entries, const Run* runs,
                      int run_count, const std::int32_t* channels, std::int64_t lane,
                      T* pixel) {
    Vector<T> sums[KI][KV] = {};
    std::int64_t inputs[KI];
    FASTJAC_UNROLL
    for (int i = 0; i < KI; ++i) inputs[i] = channels[i];
    for (int k = 0; k < run_count; ++k) {
        const T* run_weight = p.weight + runs[k].base * p.weight_stride;
        const std::int32_t end = entries.starts[runs[k].end];
        for (std::int32_t e = entries.starts[runs[k].begin]; e < end; ++e) {
            const T* w = run_weight + entries.offsets[e] * p.weight_stride;
            T weights[KI];
            FASTJAC_UNROLL
            for (int i = 0; i < KI; ++i) weights[i] = w[inputs[i]];
            add_rows(sums, weights, entries.compact + e * p.compact_stride + lane);
        }
    }
    FASTJAC_UNROLL
    for (int i = 0; i < KI; ++i) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            store(pixel + inputs[i] * p.input_stride + lane + v * kLanes<T>,
                  sums[i][v]);
        }
    }
}

template <int KE, int KV, typename T>
inline void push_tile(const GatedConv<T>& p, std::int64_t n,
                      const std::int32_t* channels, const Tap* taps, int tap_count,
                      std::int64_t lane, T* compact) {
    Vector<T> sums[KE][KV] = {};
    const T* weights[KE];
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) weights[e] = p.weight + channels[e] * p.weight_stride;
    for (int t = 0; t < tap_count; ++t) {
        const LiveInputs<T> inputs = live_inputs(p, n, taps[t].pixel);
        const T* w[KE];
        FASTJAC_UNROLL
        for (int e = 0; e < KE; ++e) w[e] = weights[e] + taps[t].weight;
        for (std::int32_t k = 0; k < inputs.count; ++k) {
            const std::int64_t i = inputs.channels[k];
            T weights_of_input[KE];
            FASTJAC_UNROLL
            for (int e = 0; e < KE; ++e) weights_of_input[e] = w[e][i];
            add_rows(sums, weights_of_input, inputs.rows + i * p.input_stride + lane);
        }
    }
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) {
        FASTJAC_UNROLL
        for (int v = 0; v < KV; ++v) {
            store(compact + e * p.compact_stride + lane + v * kLanes<T>, sums[e][v]);
        }
    }
}

// Adds to dW what entries [first, first + KE) and some inputs of a pixel contribute.
template <int KE, int KI, typename T>
inline void weight_tile(const GatedConv<T>& p, const Entries<T>& entries,
                        std::int32_t first, const LiveInputs<T>& inputs,
                        std::int64_t first_input, T* run_gradient) {
    Vector<T> parts[KE * KI] = {};
    const T* g = entries.compact + first * p.compact_stride;
    const T* u[KI];
    FASTJAC_UNROLL
    for (int i = 0; i < KI; ++i) {
        u[i] = inputs.rows + inputs.channels[first_input + i] * p.input_stride;
    }
    for (std::int64_t lane = 0; lane < p.row_count; lane += kLanes<T>) {
        Vector<T> rows[KI];
        FASTJAC_UNROLL
        for (int i = 0; i < KI; ++i) rows[i] = load(u[i] + lane);
        FASTJAC_UNROLL
        for (int e = 0; e < KE; ++e) {
            Vector<T> entry = load(g + e * p.compact_stride + lane);
            keep(entry);
            FASTJAC_UNROLL
            for (int i = 0; i < KI; ++i) parts[e * KI + i] += entry * rows[i];
        }
    }
    T totals[KE * KI];
    sums<KE * KI, 0, T>(parts, totals);
    FASTJAC_UNROLL
    for (int e = 0; e < KE; ++e) {
        T* to = run_gradient + entries.offsets[first + e] * p.weight_stride;
        FASTJAC_UNROLL
        for (int i = 0; i < KI; ++i) {
            to[inputs.channels[first_input + i]] += totals[e * KI + i];
        }
    }
}

// Those of a pixel's live inputs that lie in a tile of channels.
template <typename T>
inline LiveInputs<T> inputs_of_tile(LiveInputs<T> inputs, std::int64_t tile) {
    constexpr std::int64_t kChannels = kTileVectors * kLanes<T>;
    const std::int32_t* begin = inputs.channels;
    const std::int32_t* end = begin + inputs.count;
    while (begin < end && *begin < tile * kChannels) ++begin;
    inputs.channels = begin;
    while (begin < end && *begin < (tile + 1) * kChannels) ++begin;
    inputs.count = static_cast<std::int32_t>(begin - inputs.channels);
    return inputs;
}

}  // namespace

template <typename T>
void gated_conv_pull_live(const GatedConv<T>& p) {
    const std::int64_t pixels = p.in_height * p.in_width,
                       vectors = vectors_of<T>(p.row_count);
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            const LiveInputs<T> inputs = live_inputs(p, n, pixel);
            Run runs[kMostTaps];
            const int count =
                readers_of(p, pixel / p.in_width, pixel % p.in_width, runs);
            const Entries<T> entries = entries_of(p, n);
            in_parts<kVectors>(vectors, [&](std::int64_t v, auto kv) {
                in_parts<kTogether>(inputs.count, [&](std::int64_t i, auto ki) {
                    pull_tile<ki.of, kv.of>(p, entries, runs, count,
                                            inputs.channels + i, v * kLanes<T>,
                                            inputs.rows);
                });
            });
        }
    }
}

template <typename T>
void gated_conv_push_live(const GatedConv<T>& p) {
    const std::int64_t outputs = p.out_channels * p.pooled_pixels;
    const std::int64_t pixels = p.out_height * p.out_width,
                       vectors = vectors_of<T>(p.row_count);
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            const std::int32_t* starts = p.starts + n * (pixels + 1) + pixel;
            const std::int64_t first = n * outputs + starts[0];
            Tap taps[kMostTaps];
            const int count =
                read_by(p, pixel / p.out_width, pixel % p.out_width, taps);
            in_parts<kVectors>(vectors, [&](std::int64_t v, auto kv) {
                in_parts<kTogether>(
                    starts[1] - starts[0], [&](std::int64_t e, auto ke) {
                        push_tile<ke.of, kv.of>(
                            p, n, p.channels + first + e, taps, count, v * kLanes<T>,
                            p.compact + (first + e) * p.compact_stride);
                    });
            });
        }
    }
}

template <typename T>
void gated_conv_weight_live(const GatedConv<T>& p) {
    each_reader(p, [&](const Reader& reader) {
        const LiveInputs<T> inputs =
            inputs_of_tile(live_inputs(p, reader.n, reader.pixel), reader.tile);
        const Entries<T> entries = entries_of(p, reader.n);
        for (int k = 0; k < reader.run_count; ++k) {
            const Run& run = reader.runs[k];
            T* gradient = p.weight_gradient + run.base * p.weight_stride;
            const std::int32_t begin = entries.starts[run.begin];
            const std::int32_t count = entries.starts[run.end] - begin;
            in_parts<kInputs>(inputs.count, [&](std::int64_t i, auto ki) {
                in_parts<kEntries>(count, [&](std::int64_t e, auto ke) {
                    weight_tile<ke.of, ki.of>(p, entries,
                                              begin + static_cast<std::int32_t>(e),
                                              inputs, i, gradient);
                });
            });
        }
    });
}

template void gated_conv_pull_live<float>(const GatedConv<float>&);
template void gated_conv_pull_live<double>(const GatedConv<double>&);
template void gated_conv_push_live<float>(const GatedConv<float>&);
template void gated_conv_push_live<double>(const GatedConv<double>&);
template void gated_conv_weight_live<float>(const GatedConv<float>&);
template void gated_conv_weight_live<double>(const GatedConv<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
