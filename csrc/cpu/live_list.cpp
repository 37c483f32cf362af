// A thread owns whole samples. Without a pool it goes pixel by pixel and appends the
// live channels of each. Behind a pool the winners of a channel lie anywhere, so it
// counts the live entries of each pixel, turns counts into starts, and places the
// entries channel by channel, which sorts them. Bytes: gates once, or gates and routes
// twice; 12 to 20 bytes written an entry.
#include "live_list.h"

#include <algorithm>

#include "simd.h"

namespace fastjac {
namespace FASTJAC_ISA {
namespace {

// Pixels whose gates are read together, channel by channel.
template <typename T>
inline std::int64_t pixels_together(const LiveList<T>& p) {
    return p.pixels < kListPixels ? p.pixels : kListPixels;
}

template <typename T>
inline T opened(const T* gate, std::int64_t at, bool step) {
    if (gate == nullptr) return 1;
    return step ? T(gate[at] > 0) : gate[at];
}

// Sets `open` to 0 where a gate lets nothing through.
template <typename T>
inline void close_where_shut(const T* gate, bool step, std::int64_t count,
                             unsigned char* open) {
    if (gate == nullptr) return;
    if (step) {
        for (std::int64_t j = 0; j < count; ++j) open[j] &= gate[j] > 0;
    } else {
        for (std::int64_t j = 0; j < count; ++j) open[j] &= gate[j] != 0;
    }
}

// Whether all factors are equal, because every gate is a step.
template <typename T>
inline bool steps_only(const LiveList<T>& p) {
    return (p.gate == nullptr || p.step) && (p.pooled_gate == nullptr || p.pooled_step);
}

// The arrays of one sample.
template <typename T>
struct SampleList {
    const std::int64_t* route;
    const T* gate;
    const T* pooled_gate;
    std::int32_t* starts;
    std::int32_t* channels;
    std::int32_t* sources;
    T* factors;
    std::int32_t* positions;
    std::int32_t* offsets;
};

template <typename U>
inline U* moved(U* pointer, std::int64_t by) {
    return pointer == nullptr ? nullptr : pointer + by;
}

template <typename T>
SampleList<T> sample_of(const LiveList<T>& p, std::int64_t n) {
    const std::int64_t outputs = n * p.channel_count * p.pooled_pixels;
    return {moved(p.route, outputs),
            moved(p.gate, n * p.channel_count * p.pixels),
            moved(p.pooled_gate, outputs),
            p.starts + n * (p.pixels + 1),
            p.channels + outputs,
            p.sources + outputs,
            p.factors + outputs,
            moved(p.positions, outputs),
            p.offsets + outputs};
}

// Which outputs of `count` pixels from `first` on are open, channel by channel.
template <typename T>
void find_open(const LiveList<T>& p, const SampleList<T>& s, std::int64_t first,
               std::int64_t count, std::int64_t together, unsigned char* open) {
    for (std::int64_t c = 0; c < p.channel_count; ++c, open += together) {
        const std::int64_t at = c * p.pixels + first;
        for (std::int64_t j = 0; j < count; ++j) open[j] = 1;
        close_where_shut(moved(s.gate, at), p.step, count, open);
        close_where_shut(moved(s.pooled_gate, at), p.pooled_step, count, open);
    }
}

// Lists the entries of one pixel behind those of the pixels before it.
template <typename T>
std::int32_t list_pixel(const LiveList<T>& p, const SampleList<T>& s,
                        std::int64_t pixel, std::int32_t source, std::int32_t entry,
                        const unsigned char* open, std::int64_t together) {
    // The entry behind the last one is written too; there is room for it unless all
    // outputs are live, and then it is not written.
    const std::int32_t first = entry, room = p.channel_count * p.pixels;
    for (std::int64_t c = 0; c < p.channel_count && entry < room; ++c) {
        s.channels[entry] = static_cast<std::int32_t>(c);
        entry += open[c * together];
    }
    const std::int32_t column =
        static_cast<std::int32_t>(pixel % p.width * p.column_step);
    for (std::int32_t e = first; e < entry; ++e) {
        s.sources[e] = source;
        s.offsets[e] = s.channels[e] - column;
        s.factors[e] = p.scale;
    }
    // Gates that are not steps; theirs is the only reading across channels.
    for (std::int32_t e = first; e < entry && !steps_only(p); ++e) {
        const std::int64_t at = s.channels[e] * p.pixels + pixel;
        s.factors[e] *=
            opened(s.gate, at, p.step) * opened(s.pooled_gate, at, p.pooled_step);
    }
    return entry;
}

// Without a pool, or before an average: an entry for every pixel.
template <typename T>
void list_pixels(const LiveList<T>& p, const SampleList<T>& s, unsigned char* open) {
    const std::int64_t windows_y = p.pixels / p.width / p.window_y;
    const std::int64_t windows_x = p.width / p.window_x;
    const std::int64_t together = pixels_together(p);
    std::int32_t entry = 0;
    for (std::int64_t first = 0; first < p.pixels; first += together) {
        const std::int64_t left = p.pixels - first;
        const std::int64_t count = left < together ? left : together;
        find_open(p, s, first, count, together, open);
        for (std::int64_t j = 0; j < count; ++j) {
            const std::int64_t pixel = first + j;
            const std::int64_t window = pixel / p.width / p.window_y;
            const std::int64_t place = pixel % p.width / p.window_x;
            s.starts[pixel] = entry;
            if (window >= windows_y || place >= windows_x) {  // in no window
                for (std::int64_t c = 0; c < p.channel_count; ++c) {
                    open[c * together + j] = 0;
                }
                continue;
            }
            const auto source = static_cast<std::int32_t>(window * windows_x + place);
            entry = list_pixel(p, s, pixel, source, entry, open + j, together);
        }
        if (s.positions == nullptr) continue;
        std::int32_t next[kListPixels];  // entry of each pixel's next live channel
        for (std::int64_t j = 0; j < count; ++j) next[j] = s.starts[first + j];
        for (std::int64_t c = 0; c < p.channel_count; ++c) {
            std::int32_t* positions = s.positions + c * p.pixels + first;
            for (std::int64_t j = 0; j < count; ++j) {
                const std::int32_t live = open[c * together + j];
                positions[j] = live ? next[j] : -1;
                next[j] += live;
            }
        }
    }
    s.starts[p.pixels] = entry;
}

// Behind a pool.
template <typename T>
void list_winners(const LiveList<T>& p, const SampleList<T>& s) {
    const auto each = [&](const auto& visit) {
        for (std::int64_t c = 0; c < p.channel_count; ++c) {
            for (std::int64_t q = 0; q < p.pooled_pixels; ++q) {
                const std::int64_t at = c * p.pooled_pixels + q;
                const std::int64_t pixel = s.route[at];
                visit(c, q, pixel,
                      opened(s.gate, c * p.pixels + pixel, p.step) *
                          opened(s.pooled_gate, at, p.pooled_step));
            }
        }
    };
    // Count, in starts[pixel + 1].
    for (std::int64_t pixel = 0; pixel <= p.pixels; ++pixel) s.starts[pixel] = 0;
    each([&](std::int64_t, std::int64_t, std::int64_t pixel, T factor) {
        s.starts[pixel + 1] += factor != 0;
    });
    // Sum up: now starts[pixel + 1] is where the entries of `pixel` begin, shifted by
    // one so that placing them below advances it to where they end.
    std::int32_t total = 0;
    for (std::int64_t pixel = 0; pixel < p.pixels; ++pixel) {
        const std::int32_t count = s.starts[pixel + 1];
        s.starts[pixel + 1] = total;
        total += count;
    }
    // Place.
    each([&](std::int64_t c, std::int64_t q, std::int64_t pixel, T factor) {
        const bool live = factor != 0;
        const std::int32_t entry = s.starts[pixel + 1];
        if (s.positions != nullptr) {
            s.positions[c * p.pooled_pixels + q] = live ? entry : -1;
        }
        if (!live) return;
        s.starts[pixel + 1] = entry + 1;
        s.channels[entry] = static_cast<std::int32_t>(c);
        s.sources[entry] = static_cast<std::int32_t>(q);
        s.factors[entry] = factor;
        const std::uint32_t column =
            static_cast<std::uint32_t>(pixel) % static_cast<std::uint32_t>(p.width);
        s.offsets[entry] = static_cast<std::int32_t>(c - column * p.column_step);
    });
}

}  // namespace

template <typename T>
void live_list(const LiveList<T>& p) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < p.samples; ++n) {
        if (p.route == nullptr) {
            list_pixels(p, sample_of(p, n),
                        p.open + n * p.channel_count * pixels_together(p));
        } else {
            list_winners(p, sample_of(p, n));
        }
    }
}

template void live_list<float>(const LiveList<float>&);
template void live_list<double>(const LiveList<double>&);
}  // namespace FASTJAC_ISA
}  // namespace fastjac
