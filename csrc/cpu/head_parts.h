// The gradient with respect to B, from the partial sums of the parts.
#pragma once

#include "gated_head.h"

namespace fastjac {
namespace FASTJAC_ISA {

// Adds the partial sums in a fixed order. To be called by all threads of a team.
template <typename T>
inline void add_parts(const GatedHead<T>& p) {
    const std::int64_t size = p.units * p.row_count;
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < size; ++i) {
        T total = p.row_gradient[i];
        for (std::int64_t part = 0; part < kHeadParts; ++part) {
            total += p.partials[part * size + i];
        }
        p.row_gradient[i] = total;
    }
}

}  // namespace FASTJAC_ISA
}  // namespace fastjac
