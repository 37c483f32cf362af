// Max pools of 2x2 windows that lie side by side, with the places of the winners.
#pragma once

#include "dispatch.h"

namespace fastjac {

// values[m, y, x] is the largest of input[m, 2y:2y+2, 2x:2x+2] and places[m, y, x] its
// place in plane m. The first of equals wins, in the order of lines and columns, and a
// NaN wins over everything, the last of several: what torch.nn.functional.max_pool2d
// says. Odd lines and columns at the end have no window.
template <typename T>
struct MaxPool {
    const T* input;        // (M, H, W)
    T* values;             // (M, H / 2, W / 2)
    std::int64_t* places;  // as values
    std::int64_t planes;   // M
    std::int64_t height;   // H
    std::int64_t width;    // W
};

FASTJAC_DECLARE_KERNEL(template <typename T> void max_pool(const MaxPool<T>& p);)

}  // namespace fastjac
