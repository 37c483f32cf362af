// How the gradient of a gated convolution's weights, laid out by tap, is shared among
// threads. A thread owns taps and tiles of input channels, so no two threads add to one
// place and the order of the additions does not depend on their number.
#pragma once

#include <omp.h>

#include <algorithm>

#include "channel_tiles.h"

namespace fastjac {
namespace FASTJAC_ISA {

// An input pixel of sample n, the runs of output pixels that read it by one line of the
// kernel and by the taps of a task, and the task's tile of input channels.
struct Reader {
    std::int64_t n, pixel, tile;
    Run runs[kMostTaps];
    int run_count;
};

// Calls body(reader) for what taps [first, end) read of a sample.
template <typename T, typename Body>
inline void each_reader_of_taps(const GatedConv<T>& p, std::int64_t first,
                                std::int64_t end, Reader& reader, const Body& body) {
    const std::int64_t last_line = (end - 1) / p.kernel_x;
    for (std::int64_t y = 0; y < p.in_height; ++y) {
        for (std::int64_t a = first / p.kernel_x; a <= last_line; ++a) {
            const std::int64_t line = a * p.kernel_x;
            const Taps taps{a, std::max<std::int64_t>(first - line, 0),
                            std::min(end - line, p.kernel_x)};
            for (std::int64_t x = 0; x < p.in_width; ++x) {
                reader.run_count = readers_by_line(p, y, x, taps, reader.runs);
                if (reader.run_count == 0) continue;
                reader.pixel = y * p.in_width + x;
                body(reader);
            }
        }
    }
}

// Calls body(reader) for everything that any tap reads, in parallel.
template <typename T, typename Body>
inline void each_reader(const GatedConv<T>& p, const Body& body) {
    const std::int64_t taps = p.kernel_y * p.kernel_x, tasks = taps * tile_count(p);
#pragma omp parallel
    {
        const std::int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        const std::int64_t begin = tasks * me / threads;
        const std::int64_t end = tasks * (me + 1) / threads;
        Reader reader;
        // This thread's tasks, tile by tile, for some samples.
        const auto add = [&](std::int64_t first_sample, std::int64_t end_sample) {
            for (std::int64_t tile = begin / taps; tile * taps < end; ++tile) {
                const std::int64_t first =
                    std::max<std::int64_t>(begin - tile * taps, 0);
                const std::int64_t last = std::min(end - tile * taps, taps);
                reader.tile = tile;
                for (reader.n = first_sample; reader.n < end_sample; ++reader.n) {
                    each_reader_of_taps(p, first, last, reader, body);
                }
            }
        };
        if (large_weights(p)) {
            add(0, p.samples);
        } else {
            for (std::int64_t n = 0; n < p.samples; ++n) add(n, n + 1);
        }
    }
}

}  // namespace FASTJAC_ISA
}  // namespace fastjac
