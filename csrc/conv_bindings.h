// Bindings of the gated convolution's CPU kernels; arrays are addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "binding_helpers.h"
#include "conv_geometry.h"
#include "cpu/gated_conv.h"
#include "cpu/gated_head.h"
#include "cpu/live_list.h"

namespace fastjac {

inline void bind_live_list(pybind11::module_& m) {
    namespace py = pybind11;
    m.attr("LIST_PIXELS") = kListPixels;
    m.def(
        "live_list",
        [](DType dtype, const ConvGeometry& g, std::int64_t samples, Address route,
           Address gate, bool step, Address pooled_gate, bool pooled_step,
           Address starts, Address channels, Address sources, Address factors,
           Address positions, Address offsets, Address open, std::int64_t window_y,
           std::int64_t window_x, double scale) {
            check_size("samples", samples);
            check_positive("window_y", window_y);
            check_positive("window_x", window_x);
            const std::int64_t entries = samples * g.outputs();
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LiveList<T> p{};
                p.route = optional_pointer<const std::int64_t>("route", route);
                p.gate = optional_pointer<const T>("gate", gate);
                p.pooled_gate = optional_pointer<const T>("pooled_gate", pooled_gate);
                p.step = step;
                p.pooled_step = pooled_step;
                p.starts = pointer<std::int32_t>("starts", starts, samples);
                p.channels = pointer<std::int32_t>("channels", channels, entries);
                p.sources = pointer<std::int32_t>("sources", sources, entries);
                p.factors = pointer<T>("factors", factors, entries);
                p.positions = optional_pointer<std::int32_t>("positions", positions);
                p.offsets = pointer<std::int32_t>("offsets", offsets, entries);
                p.open = p.route != nullptr
                             ? nullptr
                             : pointer<unsigned char>("open", open, entries);
                p.width = g.out_width;
                p.window_y = window_y;
                p.window_x = window_x;
                p.scale = static_cast<T>(scale);
                p.column_step = g.stride_x * g.out_channels;
                p.samples = samples;
                p.channel_count = g.out_channels;
                p.pixels = g.pixels();
                p.pooled_pixels = g.pooled_pixels;
                FASTJAC_CALL(live_list<T>, p);
            });
        },
        py::arg("dtype"), py::arg("geometry"), py::arg("samples"), py::arg("route"),
        py::arg("gate"), py::arg("step"), py::arg("pooled_gate"),
        py::arg("pooled_step"), py::arg("starts"), py::arg("channels"),
        py::arg("sources"), py::arg("factors"), py::arg("positions"),
        py::arg("offsets"), py::arg("open"), py::arg("window_y"), py::arg("window_x"),
        py::arg("scale"));
    m.def(
        "live_rows",
        [](DType dtype, const ConvGeometry& g, bool gather, std::int64_t samples,
           Address rows, Address compact, Address starts, Address channels,
           Address sources, Address factors, std::int64_t row_count,
           std::int64_t row_stride, std::int64_t stride_row, std::int64_t stride_sample,
           std::int64_t stride_channel, std::int64_t stride_pixel) {
            check_size("samples", samples);
            check_positive("row_count", row_count);
            const std::int64_t entries = samples * g.outputs();
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LiveRows<T> p{};
                p.rows = pointer<T>("rows", rows, entries);
                p.compact = pointer<T>("compact", compact, entries);
                p.starts = pointer<const std::int32_t>("starts", starts, samples);
                p.channels = pointer<const std::int32_t>("channels", channels, entries);
                p.sources = pointer<const std::int32_t>("sources", sources, entries);
                p.factors = pointer<const T>("factors", factors, entries);
                p.samples = samples;
                p.channel_count = g.out_channels;
                p.pixels = g.pixels();
                p.pooled_pixels = g.pooled_pixels;
                p.row_count = row_count;
                p.row_stride = row_stride;
                p.stride_row = stride_row;
                p.stride_sample = stride_sample;
                p.stride_channel = stride_channel;
                p.stride_pixel = stride_pixel;
                if (gather) {
                    FASTJAC_CALL(gather_live<T>, p);
                } else {
                    FASTJAC_CALL(scatter_live<T>, p);
                }
            });
        },
        py::arg("dtype"), py::arg("geometry"), py::arg("gather"), py::arg("samples"),
        py::arg("rows"), py::arg("compact"), py::arg("starts"), py::arg("channels"),
        py::arg("sources"), py::arg("factors"), py::arg("row_count"),
        py::arg("row_stride"), py::arg("stride_row"), py::arg("stride_sample"),
        py::arg("stride_channel"), py::arg("stride_pixel"));
}

enum class ConvPass { pull, push, weight };

template <typename T>
void run_gated_conv(ConvPass pass, bool lanes_are_rows, const GatedConv<T>& p) {
    if (pass == ConvPass::pull) {
        if (lanes_are_rows) {
            FASTJAC_CALL(gated_conv_pull_rows<T>, p);
        } else {
            FASTJAC_CALL(gated_conv_pull_channels<T>, p);
        }
    } else if (pass == ConvPass::push) {
        if (lanes_are_rows) {
            FASTJAC_CALL(gated_conv_push_rows<T>, p);
        } else {
            FASTJAC_CALL(gated_conv_push_channels<T>, p);
        }
    } else if (lanes_are_rows) {
        FASTJAC_CALL(gated_conv_weight_rows<T>, p);
    } else {
        FASTJAC_CALL(gated_conv_weight_channels<T>, p);
    }
}

