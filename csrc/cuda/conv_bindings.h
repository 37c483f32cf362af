// Bindings of the gated convolution's CUDA kernels; arrays are addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../binding_helpers.h"
#include "../conv_geometry.h"
#include "gated_conv.h"
#include "live_list.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

inline Stream stream_of(int device, Address stream) {
    return {device, reinterpret_cast<void*>(stream)};
}

inline std::int32_t narrow(const char* name, std::int64_t value) {
    check_size(name, value);
    if (value > 2147483647) {
        throw std::invalid_argument(std::string("`") + name + "` (=" +
                                    std::to_string(value) + ") must be below 2^31");
    }
    return static_cast<std::int32_t>(value);
}

// An array that kernels access 16 bytes at a time.
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
        return live_segments(samples, g.out_channels, g.pixels());
    });
    m.def(
        "live_list",
        [](const ConvGeometry& g, std::int64_t samples, Address route, Address gate,
           bool step, Address pooled_gate, bool pooled_step, Address starts,
           Address channels, Address sources, Address factors, Address positions,
           Address offsets, Address cursors, DType dtype, int device, Address stream) {
            check_size("samples", samples);
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
                p.positions = pointer<std::int32_t>("positions", positions, entries);
                p.offsets = pointer<std::int32_t>("offsets", offsets, entries);
                p.cursors = pointer<std::int32_t>("cursors", cursors, samples);
                p.samples = samples;
                p.channel_count = narrow("out_channels", g.out_channels);
                p.pixels = narrow("pixels", g.pixels());
                p.pooled_pixels = narrow("pooled_pixels", g.pooled_pixels);
                p.width = narrow("out_width", g.out_width);
                p.column_step = narrow("column step", g.stride_x * g.out_channels);
                p.segments = static_cast<std::int32_t>(
                    live_segments(samples, g.out_channels, g.pixels()));
                live_list(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("geometry"), py::arg("samples"), py::arg("route"),
        py::arg("gate"), py::arg("step"), py::arg("pooled_gate"),
        py::arg("pooled_step"), py::arg("starts"), py::arg("channels"),
        py::arg("sources"), py::arg("factors"), py::arg("positions"),
        py::arg("offsets"), py::arg("cursors"), py::arg("dtype"), py::arg("device"),
        py::arg("stream"));
}

inline void bind_live_rows(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "live_rows",
        [](const ConvGeometry& g, bool gather, std::int64_t samples, Address rows,
           Address compact, Address positions, Address factors, std::int64_t row_count,
           std::int64_t row_stride, std::int64_t stride_row, std::int64_t stride_sample,
           std::int64_t stride_channel, std::int64_t stride_pixel, DType dtype,
           int device, Address stream) {
            check_size("samples", samples);
            check_positive("row_count", row_count);
            const std::int64_t entries = samples * g.outputs();
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                LiveRows<T> p{};
                p.rows = pointer<T>("rows", rows, entries);
                p.compact = packed_pointer<T>("compact", compact, entries);
                p.positions =
                    pointer<const std::int32_t>("positions", positions, entries);
                p.factors = pointer<const T>("factors", factors, entries);
                p.samples = samples;
                p.channel_count = narrow("out_channels", g.out_channels);
                p.pooled_pixels = narrow("pooled_pixels", g.pooled_pixels);
                p.row_count = narrow("row_count", row_count);
                p.row_stride = narrow("row_stride", row_stride);
                p.stride_row = stride_row;
                p.stride_sample = stride_sample;
                p.stride_channel = stride_channel;
                p.stride_pixel = stride_pixel;
                if (gather) {
                    gather_live(p, stream_of(device, stream));
                } else {
                    scatter_live(p, stream_of(device, stream));
                }
            });
        },
        py::kw_only(), py::arg("geometry"), py::arg("gather"), py::arg("samples"),
        py::arg("rows"), py::arg("compact"), py::arg("positions"), py::arg("factors"),
        py::arg("row_count"), py::arg("row_stride"), py::arg("stride_row"),
        py::arg("stride_sample"), py::arg("stride_channel"), py::arg("stride_pixel"),
        py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

template <typename T>
GatedConv<T> conv_of(const ConvGeometry& g, std::int64_t samples,
                     std::int64_t row_count) {
    check_size("samples", samples);
    check_positive("row_count", row_count);
    GatedConv<T> p{};
    p.samples = samples;
    p.outputs = g.outputs();
    p.row_count = narrow("row_count", row_count);
    p.out_channels = narrow("out_channels", g.out_channels);
    p.in_height = narrow("in_height", g.in_height);
    p.in_width = narrow("in_width", g.in_width);
    p.out_height = narrow("out_height", g.out_height);
    p.out_width = narrow("out_width", g.out_width);
    p.kernel_y = narrow("kernel_y", g.kernel_y);
    p.kernel_x = narrow("kernel_x", g.kernel_x);
    p.stride_y = narrow("stride_y", g.stride_y);
    p.stride_x = narrow("stride_x", g.stride_x);
    p.padding_y = narrow("padding_y", g.padding_y);
    p.padding_x = narrow("padding_x", g.padding_x);
    p.dilation_y = narrow("dilation_y", g.dilation_y);
    p.dilation_x = narrow("dilation_x", g.dilation_x);
    p.channel_stride = narrow("in_channels", channel_stride_of<T>(g.in_channels));
    p.compact_stride = narrow("row_count", compact_stride_of<T>(row_count));
    return p;
}

