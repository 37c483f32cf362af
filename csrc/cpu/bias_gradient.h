// The gradient of a bias from the rows of live entries, as they are gathered.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "live_rows.h"
#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {

// Rows [begin, end) of sample n, and the share's place among all.
struct Share {
    std::int64_t n, begin, end, place;
};

// Rows added up over a channel's entries by the thread that gathers a share; then a
// number for each share and channel; then the sum over shares.
template <typename T>
class BiasGradient {
  public:
    BiasGradient(const LiveRows<T>& p, std::int64_t parts)
        : p_(p),
          wanted_(p.bias_gradient != nullptr),
          stride_(vectors_of<T>(p.row_count) * kLanes<T>),
          shares_(p.samples * parts),
          rows_(wanted_ ? omp_get_max_threads() * room() : 0),
          totals_(wanted_ ? shares_ * p.channel_count : 0) {}

    // Elements from the sums of one channel to those of the next.
    std::int64_t stride() const { return stride_; }

    // Zeros, (C, stride), for the calling thread to add its share's rows to, or null.
    T* open() {
        if (!wanted_) return nullptr;
        T* rows = of_thread();
        std::fill(rows, rows + room(), T(0));
        return rows;
    }

    // Multiplies what was added since `open` with the ones of the share.
    void close(const Share& share) {
        if (!wanted_) return;
        const T* rows = of_thread();
        T* ones = of_thread() + p_.channel_count * stride_;
        std::copy_n(p_.ones + share.n * p_.row_count, p_.row_count, ones);
        T* totals = totals_.data() + share.place * p_.channel_count;
        constexpr int kTogether = 8;
        for (std::int64_t c = 0; c < p_.channel_count; c += kTogether) {
            const std::int64_t left = p_.channel_count - c;
            WithConstant<kTogether>::call(
                static_cast<int>(left < kTogether ? left : kTogether), [&](auto kc) {
                    Vector<T> products[kc.of] = {};
                    for (std::int64_t r = 0; r < stride_; r += kLanes<T>) {
                        FASTJAC_UNROLL
                        for (int i = 0; i < kc.of; ++i) {
                            products[i] +=
                                load(rows + (c + i) * stride_ + r) * load(ones + r);
                        }
                    }
                    sums<kc.of, 0, T>(products, totals + c);
                });
        }
    }

    // Writes the sum over all shares, one after the other whoever gathered them.
    void write() const {
        if (!wanted_) return;
        std::fill_n(p_.bias_gradient, p_.channel_count, T(0));
        for (std::int64_t share = 0; share < shares_; ++share) {
            const T* totals = totals_.data() + share * p_.channel_count;
            for (std::int64_t c = 0; c < p_.channel_count; ++c) {
                p_.bias_gradient[c] += totals[c];
            }
        }
    }

  private:
    // Elements of a thread: the sums of all channels, and the ones of a share.
    std::int64_t room() const { return (p_.channel_count + 1) * stride_; }

    T* of_thread() { return rows_.data() + omp_get_thread_num() * room(); }

    const LiveRows<T>& p_;
    const bool wanted_;
    const std::int64_t stride_, shares_;
    std::vector<T> rows_, totals_;
};

}  // namespace FASTJAC_ISA
}  // namespace fastjac
