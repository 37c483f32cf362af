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
#include "cpu/live_rows.h"
#include "live_arrays.h"

namespace fastjac {

inline void bind_live_list(pybind11::module_& m) {
    namespace py = pybind11;
    m.attr("LIST_PIXELS") = kListPixels;
    m.def(
        "live_list",
        [](const LiveArrays& a, Address open, DType dtype) {
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LiveList<T> p{};
                fill_list(a, p);
                p.positions = optional_pointer<std::int32_t>("positions", a.positions);
                p.open = p.route != nullptr
                             ? nullptr
                             : pointer<unsigned char>("open", open, a.entries());
                FASTJAC_CALL(live_list<T>, p);
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("open"), py::arg("dtype"));
    m.def(
        "live_rows",
        [](const LiveArrays& a, const RowsPlace& rows, bool gather, bool live_only,
           Address bias, Address ones, Address bias_gradient, DType dtype) {
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LiveRows<T> p{};
                fill_rows(a, rows, p);
                p.bias = optional_pointer<const T>("bias", bias);
                p.bias_gradient = optional_pointer<T>("bias_gradient", bias_gradient);
                if (p.bias != nullptr || p.bias_gradient != nullptr) {
                    p.ones = pointer<const T>("ones", ones, a.samples);
                }
                p.starts = pointer<const std::int32_t>("starts", a.starts, a.samples);
                p.channels =
                    pointer<const std::int32_t>("channels", a.channels, a.entries());
                p.sources =
                    pointer<const std::int32_t>("sources", a.sources, a.entries());
                p.pixels = a.geometry.pixels();
                p.live_only = live_only;
                if (live_only &&
                    (p.stride_row != 1 || p.stride_channel < p.row_count)) {
                    throw std::invalid_argument(
                        "with `live_only` the rows of an output must lie together");
                }
                if (gather) {
                    FASTJAC_CALL(gather_live<T>, p);
                } else {
                    FASTJAC_CALL(scatter_live<T>, p);
                }
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("rows"), py::arg("gather"),
        py::arg("live_only") = false, py::arg("bias") = 0, py::arg("ones") = 0,
        py::arg("bias_gradient") = 0, py::arg("dtype"));
}

enum class ConvPass { pull, push, weight };

template <typename T>
void run_gated_conv(ConvPass pass, bool lanes_are_rows, const GatedConv<T>& p) {
    const bool live = p.input_starts != nullptr;
    if (pass == ConvPass::pull) {
        if (live) {
            FASTJAC_CALL(gated_conv_pull_live<T>, p);
        } else if (lanes_are_rows) {
            FASTJAC_CALL(gated_conv_pull_rows<T>, p);
        } else {
            FASTJAC_CALL(gated_conv_pull_channels<T>, p);
        }
    } else if (pass == ConvPass::push) {
        if (live) {
            FASTJAC_CALL(gated_conv_push_live<T>, p);
        } else if (lanes_are_rows) {
            FASTJAC_CALL(gated_conv_push_rows<T>, p);
        } else {
            FASTJAC_CALL(gated_conv_push_channels<T>, p);
        }
    } else if (live) {
        FASTJAC_CALL(gated_conv_weight_live<T>, p);
    } else if (lanes_are_rows) {
        FASTJAC_CALL(gated_conv_weight_rows<T>, p);
    } else {
        FASTJAC_CALL(gated_conv_weight_channels<T>, p);
    }
}

// The live inputs of a convolution: the outputs of the layer below, without a pool.
template <typename T>
void set_inputs(const LiveArrays& below, const ConvGeometry& g, GatedConv<T>& p) {
    const ConvGeometry& b = below.geometry;
    if (below.samples != p.samples || b.out_channels != g.in_channels ||
        b.out_height != g.in_height || b.out_width != g.in_width ||
        b.pooled_pixels != b.pixels()) {
        throw std::invalid_argument(
            "`inputs` must list the very inputs of the convolution, not behind a pool");
    }
    p.input_starts =
        pointer<const std::int32_t>("inputs.starts", below.starts, p.samples);
    p.input_channels =
        pointer<const std::int32_t>("inputs.channels", below.channels, below.entries());
}

inline void bind_gated_conv(pybind11::module_& m) {
    namespace py = pybind11;
    py::enum_<ConvPass>(m, "ConvPass")
        .value("pull", ConvPass::pull)
        .value("push", ConvPass::push)
        .value("weight", ConvPass::weight);
    m.def(
        "gated_conv",
        [](const LiveArrays& a, const LiveArrays* inputs, ConvPass pass,
           bool lanes_are_rows, std::int64_t row_count, Address weight,
           std::int64_t weight_stride, Address compact, std::int64_t compact_stride,
           Address input, std::int64_t input_stride, Address weight_gradient,
           DType dtype) {
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                const ConvGeometry& g = a.geometry;
                GatedConv<T> p{};
                fill_conv(a, row_count, p);
                p.weight = pointer<const T>("weight", weight, g.taps());
                p.positions =
                    optional_pointer<const std::int32_t>("positions", a.positions);
                p.route = optional_pointer<const std::int64_t>("route", a.route);
                p.compact = pointer<T>("compact", compact, a.entries());
                p.input = pointer<T>("input", input, a.samples);
                p.weight_gradient =
                    optional_pointer<T>("weight_gradient", weight_gradient);
                if (pass == ConvPass::weight && p.weight_gradient == nullptr) {
                    throw std::invalid_argument("`weight_gradient` is null");
                }
                if (pass == ConvPass::weight && lanes_are_rows &&
                    p.positions == nullptr) {
                    throw std::invalid_argument("`positions` is null");
                }
                p.in_channels = g.in_channels;
                p.pooled_pixels = g.pooled_pixels;
                p.weight_stride = weight_stride;
                p.compact_stride = compact_stride;
                p.input_stride = input_stride;
                if (inputs != nullptr) set_inputs(*inputs, g, p);
                run_gated_conv(pass, lanes_are_rows, p);
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("inputs") = py::none(),
        py::arg("direction"), py::arg("lanes_are_rows"), py::arg("row_count"),
        py::arg("weight"), py::arg("weight_stride"), py::arg("compact"),
        py::arg("compact_stride"), py::arg("input"), py::arg("input_stride"),
        py::arg("weight_gradient"), py::arg("dtype"));
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
           std::int64_t row_count, std::int64_t in_channels, std::int64_t stride,
           std::int64_t input_stride) {
            check_positive("units", units);
            check_positive("row_count", row_count);
            check_positive("in_channels", in_channels);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                GatedHead<T> p{};
                p.weight = pointer<const T>("weight", weight, units * stride);
                p.rows = pointer<const T>("rows", rows, units * row_count);
                p.input = pointer<const T>("input", input, row_count * input_stride);
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
                p.input_stride = input_stride;
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
        py::arg("stride"), py::arg("input_stride"));
}

}  // namespace fastjac