template <typename T>
std::int64_t splits_of(const ConvGeometry& g, std::int64_t samples) {
    const std::int64_t stride = channel_stride_of<T>(g.in_channels);
    return weight_splits(samples, g.taps(), g.out_channels, stride,
                         channel_pack<T>(stride));
}

// A pass of the convolution: all three have these arguments, and "weight" two more.
template <typename Run>
void run_conv(const ConvGeometry& g, std::int64_t samples, std::int64_t row_count,
              Address weight, Address starts, Address channels, Address offsets,
              Address compact, Address input, DType dtype, const Run& run) {
    const std::int64_t entries = samples * g.outputs();
    by_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        GatedConv<T> p = conv_of<T>(g, samples, row_count);
        p.weight = packed_pointer<const T>("weight", weight, g.taps());
        p.starts = pointer<const std::int32_t>("starts", starts, samples);
        p.channels = pointer<const std::int32_t>("channels", channels, entries);
        p.offsets = pointer<const std::int32_t>("offsets", offsets, entries);
        p.compact = packed_pointer<T>("compact", compact, entries);
        p.input = packed_pointer<T>("input", input, samples);
        run(p);
    });
}

inline void bind_conv_sizes(pybind11::module_& m) {
    m.def("channel_stride", [](DType dtype, std::int64_t in_channels) {
        return dtype == DType::float32 ? channel_stride_of<float>(in_channels)
                                       : channel_stride_of<double>(in_channels);
    });
    m.def("compact_stride", [](DType dtype, std::int64_t row_count) {
        return dtype == DType::float32 ? compact_stride_of<float>(row_count)
                                       : compact_stride_of<double>(row_count);
    });
    m.def("weight_splits",
          [](DType dtype, const ConvGeometry& g, std::int64_t samples) {
              return dtype == DType::float32 ? splits_of<float>(g, samples)
                                             : splits_of<double>(g, samples);
          });
}

inline void bind_gated_conv_pull(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "gated_conv_pull",
        [](const ConvGeometry& g, std::int64_t samples, std::int64_t row_count,
           Address weight, Address starts, Address channels, Address offsets,
           Address compact, Address input, DType dtype, int device, Address stream) {
            run_conv(g, samples, row_count, weight, starts, channels, offsets, compact,
                     input, dtype,
                     [&](auto& p) { gated_conv_pull(p, stream_of(device, stream)); });
        },
        py::kw_only(), py::arg("geometry"), py::arg("samples"), py::arg("row_count"),
        py::arg("weight"), py::arg("starts"), py::arg("channels"), py::arg("offsets"),
        py::arg("compact"), py::arg("input"), py::arg("dtype"), py::arg("device"),
        py::arg("stream"));
}

inline void bind_gated_conv_push(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "gated_conv_push",
        [](const ConvGeometry& g, std::int64_t samples, std::int64_t row_count,
           Address weight, Address starts, Address channels, Address offsets,
           Address compact, Address input, DType dtype, int device, Address stream) {
            run_conv(g, samples, row_count, weight, starts, channels, offsets, compact,
                     input, dtype,
                     [&](auto& p) { gated_conv_push(p, stream_of(device, stream)); });
        },
        py::kw_only(), py::arg("geometry"), py::arg("samples"), py::arg("row_count"),
        py::arg("weight"), py::arg("starts"), py::arg("channels"), py::arg("offsets"),
        py::arg("compact"), py::arg("input"), py::arg("dtype"), py::arg("device"),
        py::arg("stream"));
}

inline void bind_gated_conv_weight(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "gated_conv_weight",
        [](const ConvGeometry& g, std::int64_t samples, std::int64_t row_count,
           Address weight, Address starts, Address channels, Address offsets,
           Address compact, Address input, Address weight_gradient, Address partials,
           DType dtype, int device, Address stream) {
            run_conv(g, samples, row_count, weight, starts, channels, offsets, compact,
                     input, dtype, [&](auto& p) {
                         using T = std::remove_pointer_t<decltype(p.compact)>;
                         p.weight_gradient =
                             pointer<T>("weight_gradient", weight_gradient, g.taps());
                         p.partials = packed_pointer<T>("partials", partials, g.taps());
                         p.splits = narrow("splits", splits_of<T>(g, samples));
                         gated_conv_weight(p, stream_of(device, stream));
                     });
        },
        py::kw_only(), py::arg("geometry"), py::arg("samples"), py::arg("row_count"),
        py::arg("weight"), py::arg("starts"), py::arg("channels"), py::arg("offsets"),
        py::arg("compact"), py::arg("input"), py::arg("weight_gradient"),
        py::arg("partials"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

inline void bind_conv(pybind11::module_& m) {
    bind_conv_sizes(m);
    bind_live_list(m);
    bind_live_rows(m);
    bind_gated_conv_pull(m);
    bind_gated_conv_push(m);
    bind_gated_conv_weight(m);
}

}  // namespace cuda
}  // namespace fastjac
