// A thread owns parts, ranges of input channels. For a tile of one vector of channels
// and up to kRows rows, M of a hidden unit stays in registers: it is summed over the
// unit's live samples and then used at once for both gradients.
// Operations: 2 R I an entry of the live list, and 4 R I a unit for the two gradients.
#include "gated_head.h"

#include "head_parts.h"
#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

constexpr int kRows = 12;

// Bytes of the panel, one vector of a tile's rows for all samples, that stay in L1.
constexpr std::int64_t kPanelBytes = 24 * 1024;

// Rows of a tile: as many as registers hold and L1 holds for all samples.
template <typename T>
inline int tile_rows(const GatedHead<T>& p, std::int64_t first) {
    const std::int64_t fit = kPanelBytes / (p.sample_count * kVectorBytes);
    const std::int64_t most = fit < 4 ? 4 : (fit > kRows ? kRows : fit);
    const std::int64_t tiles = (p.row_count + most - 1) / most;
    const std::int64_t size = (p.row_count + tiles - 1) / tiles;
    return static_cast<int>(p.row_count - first < size ? p.row_count - first : size);
}

// Copies one vector of every row of every sample into one place. In `input` they lie
// whole rows apart, each on a page of its own and many in one set of the cache.
template <typename T>
void gather_panel(const GatedHead<T>& p, std::int64_t lane, T* panel) {
    for (std::int64_t row = 0; row < p.sample_count * p.row_count; ++row) {
        store(panel + row * kLanes<T>, load(p.input + row * p.input_stride + lane));
    }
}

template <int KR, typename T>
void unit(const GatedHead<T>& p, std::int64_t j, std::int64_t first_row,
          std::int64_t lane, const T* panel, T* row_gradient) {
    Vector<T> sums_of_rows[KR] = {};
    const std::int64_t sample = p.row_count * kLanes<T>;
    for (std::int32_t e = p.starts[j]; e < p.starts[j + 1]; ++e) {
        const T* rows = panel + p.samples[e] * sample + first_row * kLanes<T>;
        const T gate = p.factors[e];
        FASTJAC_UNROLL
        for (int r = 0; r < KR; ++r) {
            sums_of_rows[r] += gate * load(rows + r * kLanes<T>);
        }
    }
    T* to = p.weight_gradient + j * p.stride + lane;
    const T* b = p.rows + j * p.row_count + first_row;
    const Vector<T> weight = load(p.weight + j * p.stride + lane);
    Vector<T> gradient = load(to);
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) {
        gradient += b[r] * sums_of_rows[r];
        sums_of_rows[r] *= weight;
    }
    store(to, gradient);
    T totals[KR];
    sums<KR, 0, T>(sums_of_rows, totals);
    FASTJAC_UNROLL
    for (int r = 0; r < KR; ++r) row_gradient[first_row + r] += totals[r];
}

}  // namespace

template <typename T>
void gated_head(const GatedHead<T>& p) {
    const std::int64_t vectors = vectors_of<T>(p.in_channels);
    const std::int64_t size = p.units * p.row_count;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (std::int64_t part = 0; part < kHeadParts; ++part) {
            T* partial = p.partials + part * size;
            T* panel = p.panels +
                       part * head_panel(false, p.sample_count, p.row_count, p.units);
            const std::int64_t end = (part + 1) * vectors / kHeadParts;
            for (std::int64_t v = part * vectors / kHeadParts; v < end; ++v) {
                gather_panel(p, v * kLanes<T>, panel);
                for (std::int64_t r = 0; r < p.row_count;) {
                    const int rows = tile_rows(p, r);
                    WithConstant<kRows>::call(rows, [&](auto kr) {
                        for (std::int64_t j = 0; j < p.units; ++j) {
                            if (p.starts[j] == p.starts[j + 1]) continue;
                            unit<kr.of>(p, j, r, v * kLanes<T>, panel,
                                        partial + j * p.row_count);
                        }
                    });
                    r += rows;
                }
            }
        }
        add_parts(p);
    }
}

template void gated_head<float>(const GatedHead<float>&);
template void gated_head<double>(const GatedHead<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
