// Bindings of the gated convolution's CUDA kernels; arrays are addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../binding_helpers.h"
#include "../conv_geometry.h"
#include "../live_arrays.h"
#include "gated_conv.h"
#include "live_list.h"
#include "live_rows.h"
#include "stream.h"
#include "sum_partials.h"

namespace fastjac {
namespace cuda {

inline Stream stream_of(int device, Address stream) {
    return {device, reinterpret_cast<void*>(stream)};
}

inline std::int32_t narrow(const char* name, std::int64_t value) {
    std::int32_t narrowed = 0;
    put(narrowed, name, value);
    return narrowed;
}

// An array that kernels access up to 16 bytes at a time.
template <typename T>
T* packed_pointer(const char* name, Address address, std::int64_t count) {
    if (address % 16 != 0) {
        throw std::invalid_argument(std::string("`") + name +
                                    "` (=" + std::to_string(address) +
                                    ") must be aligned to 16 bytes");
    }
    return pointer<T>(name, address, count);
}

inline void bind_live_list(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("live_segments", [](const ConvGeometry& g, std::int64_t samples) {
        return live_segments(samples, g.out_channels, g.pixels(), g.pooled_pixels);
    });
    m.def(
        "live_list",
        [](const LiveArrays& a, Address cursors, DType dtype, int device,
           Address stream) {
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                const ConvGeometry& g = a.geometry;
                LiveList<T> p{};
                fill_list(a, p);
                p.positions =
                    pointer<std::int32_t>("positions", a.positions, a.entries());
                p.cursors = pointer<std::int32_t>("cursors", cursors, a.samples);
                p.segments = static_cast<std::int32_t>(live_segments(
                    a.samples, g.out_channels, g.pixels(), g.pooled_pixels));
                live_list(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("cursors"), py::arg("dtype"),
        py::arg("device"), py::arg("stream"));
}

inline void bind_live_rows(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "live_rows",
        [](const LiveArrays& a, const RowsPlace& rows, bool gather, DType dtype,
           int device, Address stream) {
            by_row_dtype(dtype, [&](auto zero) {
                using Row = decltype(zero);
                LiveRows<Row> p{};
                fill_rows(a, rows, p);
                p.compact = packed_pointer<Row>("compact", rows.compact, a.entries());
                p.positions =
                    pointer<const std::int32_t>("positions", a.positions, a.entries());
                p.width = narrow("out_width", a.geometry.out_width);
                p.window_y = narrow("window_y", a.window_y);
                p.window_x = narrow("window_x", a.window_x);
                if (gather) {
                    gather_live(p, stream_of(device, stream));
                } else {
                    scatter_live(p, stream_of(device, stream));
                }
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("rows"), py::arg("gather"),
        py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

template <typename Row>
std::int64_t splits_of(const ConvGeometry& g, std::int64_t samples) {
    const std::int64_t stride = channel_stride_of<Row>(g.in_channels);
    return weight_splits(samples, g.taps(), g.out_channels, stride,
                         channel_pack<Row>(stride));
}

inline void bind_conv_sizes(pybind11::module_& m) {
    m.def("channel_stride", [](DType dtype, std::int64_t in_channels) {
        return dtype == DType::float64 ? channel_stride_of<double>(in_channels)
                                       : channel_stride_of<float>(in_channels);
    });
    m.def("compact_stride", [](DType dtype, std::int64_t row_count) {
        return dtype == DType::float64 ? compact_stride_of<double>(row_count)
                                       : compact_stride_of<float>(row_count);
    });
    m.def("weight_splits",
          [](DType dtype, const ConvGeometry& g, std::int64_t samples) {
              return dtype == DType::float64 ? splits_of<double>(g, samples)
                                             : splits_of<float>(g, samples);
          });
}

// A pass of the convolution. All take the same arguments, of which pull and push leave
// the last three alone.
template <typename Run>
void bind_pass(pybind11::module_& m, const char* name, const Run& run) {
    namespace py = pybind11;
    m.def(
        name,
        [run](const LiveArrays& a, std::int64_t row_count, Address weight,
              Address compact, Address input, Address partials, std::int64_t splits,
              bool add, DType dtype, int device, Address stream) {
            by_row_dtype(dtype, [&](auto zero) {
                using Row = decltype(zero);
                const ConvGeometry& g = a.geometry;
                GatedConv<Row> p{};
                fill_conv(a, row_count, p);
                p.weight = packed_pointer<const Sum<Row>>("weight", weight, g.taps());
                p.outputs = g.outputs();
                put(p.channel_stride, "in_channels",
                    channel_stride_of<Row>(g.in_channels));
                put(p.compact_stride, "row_count", compact_stride_of<Row>(row_count));
                p.compact = packed_pointer<Row>("compact", compact, a.entries());
                p.input = packed_pointer<Row>("input", input, a.samples);
                p.partials = packed_pointer<Sum<Row>>("partials", partials, splits);
                p.splits = narrow("splits", splits);
                p.add = add;
                run(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("arrays"), py::arg("row_count"), py::arg("weight"),
        py::arg("compact"), py::arg("input"), py::arg("partials") = 0,
        py::arg("splits") = 0, py::arg("add") = false, py::arg("dtype"),
        py::arg("device"), py::arg("stream"));
}

// (partials, gradient, splits, taps, C, C') of a layer.
using LayerSums = std::tuple<Address, Address, std::int64_t, std::int64_t, std::int64_t,
                             std::int64_t>;

template <typename T>
PartialSums<T> partial_sums(const LayerSums& layer) {
    const auto& [partials, gradient, splits, taps, out_channels, in_channels] = layer;
    PartialSums<T> p{};
    p.count = taps * out_channels * in_channels;
    p.partials = pointer<const T>("partials", partials, p.count);
    p.gradient = pointer<T>("gradient", gradient, p.count);
    p.splits = narrow("splits", splits);
    p.taps = narrow("taps", taps);
    p.out_channels = narrow("out_channels", out_channels);
    p.in_channels = narrow("in_channels", in_channels);
    p.channel_stride = narrow("in_channels", channel_stride_of<T>(in_channels));
    return p;
}

inline void bind_sum_partials(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "sum_partials",
        [](const std::vector<LayerSums>& layers, DType dtype, int device,
           Address stream) {
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                SumPartials<T> p{};
                for (std::size_t i = 0; i < layers.size(); ++i) {
                    p.layers[p.layer_count++] = partial_sums<T>(layers[i]);
                    if (p.layer_count < kMostSums && i + 1 < layers.size()) continue;
                    sum_partials(p, stream_of(device, stream));
                    p.layer_count = 0;
                }
            });
        },
        py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("device"),
        py::arg("stream"));
}

inline void bind_conv(pybind11::module_& m) {
    bind_conv_sizes(m);
    bind_live_list(m);
    bind_live_rows(m);
    bind_pass(m, "gated_conv_pull",
              [](const auto& p, Stream s) { gated_conv_pull(p, s); });
    bind_pass(m, "gated_conv_push",
              [](const auto& p, Stream s) { gated_conv_push(p, s); });
    bind_pass(m, "gated_conv_weight",
              [](const auto& p, Stream s) { gated_conv_weight(p, s); });
    bind_sum_partials(m);
}

}  // namespace cuda
}  // namespace fastjac
