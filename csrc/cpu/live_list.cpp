// A thread owns whole samples: it counts the live entries of each pixel, turns counts
// into starts, and places the entries channel by channel, which sorts them.
// Bytes: gates and routes read twice, 12 to 16 bytes written an entry.
#include "live_list.h"

#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// The factor of pooled output i = (c, q) of a sample, and in `pixel` where it came
// from.
template <typename T>
T factor_of(const LiveList<T>& p, std::int64_t n, std::int64_t i, std::int64_t& pixel) {
    const std::int64_t channel = i / p.pooled_pixels;
    const std::int64_t pooled = n * p.channel_count * p.pooled_pixels + i;
    pixel = p.route == nullptr ? i % p.pooled_pixels : p.route[pooled];
    T factor = 1;
    if (p.gate != nullptr) {
        const T gate = p.gate[(n * p.channel_count + channel) * p.pixels + pixel];
        factor = p.step ? T(gate > 0) : gate;
    }
    if (p.pooled_gate != nullptr) {
        const T gate = p.pooled_gate[pooled];
        factor *= p.pooled_step ? T(gate > 0) : gate;
    }
    return factor;
}

template <typename T>
void list_sample(const LiveList<T>& p, std::int64_t n) {
    const std::int64_t outputs = p.channel_count * p.pooled_pixels;
    std::int32_t* starts = p.starts + n * (p.pixels + 1);
    std::int32_t* channels = p.channels + n * outputs;
    std::int32_t* sources = p.sources + n * outputs;
    std::int32_t* positions = p.positions + n * outputs;
    std::int32_t* offsets = p.offsets + n * outputs;
    T* factors = p.factors + n * outputs;

    // Count, in starts[pixel + 1].
    for (std::int64_t pixel = 0; pixel <= p.pixels; ++pixel) starts[pixel] = 0;
    for (std::int64_t i = 0; i < outputs; ++i) {
        std::int64_t pixel;
        const bool live = factor_of(p, n, i, pixel) != 0;
        positions[i] = live ? 0 : -1;
        starts[pixel + 1] += live;
    }
    // Sum up: now starts[pixel + 1] is where the entries of `pixel` begin, shifted by
    // one so that placing them below advances it to where they end.
    std::int32_t total = 0;
    for (std::int64_t pixel = 0; pixel < p.pixels; ++pixel) {
        const std::int32_t count = starts[pixel + 1];
        starts[pixel + 1] = total;
        total += count;
    }
    // Place.
    for (std::int64_t i = 0; i < outputs; ++i) {
        if (positions[i] < 0) continue;
        std::int64_t pixel;
        const T factor = factor_of(p, n, i, pixel);
        const std::int32_t entry = starts[pixel + 1]++;
        channels[entry] = static_cast<std::int32_t>(i / p.pooled_pixels);
        sources[entry] = static_cast<std::int32_t>(i % p.pooled_pixels);
        factors[entry] = factor;
        offsets[entry] = static_cast<std::int32_t>(i / p.pooled_pixels -
                                                   pixel % p.width * p.column_step);
        positions[i] = entry;
    }
}

// Calls visit(entry, address in rows, address in compact, factor) for a sample.
template <typename T, typename Visit>
void each_entry(const LiveRows<T>& p, std::int64_t n, const Visit& visit) {
    const std::int64_t outputs = p.channel_count * p.pooled_pixels;
    const std::int32_t count = p.starts[n * (p.pixels + 1) + p.pixels];
    for (std::int64_t e = n * outputs; e < n * outputs + count; ++e) {
        visit(p.rows + n * p.stride_sample + p.channels[e] * p.stride_channel +
                  p.sources[e] * p.stride_pixel,
              p.compact + e * p.row_stride, p.factors[e]);
    }
}

}  // namespace

template <typename T>
void live_list(const LiveList<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) list_sample(p, n);
}

template <typename T>
void gather_live(const LiveRows<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        each_entry(p, n, [&](const T* rows, T* compact, T factor) {
            for (std::int64_t r = 0; r < p.row_count; ++r) {
                compact[r] = factor * rows[r * p.stride_row];
            }
            for (std::int64_t r = p.row_count; r < p.row_stride; ++r) compact[r] = 0;
        });
    }
}

template <typename T>
void scatter_live(const LiveRows<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        each_entry(p, n, [&](T* rows, const T* compact, T factor) {
            for (std::int64_t r = 0; r < p.row_count; ++r) {
                rows[r * p.stride_row] = factor * compact[r];
            }
        });
    }
}

template void live_list<float>(const LiveList<float>&);
template void live_list<double>(const LiveList<double>&);
template void gather_live<float>(const LiveRows<float>&);
template void gather_live<double>(const LiveRows<double>&);
template void scatter_live<float>(const LiveRows<float>&);
template void scatter_live<double>(const LiveRows<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
