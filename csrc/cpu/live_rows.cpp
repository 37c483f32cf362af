// A thread owns whole samples or, where those are fewer than threads, some rows of a
// sample. An entry of R rows is read from and written to R places that lie `stride_row`
// apart, kMoved rows at a time without a loop over them, or by vectors where they lie
// together. Bytes: each element once read and once written; the bias adds one
// multiply-add an element. A bias's gradient adds an addition: rows are added up over a
// channel's entries, in L2, before they are multiplied.
#include "live_rows.h"

#include <omp.h>

#include <algorithm>

#include "bias_gradient.h"
#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Rows that are moved together, without a loop.
constexpr int kMoved = 16;

// Among how many threads the rows of each sample are divided.
template <typename T>
std::int64_t parts_of_samples(const LiveRows<T>& p) {
    const std::int64_t groups = (p.row_count + kMoved - 1) / kMoved;
    const std::int64_t threads = omp_get_max_threads();
    return p.samples < threads ? std::min(groups, threads) : 1;
}

// Calls body(share) for all rows of all samples, in parallel.
template <typename T, typename Body>
void each_share(const LiveRows<T>& p, std::int64_t parts, const Body& body) {
    const std::int64_t groups = (p.row_count + kMoved - 1) / kMoved;
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        for (std::int64_t part = 0; part < parts; ++part) {
            const std::int64_t begin = groups * part / parts * kMoved;
            const std::int64_t end = groups * (part + 1) / parts * kMoved;
            body(Share{n, begin, std::min(end, p.row_count), n * parts + part});
        }
    }
}

// Calls visit(Constant<rows>, rows, compact, factor, channel, first) for each entry of
// a share and each group of up to kMoved rows of it, the first of which is `first`.
template <typename T, typename Visit>
void each_entry(const LiveRows<T>& p, const Share& share, const Visit& visit) {
    const std::int64_t n = share.n, outputs = p.channel_count * p.pooled_pixels;
    const std::int32_t count = p.starts[n * (p.pixels + 1) + p.pixels];
    for (std::int64_t first = share.begin; first < share.end; first += kMoved) {
        const std::int64_t left = share.end - first;
        WithConstant<kMoved>::call(
            static_cast<int>(left < kMoved ? left : kMoved), [&](auto rows) {
                T* sample = p.rows + n * p.stride_sample + first * p.stride_row;
                for (std::int64_t e = n * outputs; e < n * outputs + count; ++e) {
                    visit(rows,
                          sample + p.channels[e] * p.stride_channel +
                              p.sources[e] * p.stride_pixel,
                          p.compact + e * p.row_stride + first, p.factors[e],
                          p.channels[e], first);
                }
            });
    }
}

// Calls visit(rows, compact, factor, channel) for each entry of sample n, with its row
// 0.
template <typename T, typename Visit>
void each_entry_together(const LiveRows<T>& p, std::int64_t n, const Visit& visit) {
    const std::int64_t outputs = p.channel_count * p.pooled_pixels;
    const std::int32_t count = p.starts[n * (p.pixels + 1) + p.pixels];
    T* sample = p.rows + n * p.stride_sample;
    for (std::int64_t e = n * outputs; e < n * outputs + count; ++e) {
        visit(sample + p.channels[e] * p.stride_channel + p.sources[e] * p.stride_pixel,
              p.compact + e * p.row_stride, p.factors[e], p.channels[e]);
    }
}

// Zeros in all of a sample's rows: one block where pixels come first, else R blocks.
template <typename T>
void clear_rows(const LiveRows<T>& p, std::int64_t n) {
    const std::int64_t blocks = p.stride_row < p.stride_sample ? 1 : p.row_count;
    for (std::int64_t r = 0; r < blocks; ++r) {
        T* block = p.rows + n * p.stride_sample + r * p.stride_row;
        std::fill(block, block + p.stride_sample, T(0));
    }
}

// Copies KR rows of one entry, and zeros behind them up to `padded`; adds them to the
// sums of its channel unless `sums` is null.
template <int KR, typename T>
inline void gather_entry(const LiveRows<T>& p, const T* rows, T factor,
                         std::int64_t padded, T* compact, T* sums) {
    if constexpr (KR <= kLanes<T>) {
        if (padded == kLanes<T>) {  // one vector in all
            Vector<T> lanes{};
            FASTJAC_UNROLL
            for (int r = 0; r < KR; ++r) lanes[r] = rows[r * p.stride_row];
            lanes *= factor;
            store(compact, lanes);
            if (sums != nullptr) store(sums, load(sums) + lanes);
            return;
        }
    }
    for (std::int64_t lane = 0; lane < padded; lane += kLanes<T>) {
        store(compact + lane, Vector<T>{});
    }
    T moved[KR];  // all read before any is written, so that they can be vectors
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) moved[r] = factor * rows[r * p.stride_row];
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) compact[r] = moved[r];
    if (sums == nullptr) return;
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) moved[r] += sums[r];
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) sums[r] = moved[r];
}

