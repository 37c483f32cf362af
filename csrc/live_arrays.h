// A live list's arrays, and the rows that go with it, as objects that Python makes. The
// CPU and the CUDA bindings share them, and what they put into the kernels' structs.
#pragma once

#include <pybind11/pybind11.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "binding_helpers.h"
#include "conv_geometry.h"

namespace fastjac {

// Addresses of the arrays of a LiveList; those that a function does not use may be 0.
struct LiveArrays {
    ConvGeometry geometry;
    std::int64_t samples;
    Address route, gate, pooled_gate;
    bool step, pooled_step;
    Address starts, channels, sources, factors, positions, offsets;
    std::int64_t window_y, window_x;
    double scale;

    std::int64_t entries() const { return samples * geometry.outputs(); }
};

// Rows (R, N, C, Q) by their strides, and the compact entries of R rows each.
struct RowsPlace {
    Address rows, compact;
    std::int64_t row_count, row_stride;
    std::int64_t stride_row, stride_sample, stride_channel, stride_pixel;
};

inline LiveArrays make_live_arrays(const ConvGeometry& geometry, std::int64_t samples,
                                   Address route, Address gate, bool step,
                                   Address pooled_gate, bool pooled_step,
                                   Address starts, Address channels, Address sources,
                                   Address factors, Address positions, Address offsets,
                                   std::int64_t window_y, std::int64_t window_x,
                                   double scale) {
    check_size("samples", samples);
    check_positive("window_y", window_y);
    check_positive("window_x", window_x);
    return {geometry,    samples,  route,    gate,    pooled_gate, step,
            pooled_step, starts,   channels, sources, factors,     positions,
            offsets,     window_y, window_x, scale};
}

inline RowsPlace make_rows_place(Address rows, Address compact, std::int64_t row_count,
                                 std::int64_t row_stride, std::int64_t stride_row,
                                 std::int64_t stride_sample,
                                 std::int64_t stride_channel,
                                 std::int64_t stride_pixel) {
    check_positive("row_count", row_count);
    check_size("row_stride - row_count", row_stride - row_count);
    return {rows,       compact,       row_count,      row_stride,
            stride_row, stride_sample, stride_channel, stride_pixel};
}

inline void bind_live_arrays(pybind11::module_& m) {
    namespace py = pybind11;
    py::class_<LiveArrays>(m, "LiveArrays", py::module_local())
        .def(py::init(&make_live_arrays), py::kw_only(), py::arg("geometry"),
             py::arg("samples"), py::arg("route"), py::arg("gate") = 0,
             py::arg("step") = false, py::arg("pooled_gate") = 0,
             py::arg("pooled_step") = false, py::arg("starts"), py::arg("channels"),
             py::arg("sources"), py::arg("factors"), py::arg("positions"),
             py::arg("offsets"), py::arg("window_y"), py::arg("window_x"),
             py::arg("scale"));
    py::class_<RowsPlace>(m, "RowsPlace", py::module_local())
        .def(py::init(&make_rows_place), py::kw_only(), py::arg("rows"),
             py::arg("compact"), py::arg("row_count"), py::arg("row_stride"),
             py::arg("stride_row"), py::arg("stride_sample"), py::arg("stride_channel"),
             py::arg("stride_pixel"));
}

// to = value, after checking that it fits: kernels for a GPU count in 32 bits.
template <typename To>
void put(To& to, const char* name, std::int64_t value) {
    check_size(name, value);
    if (value > std::numeric_limits<To>::max()) {
        throw std::invalid_argument(std::string("`") + name + "` (=" +
                                    std::to_string(value) + ") must be below 2^31");
    }
    to = static_cast<To>(value);
}

// What the structs LiveList of both devices have in common.
template <typename List>
void fill_list(const LiveArrays& a, List& p) {
    using T = std::remove_pointer_t<decltype(p.factors)>;
    const ConvGeometry& g = a.geometry;
    const std::int64_t entries = a.entries();
    p.route = optional_pointer<const std::int64_t>("route", a.route);
    p.gate = optional_pointer<const T>("gate", a.gate);
    p.pooled_gate = optional_pointer<const T>("pooled_gate", a.pooled_gate);
    p.step = a.step;
    p.pooled_step = a.pooled_step;
    p.starts = pointer<std::int32_t>("starts", a.starts, a.samples);
    p.channels = pointer<std::int32_t>("channels", a.channels, entries);
    p.sources = pointer<std::int32_t>("sources", a.sources, entries);
    p.factors = pointer<T>("factors", a.factors, entries);
    p.offsets = pointer<std::int32_t>("offsets", a.offsets, entries);
    p.samples = a.samples;
    put(p.channel_count, "out_channels", g.out_channels);
    put(p.pixels, "pixels", g.pixels());
    put(p.pooled_pixels, "pooled_pixels", g.pooled_pixels);
    put(p.width, "out_width", g.out_width);
    put(p.column_step, "column step", g.stride_x * g.out_channels);
    put(p.window_y, "window_y", a.window_y);
    put(p.window_x, "window_x", a.window_x);
    p.scale = static_cast<T>(a.scale);
}

// What the structs LiveRows of both devices have in common.
template <typename Rows>
void fill_rows(const LiveArrays& a, const RowsPlace& rows, Rows& p) {
    using Row = std::remove_pointer_t<decltype(p.rows)>;
    using Factor = std::remove_pointer_t<decltype(p.factors)>;
    p.rows = pointer<Row>("rows", rows.rows, a.entries());
    p.compact = pointer<Row>("compact", rows.compact, a.entries());
    p.factors = pointer<Factor>("factors", a.factors, a.entries());
    p.samples = a.samples;
    put(p.channel_count, "out_channels", a.geometry.out_channels);
    put(p.pooled_pixels, "pooled_pixels", a.geometry.pooled_pixels);
    put(p.row_count, "row_count", rows.row_count);
    put(p.row_stride, "row_stride", rows.row_stride);
    p.stride_row = rows.stride_row;
    p.stride_sample = rows.stride_sample;
    p.stride_channel = rows.stride_channel;
    p.stride_pixel = rows.stride_pixel;
}

// The sizes of a convolution, which the structs GatedConv of both devices hold.
template <typename Conv>
void fill_conv(const LiveArrays& a, std::int64_t row_count, Conv& p) {
    const ConvGeometry& g = a.geometry;
    check_positive("row_count", row_count);
    p.samples = a.samples;
    p.starts = pointer<const std::int32_t>("starts", a.starts, a.samples);
    p.channels = pointer<const std::int32_t>("channels", a.channels, a.entries());
    p.offsets = pointer<const std::int32_t>("offsets", a.offsets, a.entries());
    put(p.row_count, "row_count", row_count);
    put(p.out_channels, "out_channels", g.out_channels);
    put(p.in_height, "in_height", g.in_height);
    put(p.in_width, "in_width", g.in_width);
    put(p.out_height, "out_height", g.out_height);
    put(p.out_width, "out_width", g.out_width);
    put(p.kernel_y, "kernel_y", g.kernel_y);
    put(p.kernel_x, "kernel_x", g.kernel_x);
    put(p.stride_y, "stride_y", g.stride_y);
    put(p.stride_x, "stride_x", g.stride_x);
    put(p.padding_y, "padding_y", g.padding_y);
    put(p.padding_x, "padding_x", g.padding_x);
    put(p.dilation_y, "dilation_y", g.dilation_y);
    put(p.dilation_x, "dilation_x", g.dilation_x);
}

}  // namespace fastjac
