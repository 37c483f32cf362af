// Binding of the pull to live inputs.
#pragma once

#include <pybind11/pybind11.h>

#include "binding_helpers.h"
#include "cpu/live_pull.h"

namespace fastjac {

inline void bind_live_pull(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "live_pull",
        [](DType dtype, Address weight, Address starts, Address channels,
           Address compact, Address below_starts, Address below_channels,
           Address below_sources, Address out, std::int64_t samples,
           std::int64_t channel_count, std::int64_t input_count,
           std::int64_t below_pixels, std::int64_t below_pooled,
           std::int64_t row_stride) {
            check_size("samples", samples);
            check_positive("channel_count", channel_count);
            check_positive("input_count", input_count);
            check_positive("below_pixels", below_pixels);
            check_positive("below_pooled", below_pooled);
            check_positive("row_stride", row_stride);
            const std::int64_t entries = samples * channel_count;
            const std::int64_t inputs = samples * input_count;
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LivePull<T> p{};
                p.weight =
                    pointer<const T>("weight", weight, input_count * channel_count);
                p.starts = pointer<const std::int32_t>("starts", starts, samples);
                p.channels = pointer<const std::int32_t>("channels", channels, entries);
                p.compact = pointer<const T>("compact", compact, entries);
                p.below_starts =
                    pointer<const std::int32_t>("below_starts", below_starts, samples);
                p.below_channels = pointer<const std::int32_t>("below_channels",
                                                               below_channels, inputs);
                p.below_sources =
                    pointer<const std::int32_t>("below_sources", below_sources, inputs);
                p.out = pointer<T>("out", out, inputs);
                p.samples = samples;
                p.channel_count = channel_count;
                p.input_count = input_count;
                p.below_pixels = below_pixels;
                p.below_pooled = below_pooled;
                p.row_stride = row_stride;
                FASTJAC_CALL(live_pull<T>, p);
            });
        },
        py::kw_only(), py::arg("dtype"), py::arg("weight"), py::arg("starts"),
        py::arg("channels"), py::arg("compact"), py::arg("below_starts"),
        py::arg("below_channels"), py::arg("below_sources"), py::arg("out"),
        py::arg("samples"), py::arg("channel_count"), py::arg("input_count"),
        py::arg("below_pixels"), py::arg("below_pooled"), py::arg("row_stride"));
}

}  // namespace fastjac