// Gathers rows that lie together, and adds them to `sums` (C, stride) unless it is
// null.
template <typename T>
void gather_together(const LiveRows<T>& p, const Share& share, T* sums,
                     std::int64_t stride) {
    const std::int64_t stop = share.end == p.row_count ? p.row_stride : share.end;
    each_entry_together(
        p, share.n, [&](const T* rows, T* compact, T factor, std::int32_t channel) {
            T* total = sums == nullptr ? nullptr : sums + channel * stride;
            std::int64_t r = share.begin;
            for (; r + kLanes<T> <= share.end; r += kLanes<T>) {
                const Vector<T> lanes = factor * load(rows + r);
                store(compact + r, lanes);
                if (total != nullptr) store(total + r, load(total + r) + lanes);
            }
            for (; r < share.end; ++r) {
                compact[r] = factor * rows[r];
                if (total != nullptr) total[r] += compact[r];
            }
            for (; r < stop; ++r) compact[r] = 0;
        });
}

// Scatters to rows that lie together, those of live entries alone.
template <typename T>
void scatter_together(const LiveRows<T>& p, const Share& share) {
    const std::int64_t stop = share.end == p.row_count ? p.stride_channel : share.end;
    const T* ones = p.bias == nullptr ? nullptr : p.ones + share.n * p.row_count;
    each_entry_together(
        p, share.n, [&](T* rows, const T* compact, T factor, std::int32_t channel) {
            const T bias = ones == nullptr ? T(0) : p.bias[channel];
            std::int64_t r = share.begin;
            for (; r + kLanes<T> <= share.end; r += kLanes<T>) {
                Vector<T> lanes = load(compact + r);
                if (ones != nullptr) lanes += bias * load(ones + r);
                store(rows + r, factor * lanes);
            }
            for (; r < share.end; ++r) {
                const T lifted = ones == nullptr ? T(0) : bias * ones[r];
                rows[r] = factor * (compact[r] + lifted);
            }
            for (; r < stop; ++r) rows[r] = 0;
        });
}

}  // namespace

template <typename T>
void gather_live(const LiveRows<T>& p) {
    // Entries that are padded to whole vectors: how far those of the last rows reach.
    const std::int64_t last = (p.row_count - 1) / kMoved * kMoved;
    const std::int64_t end = p.row_stride == p.row_count ? 0 : p.row_stride - last;
    const std::int64_t parts = parts_of_samples(p);
    BiasGradient<T> gradient(p, parts);
    const std::int64_t stride = gradient.stride();
    each_share(p, parts, [&](const Share& share) {
        T* sums = gradient.open();
        if (p.stride_row == 1) {
            gather_together(p, share, sums, stride);
        } else {
            each_entry(p, share,
                       [&](auto rows, const T* from, T* compact, T factor,
                           std::int32_t channel, std::int64_t first) {
                           const std::int64_t padded = rows.of == kMoved ? 0 : end;
                           T* to = sums == nullptr ? nullptr
                                                   : sums + channel * stride + first;
                           gather_entry<rows.of>(p, from, factor, padded, compact, to);
                       });
        }
        gradient.close(share);
    });
    gradient.write();
}

template <typename T>
void scatter_live(const LiveRows<T>& p) {
    const std::int64_t parts = parts_of_samples(p);
    if (p.live_only) {
        each_share(p, parts, [&](const Share& share) { scatter_together(p, share); });
        return;
    }
    for (std::int64_t n = 0; n < p.samples && parts > 1; ++n) clear_rows(p, n);
    each_share(p, parts, [&](const Share& share) {
        if (parts == 1) clear_rows(p, share.n);
        if (p.bias == nullptr) {
            each_entry(p, share,
                       [&](auto rows, T* to, const T* compact, T factor, auto...) {
                           FASTJAC_UNROLL
                           for (int r = 0; r < rows.of; ++r)
                               to[r * p.stride_row] += factor * compact[r];
                       });
            return;
        }
        each_entry(p, share,
                   [&](auto rows, T* to, const T* compact, T factor,
                       std::int32_t channel, std::int64_t first) {
                       const T* ones = p.ones + share.n * p.row_count + first;
                       const T bias = p.bias[channel];
                       T lifted[rows.of];
                       FASTJAC_UNROLL
                       for (int r = 0; r < rows.of; ++r)
                           lifted[r] = factor * (compact[r] + bias * ones[r]);
                       FASTJAC_UNROLL
                       for (int r = 0; r < rows.of; ++r)
                           to[r * p.stride_row] += lifted[r];
                   });
    });
}

template void gather_live<float>(const LiveRows<float>&);
template void gather_live<double>(const LiveRows<double>&);
template void scatter_live<float>(const LiveRows<float>&);
template void scatter_live<double>(const LiveRows<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
