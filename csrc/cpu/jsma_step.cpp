// u = s rows[0], v = -s rows[1], s the sign of theta: a feature is worth changing if
// it moves the target up (u > 0) and the other classes down (v > 0).
//   one pixel:  argmax u_p v_p                     over open p with u_p > 0, v_p > 0
//   two pixels: argmax (u_p + u_q) (v_p + v_q)     over open p < q with both sums > 0
// The first wins a tie. Then x += theta there, clamped; a feature at its bound closes.
//
// Pairs without a D x D search: where both sums are positive the score grows with u and
// with v of either feature. So if a pair is the best, at most one other feature (its
// partner) can be at least as large in u and in v as either of its members. One pass
// keeps the features that fewer than two others dominate, a few dozen of thousands, and
// only their pairs are compared. At worst all stay, and the search is quadratic in
// time, never in memory.
//
// A thread owns whole samples. `strong` holds 2 * feature + (1 if dominated once).
// Bytes: N 2 D elements and N D flags read. Operations: about 2 N D comparisons.
#include "jsma_step.h"

#include <algorithm>

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

template <typename T>
struct Saliency {
    const T* target;
    const T* others;
    bool increasing;

    T u(std::int64_t i) const { return increasing ? target[i] : -target[i]; }
    T v(std::int64_t i) const { return increasing ? -others[i] : others[i]; }
};

template <typename T>
std::int64_t best_pixel(const Saliency<T>& map, const bool* open, std::int64_t length) {
    std::int64_t best = -1;
    T score = 0;
    for (std::int64_t i = 0; i < length; ++i) {
        const T u = map.u(i), v = map.v(i);
        if (open[i] && u > 0 && v > 0 && u * v > score) {
            score = u * v;
            best = i;
        }
    }
    return best;
}

// Lists in `strong` the open features that fewer than two open ones dominate: are at
// least as large in u and v, and larger in one or earlier. Returns how many.
template <typename T>
std::int64_t strong_features(const Saliency<T>& map, const bool* open,
                             std::int64_t length, std::int64_t* strong) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < length; ++i) {
        if (!open[i]) continue;
        const T u = map.u(i), v = map.v(i);
        std::int64_t over = 0;
        for (std::int64_t j = 0; j < kept && over < 2; ++j) {
            const std::int64_t other = strong[j] >> 1;
            if (map.u(other) >= u && map.v(other) >= v) {
                ++over;
                // Towards the front: what dominates much is asked first.
                if (j > 0) std::swap(strong[j], strong[j / 2]);
            }
        }
        if (over == 2) continue;
        std::int64_t left = 0;
        for (std::int64_t j = 0; j < kept; ++j) {
            const std::int64_t other = strong[j] >> 1;
            const T ou = map.u(other), ov = map.v(other);
            const bool under = u >= ou && v >= ov && (u > ou || v > ov);
            if (under && (strong[j] & 1)) continue;
            strong[left++] = strong[j] | static_cast<std::int64_t>(under);
        }
        strong[left++] = 2 * i + over;
        kept = left;
    }
    std::sort(strong, strong + kept);
    return kept;
}

template <typename T>
void best_pair(const Saliency<T>& map, const std::int64_t* strong, std::int64_t kept,
               std::int64_t* chosen) {
    T score = 0;
    for (std::int64_t i = 0; i < kept; ++i) {
        const std::int64_t p = strong[i] >> 1;
        const T up = map.u(p), vp = map.v(p);
        for (std::int64_t j = i + 1; j < kept; ++j) {
            const std::int64_t q = strong[j] >> 1;
            const T u = up + map.u(q), v = vp + map.v(q);
            if (u > 0 && v > 0 && u * v > score) {
                score = u * v;
                chosen[0] = p;
                chosen[1] = q;
            }
        }
    }
}

template <typename T>
void step_one(const JsmaStep<T>& p, std::int64_t n) {
    const std::int64_t length = p.row_length;
    const T* rows = p.rows + n * 2 * length;
    const Saliency<T> map{rows, rows + length, p.theta > 0};
    T* x = p.x + n * length;
    bool* open = p.open + n * length;
    std::int64_t* chosen = p.chosen + n * p.pixels;
    std::fill(chosen, chosen + p.pixels, std::int64_t{-1});

    if (p.pixels == 1) {
        chosen[0] = best_pixel(map, open, length);
    } else {
        std::int64_t* strong = p.strong + n * length;
        best_pair(map, strong, strong_features(map, open, length, strong), chosen);
    }
    if (chosen[0] < 0) return;

    // Change the chosen features and close those that have arrived at their bound.
    const T low = static_cast<T>(p.low), high = static_cast<T>(p.high);
    for (std::int64_t i = 0; i < p.pixels; ++i) {
        T& value = x[chosen[i]];
        value = std::min(std::max(value + static_cast<T>(p.theta), low), high);
        open[chosen[i]] = map.increasing ? value < high : value > low;
    }
}

}  // namespace

template <typename T>
void jsma_step(const JsmaStep<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) step_one(p, n);
}

template void jsma_step<float>(const JsmaStep<float>&);
template void jsma_step<double>(const JsmaStep<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