inline void bind_gated_conv(pybind11::module_& m) {
    namespace py = pybind11;
    py::enum_<ConvPass>(m, "ConvPass")
        .value("pull", ConvPass::pull)
        .value("push", ConvPass::push)
        .value("weight", ConvPass::weight);
    m.def(
        "gated_conv",
        [](DType dtype, const ConvGeometry& g, ConvPass pass, bool lanes_are_rows,
           std::int64_t samples, std::int64_t row_count, Address weight,
           std::int64_t weight_stride, Address starts, Address channels,
           Address offsets, Address positions, Address route, Address compact,
           std::int64_t compact_stride, Address input, std::int64_t input_stride,
           Address weight_gradient) {
            check_size("samples", samples);
            check_positive("row_count", row_count);
            const std::int64_t entries = samples * g.outputs();
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                GatedConv<T> p{};
                p.weight = pointer<const T>("weight", weight, g.taps());
                p.starts = pointer<const std::int32_t>("starts", starts, samples);
                p.channels = pointer<const std::int32_t>("channels", channels, entries);
                p.offsets = pointer<const std::int32_t>("offsets", offsets, entries);
                p.positions =
                    optional_pointer<const std::int32_t>("positions", positions);
                p.route = optional_pointer<const std::int64_t>("route", route);
                p.compact = pointer<T>("compact", compact, entries);
                p.input = pointer<T>("input", input, samples);
                p.weight_gradient =
                    optional_pointer<T>("weight_gradient", weight_gradient);
                if (pass == ConvPass::weight && p.weight_gradient == nullptr) {
                    throw std::invalid_argument("`weight_gradient` is null");
                }
                if (pass == ConvPass::weight && lanes_are_rows &&
                    p.positions == nullptr) {
                    throw std::invalid_argument("`positions` is null");
                }
                p.samples = samples;
                p.row_count = row_count;
                p.in_channels = g.in_channels;
                p.out_channels = g.out_channels;
                p.in_height = g.in_height;
                p.in_width = g.in_width;
                p.out_height = g.out_height;
                p.out_width = g.out_width;
                p.pooled_pixels = g.pooled_pixels;
                p.kernel_y = g.kernel_y;
                p.kernel_x = g.kernel_x;
                p.stride_y = g.stride_y;
                p.stride_x = g.stride_x;
                p.padding_y = g.padding_y;
                p.padding_x = g.padding_x;
                p.dilation_y = g.dilation_y;
                p.dilation_x = g.dilation_x;
                p.weight_stride = weight_stride;
                p.compact_stride = compact_stride;
                p.input_stride = input_stride;
                run_gated_conv(pass, lanes_are_rows, p);
            });
        },
        py::arg("dtype"), py::arg("geometry"), py::arg("direction"),
        py::arg("lanes_are_rows"), py::arg("samples"), py::arg("row_count"),
        py::arg("weight"), py::arg("weight_stride"), py::arg("starts"),
        py::arg("channels"), py::arg("offsets"), py::arg("positions"), py::arg("route"),
        py::arg("compact"), py::arg("compact_stride"), py::arg("input"),
        py::arg("input_stride"), py::arg("weight_gradient"));
}

inline void bind_gated_head(pybind11::module_& m) {
    namespace py = pybind11;
    m.attr("HEAD_PARTS") = kHeadParts;
    m.attr("HEAD_GROUP") = kHeadGroup;
    m.def("head_panel", &head_panel, py::arg("subsets"), py::arg("samples"),
          py::arg("rows"), py::arg("units"));
    m.def(
        "gated_head",
        [](DType dtype, Address weight, Address rows, Address input, Address starts,
           Address samples, Address factors, Address gate, Address members,
           Address weight_gradient, Address partials, Address panels,
           Address row_gradient, std::int64_t sample_count, std::int64_t units,
           std::int64_t row_count, std::int64_t in_channels, std::int64_t stride) {
            check_positive("units", units);
            check_positive("row_count", row_count);
            check_positive("in_channels", in_channels);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                GatedHead<T> p{};
                p.weight = pointer<const T>("weight", weight, units * stride);
                p.rows = pointer<const T>("rows", rows, units * row_count);
                p.input = pointer<const T>("input", input, row_count * stride);
                p.gate = optional_pointer<const T>("gate", gate);
                p.weight_gradient =
                    pointer<T>("weight_gradient", weight_gradient, units * stride);
                p.partials = pointer<T>("partials", partials, units * row_count);
                p.row_gradient =
                    pointer<T>("row_gradient", row_gradient, units * row_count);
                p.panels = pointer<T>("panels", panels, sample_count);
                p.sample_count = sample_count;
                p.units = units;
                p.row_count = row_count;
                p.in_channels = in_channels;
                p.stride = stride;
                if (p.gate != nullptr) {
                    p.members = pointer<unsigned char>("members", members, units);
                    FASTJAC_CALL(gated_head_subsets<T>, p);
                    return;
                }
                p.starts = pointer<const std::int32_t>("starts", starts, units + 1);
                p.samples = pointer<const std::int32_t>("samples", samples, units);
                p.factors = pointer<const T>("factors", factors, units);
                FASTJAC_CALL(gated_head<T>, p);
            });
        },
        py::arg("dtype"), py::arg("weight"), py::arg("rows"), py::arg("input"),
        py::arg("starts"), py::arg("samples"), py::arg("factors"), py::arg("gate"),
        py::arg("members"), py::arg("weight_gradient"), py::arg("partials"),
        py::arg("panels"), py::arg("row_gradient"), py::arg("sample_count"),
        py::arg("units"), py::arg("row_count"), py::arg("in_channels"),
        py::arg("stride"));
}

}  // namespace fastjac
