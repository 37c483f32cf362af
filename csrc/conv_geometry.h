// The sizes of a gated convolution as an object that is checked once. The CPU and the
// CUDA bindings share it.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "binding_helpers.h"
#include "cpu/gated_conv.h"

namespace fastjac {

// Everything about a gated convolution that does not change from chunk to chunk.
struct ConvGeometry {
    std::int64_t in_channels, out_channels;
    std::int64_t in_height, in_width;
    std::int64_t out_height, out_width;
    std::int64_t pooled_pixels;
    std::int64_t kernel_y, kernel_x;
    std::int64_t stride_y, stride_x;
    std::int64_t padding_y, padding_x;
    std::int64_t dilation_y, dilation_x;

    std::int64_t pixels() const { return out_height * out_width; }
    std::int64_t outputs() const { return out_channels * pooled_pixels; }
    std::int64_t taps() const { return kernel_y * kernel_x; }
};

inline ConvGeometry make_geometry(std::int64_t in_channels, std::int64_t out_channels,
                                  std::int64_t in_height, std::int64_t in_width,
                                  std::int64_t out_height, std::int64_t out_width,
                                  std::int64_t pooled_pixels, std::int64_t kernel_y,
                                  std::int64_t kernel_x, std::int64_t stride_y,
                                  std::int64_t stride_x, std::int64_t padding_y,
                                  std::int64_t padding_x, std::int64_t dilation_y,
                                  std::int64_t dilation_x) {
    check_positive("in_channels", in_channels);
    check_positive("out_channels", out_channels);
    check_positive("in_height", in_height);
    check_positive("in_width", in_width);
    check_positive("out_height", out_height);
    check_positive("out_width", out_width);
    check_positive("pooled_pixels", pooled_pixels);
    check_positive("kernel_y", kernel_y);
    check_positive("kernel_x", kernel_x);
    check_positive("stride_y", stride_y);
    check_positive("stride_x", stride_x);
    check_size("padding_y", padding_y);
    check_size("padding_x", padding_x);
    check_positive("dilation_y", dilation_y);
    check_positive("dilation_x", dilation_x);
    const ConvGeometry g{in_channels, out_channels,  in_height, in_width,   out_height,
                         out_width,   pooled_pixels, kernel_y,  kernel_x,   stride_y,
                         stride_x,    padding_y,     padding_x, dilation_y, dilation_x};
    if (g.taps() > kMostTaps) {
        throw std::invalid_argument("a window of " + std::to_string(g.taps()) +
                                    " taps is more than the " +
                                    std::to_string(kMostTaps) + " that are supported");
    }
    // Entries and pixels of a sample are counted in 32 bits.
    const std::int64_t most = 2147483647;
    if (g.outputs() > most || g.pixels() > most || in_height * in_width > most ||
        out_width * stride_x * out_channels > most) {
        throw std::invalid_argument("a sample of more than 2^31 - 1 elements");
    }
    return g;
}

inline void bind_conv_geometry(pybind11::module_& m) {
    namespace py = pybind11;
    m.attr("MOST_TAPS") = kMostTaps;
    py::class_<ConvGeometry>(m, "ConvGeometry", py::module_local())
        .def(py::init(&make_geometry), py::kw_only(), py::arg("in_channels"),
             py::arg("out_channels"), py::arg("in_height"), py::arg("in_width"),
             py::arg("out_height"), py::arg("out_width"), py::arg("pooled_pixels"),
             py::arg("kernel_y"), py::arg("kernel_x"), py::arg("stride_y"),
             py::arg("stride_x"), py::arg("padding_y"), py::arg("padding_x"),
             py::arg("dilation_y"), py::arg("dilation_x"))
        .def_readonly("pooled_pixels", &ConvGeometry::pooled_pixels)
        .def_readonly("in_channels", &ConvGeometry::in_channels)
        .def_readonly("out_channels", &ConvGeometry::out_channels)
        .def_property_readonly("pixels", &ConvGeometry::pixels)
        .def_property_readonly("taps", &ConvGeometry::taps);
}

}  // namespace fastjac
