// Bindings of the attacks' steps, for the CPU and for the GPU: the same names and
// checks. `run` gets the parameters and whatever arguments follow them, `Where`, which
// are called `names`.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "attack_steps.h"
#include "binding_helpers.h"

namespace fastjac {

template <typename... Where, typename Run, typename... Names>
void def_deepfool_step(pybind11::module_& m, Run run, Names... names) {
    namespace py = pybind11;
    m.def(
        "deepfool_step",
        [run](DType dtype, Address rows, Address logits, Address start, Address shift,
              Address x, Address stuck, Address sizes, std::int64_t samples,
              std::int64_t class_count, std::int64_t row_length, double margin,
              double overshoot, double low, double high, bool bounded, bool linf,
              Where... where) {
            check_size("samples", samples);
            check_size("row_length", row_length);
            if (class_count < 2) {
                throw std::invalid_argument(
                    "`class_count` (=" + std::to_string(class_count) +
                    ") must be >= 2");
            }
            const std::int64_t elements = samples * row_length;
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                DeepFoolStep<T> p{};
                p.rows = pointer<const T>("rows", rows, elements * (class_count - 1));
                p.logits = pointer<const T>("logits", logits, samples * class_count);
                p.start = pointer<const T>("start", start, elements);
                p.shift = pointer<T>("shift", shift, elements);
                p.x = pointer<T>("x", x, elements);
                p.stuck = pointer<bool>("stuck", stuck, samples);
                p.sizes = pointer<double>("sizes", sizes, samples * class_count);
                p.samples = samples;
                p.class_count = class_count;
                p.row_length = row_length;
                p.margin = margin;
                p.overshoot = overshoot;
                p.low = low;
                p.high = high;
                p.bounded = bounded;
                p.linf = linf;
                run(p, where...);
            });
        },
        py::kw_only(), py::arg("dtype"), py::arg("rows"), py::arg("logits"),
        py::arg("start"), py::arg("shift"), py::arg("x"), py::arg("stuck"),
        py::arg("sizes"), py::arg("samples"), py::arg("class_count"),
        py::arg("row_length"), py::arg("margin"), py::arg("overshoot"), py::arg("low"),
        py::arg("high"), py::arg("bounded"), py::arg("linf"), names...);
}

template <typename... Where, typename Run, typename... Names>
void def_jsma_step(pybind11::module_& m, Run run, Names... names) {
    namespace py = pybind11;
    m.def(
        "jsma_step",
        [run](DType dtype, Address rows, Address x, Address open, Address chosen,
              Address strong, std::int64_t samples, std::int64_t row_length,
              std::int64_t pixels, double theta, double low, double high,
              Where... where) {
            check_size("samples", samples);
            check_size("row_length", row_length);
            if (pixels != 1 && pixels != 2) {
                throw std::invalid_argument("`pixels` (=" + std::to_string(pixels) +
                                            ") must be 1 or 2");
            }
            const std::int64_t elements = samples * row_length;
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                JsmaStep<T> p{};
                p.rows = pointer<const T>("rows", rows, 2 * elements);
                p.x = pointer<T>("x", x, elements);
                p.open = pointer<bool>("open", open, elements);
                p.chosen = pointer<std::int64_t>("chosen", chosen, samples * pixels);
                p.strong =
                    pointer<std::int64_t>("strong", strong, pixels == 2 ? elements : 0);
                p.samples = samples;
                p.row_length = row_length;
                p.pixels = pixels;
                p.theta = theta;
                p.low = low;
                p.high = high;
                run(p, where...);
            });
        },
        py::kw_only(), py::arg("dtype"), py::arg("rows"), py::arg("x"), py::arg("open"),
        py::arg("chosen"), py::arg("strong"), py::arg("samples"), py::arg("row_length"),
        py::arg("pixels"), py::arg("theta"), py::arg("low"), py::arg("high"), names...);
}

}  // namespace fastjac
