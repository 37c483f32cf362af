// values[m, y, x] = max input[m, 2y + a, 2x + b],  places = argmax, over a, b in {0, 1}
//
// A thread owns whole planes. Outputs of a line are formed kOutputs at a time without a
// branch; the last of a line begin so early that they are as many, and write some of
// the line twice. A line too short for that takes half as many at a time.
// Bytes: the input once, 8 + sizeof(T) written an output. torch's own kernel compares
// one element at a time, about twenty times as slow.
#include "max_pool.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

constexpr int kOutputs = 16;

// One line of outputs from two of the input.
template <typename T>
struct Lines {
    const T* upper;
    const T* lower;
    std::int32_t width;
    std::int64_t place;  // of the first element of `upper` in the plane
    T* values;
    std::int64_t* places;
};

template <typename T>
inline void challenge(T value, std::int32_t at, T& best, std::int32_t& place) {
    const bool wins = (value > best) | (value != value);
    best = wins ? value : best;
    place = wins ? at : place;
}

// The outputs [first, first + count).
template <int count, typename T>
inline void pool_outputs(const Lines<T>& lines, std::int64_t first) {
    const T* upper = lines.upper + 2 * first;
    const T* lower = lines.lower + 2 * first;
    T best[count];
    std::int32_t place[count];
    for (int i = 0; i < count; ++i) {
        best[i] = upper[2 * i];
        place[i] = 0;
        challenge(upper[2 * i + 1], 1, best[i], place[i]);
        challenge(lower[2 * i], lines.width, best[i], place[i]);
        challenge(lower[2 * i + 1], lines.width + 1, best[i], place[i]);
    }
    for (int i = 0; i < count; ++i) {
        lines.values[first + i] = best[i];
        lines.places[first + i] = lines.place + 2 * (first + i) + place[i];
    }
}

template <int together, typename T>
inline void pool_line(const Lines<T>& lines, std::int64_t count) {
    if constexpr (together > 1) {
        if (count < together) return pool_line<together / 2>(lines, count);
    }
    for (std::int64_t first = 0; first < count; first += together) {
        const std::int64_t last = count - together;
        pool_outputs<together>(lines, first < last ? first : last);
    }
}

}  // namespace

template <typename T>
void max_pool(const MaxPool<T>& p) {
    const std::int64_t lines = p.height / 2, columns = p.width / 2;
#pragma omp parallel for schedule(static)
    for (std::int64_t m = 0; m < p.planes; ++m) {
        const T* plane = p.input + m * p.height * p.width;
        for (std::int64_t y = 0; y < lines; ++y) {
            const std::int64_t from = 2 * y * p.width, to = (m * lines + y) * columns;
            pool_line<kOutputs, T>({plane + from, plane + from + p.width,
                                    static_cast<std::int32_t>(p.width), from,
                                    p.values + to, p.places + to},
                                   columns);
        }
    }
}

template void max_pool<float>(const MaxPool<float>&);
template void max_pool<double>(const MaxPool<double>&);

}  // namespace FASTJAC_ISA
}  // namespace fastjac
