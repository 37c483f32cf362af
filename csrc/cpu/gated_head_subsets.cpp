// The same two gradients where the gates are 0 or 1 and many are open ("four
// Russians"). Samples are taken four at a time: the sixteen sums that subsets of their
// tangents have are formed once and serve all hidden units, so a unit adds one of them
// for four samples instead of one vector for each sample that is live.
//
// A thread owns parts, ranges of input channels. For one vector of channels and one row
// the subset sums of a block of samples stay in L1, and kUnits units add up at once, to
// hide the latency of an addition. W and dW of that vector are copied together first:
// in place their rows lie apart, many in one set of the cache.
// Operations: R I / 4 additions a unit and sample, 11 R I / 4 a sample for the subsets,
// and 4 R I a unit and block for the two gradients.
#include "gated_head.h"
#include "head_parts.h"
#include "simd.h"

#include <cstddef>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

constexpr int kGroup = kHeadGroup;                // samples whose subsets are formed
constexpr int kSubsets = 1 << kGroup;             // of one group
constexpr int kUnits = 4;                         // that add up at once
constexpr std::int64_t kMostGroups = kHeadBlock;  // in a block: 24 kB of sums

// What a part works with; see GatedHead::panels.
template <typename T>
struct Panels {
    T* subsets;   // (kMostGroups, kSubsets, lanes)
    T* weight;    // (H, lanes)
    T* gradient;  // (H, lanes)
};

template <typename T>
inline Panels<T> panels_of(const GatedHead<T>& p, std::int64_t part) {
    const std::int64_t subsets = kMostGroups * kSubsets * kHeadLanes;
    T* at = p.panels + part * head_panel(true, p.sample_count, p.row_count, p.units);
    return {at, at + subsets, at + subsets + p.units * kHeadLanes};
}

// Which samples of each group are live at unit j, as the place of their subset's sum.
template <typename T>
void find_members(const GatedHead<T>& p, std::int64_t j, std::int64_t groups) {
    for (std::int64_t g = 0; g < groups; ++g) {
        unsigned members = 0;
        for (int s = 0; s < kGroup; ++s) {
            const std::int64_t n = g * kGroup + s;
            if (n < p.sample_count && p.gate[n * p.units + j] > 0) members |= 1u << s;
        }
        p.members[j * groups + g] = static_cast<unsigned char>(members * kLanes<T>);
    }
}

// The sums of all subsets of one row of up to four samples from n on.
template <typename T>
void form_subsets(const GatedHead<T>& p, std::int64_t n, std::int64_t row,
                  std::int64_t lane, T* subsets) {
    store(subsets, Vector<T>{});
    FASTJAC_UNROLL
    for (int s = 0; s < kGroup; ++s) {
        Vector<T> tangent{};
        if (n + s < p.sample_count) {
            tangent =
                load(p.input + ((n + s) * p.row_count + row) * p.input_stride + lane);
        }
        FASTJAC_UNROLL
        for (int below = 0; below < (1 << s); ++below) {
            store(subsets + ((1 << s) + below) * kLanes<T>,
                  load(subsets + below * kLanes<T>) + tangent);
        }
    }
}

// What add_units works on: arrays at the first of its units.
template <typename T>
struct Units {
    const unsigned char* members;
    const T* rows;
    const T* weight;
    T* gradient;
    T* row_gradient;
};

// Adds what one row of a block of samples gives to the gradients of KU units.
template <int KU, typename T>
inline void add_units(const Units<T>& at, const T* subsets, std::int64_t groups,
                      std::int64_t count) {
    Vector<T> m[KU] = {};
    const unsigned char* members = at.members;
    for (std::int64_t g = 0; g < count; ++g) {
        FASTJAC_UNROLL
        for (int u = 0; u < KU; ++u) {
            m[u] += load(subsets + std::size_t{members[u * groups]});
        }
        ++members;
        subsets += kSubsets * kLanes<T>;
    }
    const Units<T> to = at;  // so that stores below are known to leave it alone
    FASTJAC_UNROLL
    for (int u = 0; u < KU; ++u) {
        T* gradient = to.gradient + u * kLanes<T>;
        store(gradient, load(gradient) + to.rows[u] * m[u]);
    }
    T totals[KU];
    FASTJAC_UNROLL
    for (int u = 0; u < KU; ++u) m[u] *= load(to.weight + u * kLanes<T>);
    sums<KU, 0, T>(m, totals);
    FASTJAC_UNROLL
    for (int u = 0; u < KU; ++u) to.row_gradient[u] += totals[u];
}

// Adds one vector of channels to the gradients.
template <typename T>
void add_channels(const GatedHead<T>& p, const Panels<T>& panels, std::int64_t lane,
                  std::int64_t groups, T* partial) {
    for (std::int64_t j = 0; j < p.units; ++j) {
        store(panels.weight + j * kLanes<T>, load(p.weight + j * p.stride + lane));
        store(panels.gradient + j * kLanes<T>, Vector<T>{});
    }
    for (std::int64_t first = 0; first < groups; first += kMostGroups) {
        const std::int64_t left = groups - first;
        const std::int64_t count = left < kMostGroups ? left : kMostGroups;
        for (std::int64_t row = 0; row < p.row_count; ++row) {
            for (std::int64_t g = 0; g < count; ++g) {
                form_subsets(p, (first + g) * kGroup, row, lane,
                             panels.subsets + g * kSubsets * kLanes<T>);
            }
            for (std::int64_t j = 0; j < p.units;) {
                const Units<T> at = {
                    p.members + j * groups + first, p.rows + row * p.units + j,
                    panels.weight + j * kLanes<T>, panels.gradient + j * kLanes<T>,
                    partial + row * p.units + j};
                if (j + kUnits <= p.units) {
                    add_units<kUnits>(at, panels.subsets, groups, count);
                    j += kUnits;
                } else {
                    add_units<1>(at, panels.subsets, groups, count);
                    j += 1;
                }
            }
        }
    }
    for (std::int64_t j = 0; j < p.units; ++j) {
        T* gradient = p.weight_gradient + j * p.stride + lane;
        store(gradient, load(gradient) + load(panels.gradient + j * kLanes<T>));
    }
}

}  // namespace

template <typename T>
void gated_head_subsets(const GatedHead<T>& p) {
    const std::int64_t vectors = vectors_of<T>(p.in_channels);
    const std::int64_t size = p.units * p.row_count;
    const std::int64_t groups = (p.sample_count + kGroup - 1) / kGroup;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (std::int64_t j = 0; j < p.units; ++j) find_members(p, j, groups);
#pragma omp for schedule(static)
        for (std::int64_t part = 0; part < kHeadParts; ++part) {
            const Panels<T> panels = panels_of(p, part);
            const std::int64_t end = (part + 1) * vectors / kHeadParts;
            for (std::int64_t v = part * vectors / kHeadParts; v < end; ++v) {
                add_channels(p, panels, v * kLanes<T>, groups,
                             p.partials + part * size);
            }
        }
        add_parts(p);
    }
}

template void gated_head_subsets<float>(const GatedHead<float>&);
template void gated_head_subsets<double>(const GatedHead<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
