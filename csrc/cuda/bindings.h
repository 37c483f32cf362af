// The CUDA half of the module: argument checks with named messages, nothing else.
//
// Plain C++, included by csrc/bindings.cpp, and by the tests for the stand-in that runs
// the same kernels without a GPU. To add a kernel `foo`: include foo.h, write bind_foo,
// call it in bind. Every function takes dtype, device and stream after its own
// arguments.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "../attack_bindings.h"
#include "../binding_helpers.h"
#include "conv_bindings.h"
#include "deepfool_step.h"
#include "gate_pool.h"
#include "jsma_step.h"
#include "squared_norms.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

namespace py = pybind11;

inline void bind_gate_rows(py::module_& m) {
    m.def(
        "gate_rows",
        [](Address rows, Address gate, Address out, std::int64_t row_count,
           std::int64_t length, std::int64_t period, bool positive, DType dtype,
           int device, Address stream) {
            check_size("row_count", row_count);
            check_size("length", length);
            if (length > 0) check_positive("period", period);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                GateRows<T> p{};
                p.rows = pointer<const T>("rows", rows, row_count * period);
                p.gate = pointer<const T>("gate", gate, length);
                p.out = pointer<T>("out", out, row_count * length);
                p.row_count = row_count;
                p.length = length;
                p.period = period;
                p.kind = positive ? Gate::positive : Gate::factor;
                gate_rows(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("rows"), py::arg("gate"), py::arg("out"),
        py::arg("row_count"), py::arg("length"), py::arg("period"), py::arg("positive"),
        py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

inline void bind_gated_sum(py::module_& m) {
    m.def(
        "gated_sum",
        [](Address tangents, Address gate, Address out, std::int64_t row_count,
           std::int64_t samples, std::int64_t length, bool positive, DType dtype,
           int device, Address stream) {
            check_size("row_count", row_count);
            check_size("samples", samples);
            check_size("length", length);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                const std::int64_t count = samples * length;
                GatedSum<T> p{};
                p.tangents = pointer<const T>("tangents", tangents, row_count * count);
                p.gate = pointer<const T>("gate", gate, count);
                p.out = pointer<T>("out", out, row_count * length);
                p.row_count = row_count;
                p.samples = samples;
                p.length = length;
                p.kind = positive ? Gate::positive : Gate::factor;
                gated_sum(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("tangents"), py::arg("gate"), py::arg("out"),
        py::arg("row_count"), py::arg("samples"), py::arg("length"),
        py::arg("positive"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

// (input, output, extent, stride, padding) of an axis.
using Axis = std::array<std::int64_t, 5>;

inline PoolAxis pool_axis(const Axis& axis) {
    check_positive("axes: input", axis[0]);
    check_positive("axes: output", axis[1]);
    check_size("axes: stride", axis[3]);
    if (axis[3] > 0) check_positive("axes: extent", axis[2]);
    check_size("axes: padding", axis[4]);
    return {axis[0], axis[1], axis[2], axis[3], axis[4]};
}

inline void bind_unpool_rows(py::module_& m) {
    m.def(
        "unpool_rows",
        [](Address rows, Address indices, Address gate, bool positive, Address out,
           const std::array<Axis, 3>& axes, std::int64_t row_count, std::int64_t planes,
           DType dtype, int device, Address stream) {
            check_size("row_count", row_count);
            check_size("planes", planes);
            const PoolAxis checked[] = {pool_axis(axes[0]), pool_axis(axes[1]),
                                        pool_axis(axes[2])};
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                UnpoolRows<T> p{};
                std::copy(checked, checked + 3, p.axes);
                p.rows = pointer<const T>("rows", rows, row_count * planes);
                p.indices = pointer<const std::int64_t>("indices", indices, planes);
                p.gate = optional_pointer<const T>("gate", gate);
                p.kind = positive ? Gate::positive : Gate::factor;
                p.out = pointer<T>("out", out, row_count * planes);
                p.row_count = row_count;
                p.planes = planes;
                unpool_rows(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("rows"), py::arg("indices"), py::arg("gate"),
        py::arg("positive"), py::arg("out"), py::arg("axes"), py::arg("row_count"),
        py::arg("planes"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

inline void bind_pool_tangents(py::module_& m) {
    m.def(
        "pool_tangents",
        [](Address tangents, Address indices, Address gate, bool positive, Address out,
           std::int64_t row_count, std::int64_t planes, std::int64_t pooled,
           std::int64_t input, DType dtype, int device, Address stream) {
            check_size("row_count", row_count);
            check_size("planes", planes);
            check_size("pooled", pooled);
            check_size("input", input);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                const std::int64_t count = planes * pooled;
                PoolTangents<T> p{};
                p.tangents = pointer<const T>("tangents", tangents, row_count * count);
                p.indices = pointer<const std::int64_t>("indices", indices, count);
                p.gate = optional_pointer<const T>("gate", gate);
                p.kind = positive ? Gate::positive : Gate::factor;
                p.out = pointer<T>("out", out, row_count * count);
                p.row_count = row_count;
                p.planes = planes;
                p.pooled = pooled;
                p.input = input;
                pool_tangents(p, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("tangents"), py::arg("indices"), py::arg("gate"),
        py::arg("positive"), py::arg("out"), py::arg("row_count"), py::arg("planes"),
        py::arg("pooled"), py::arg("input"), py::arg("dtype"), py::arg("device"),
        py::arg("stream"));
}

template <typename Row>
SquaredNorms<Row> norms_of(Address rows, Address weights, Address partials,
                           Address norms, std::int64_t row_count, std::int64_t samples,
                           std::int64_t row_length) {
    check_size("samples", samples);
    check_size("row_count", row_count);
    check_size("row_length", row_length);
    const std::int64_t count = samples * row_count * row_length;
    SquaredNorms<Row> p{};
    p.rows = pointer<const Row>("rows", rows, count);
    p.weights = optional_pointer<const double>("weights", weights);
    p.partials = pointer<double>("partials", partials, count);
    p.norms = pointer<double>("norms", norms, samples);
    p.samples = samples;
    p.row_count = row_count;
    p.row_length = row_length;
    return p;
}

// Values of this type, each of so many a sample, at `address`, or nothing.
inline Watched watched(Address address, std::int64_t each, DType dtype) {
    switch (dtype) {
        case DType::float64:
            return {reinterpret_cast<const void*>(address), each, 8, 0x7ffull << 52};
        case DType::float32:
            return {reinterpret_cast<const void*>(address), each, 4, 0xffull << 23};
        case DType::bfloat16:
            return {reinterpret_cast<const void*>(address), each, 2, 0xffull << 7};
        default:
            return {reinterpret_cast<const void*>(address), each, 2, 0x1full << 10};
    }
}

inline void bind_squared_norms(py::module_& m) {
    m.attr("SQUARED_NORMS_PIECE") = kSquaredNormsPiece;
    m.def(
        "squared_norms",
        [](Address rows, Address weights, Address partials, Address norms,
           std::int64_t row_count, std::int64_t samples, std::int64_t row_length,
           DType dtype, int device, Address stream) {
            by_row_dtype(dtype, [&](auto zero) {
                squared_norms(norms_of<decltype(zero)>(rows, weights, partials, norms,
                                                       row_count, samples, row_length),
                              stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("rows"), py::arg("weights"), py::arg("partials"),
        py::arg("norms"), py::arg("row_count"), py::arg("samples"),
        py::arg("row_length"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
    m.def(
        "squared_norms_and_totals",
        [](Address rows, Address partials, Address norms, std::int64_t row_count,
           std::int64_t first, std::int64_t samples, std::int64_t all_samples,
           std::int64_t row_length, bool add, Address watch, std::int64_t watch_each,
           DType watch_dtype, Address totals, DType dtype, int device, Address stream) {
            check_size("first", first);
            check_size("all_samples - first - samples", all_samples - first - samples);
            check_size("watch_each", watch_each);
            by_row_dtype(dtype, [&](auto zero) {
                using Row = decltype(zero);
                SquaredNorms<Row> p = norms_of<Row>(rows, 0, partials, norms, row_count,
                                                    samples, row_length);
                p.norms += first;
                p.add = add;
                p.watched = watched(watch, watch_each, watch_dtype);
                NormTotals<Sum<Row>> all{};
                all.norms = pointer<double>("norms", norms, all_samples);
                all.totals = pointer<Sum<Row>>("totals", totals, 3);
                all.samples = all_samples;
                squared_norms_and_totals(p, all, stream_of(device, stream));
            });
        },
        py::kw_only(), py::arg("rows"), py::arg("partials"), py::arg("norms"),
        py::arg("row_count"), py::arg("first"), py::arg("samples"),
        py::arg("all_samples"), py::arg("row_length"), py::arg("add"), py::arg("watch"),
        py::arg("watch_each"), py::arg("watch_dtype"), py::arg("totals"),
        py::arg("dtype"), py::arg("device"), py::arg("stream"));
}

inline void bind_attack_steps(py::module_& m) {
    def_deepfool_step<int, Address>(
        m,
        [](const auto& p, int device, Address stream) {
            deepfool_step(p, stream_of(device, stream));
        },
        py::arg("device"), py::arg("stream"));
    def_jsma_step<int, Address>(
        m,
        [](const auto& p, int device, Address stream) {
            jsma_step(p, stream_of(device, stream));
        },
        py::arg("device"), py::arg("stream"));
}

inline void bind(py::module_& m) {
    bind_gate_rows(m);
    bind_gated_sum(m);
    bind_unpool_rows(m);
    bind_pool_tangents(m);
    bind_squared_norms(m);
    bind_attack_steps(m);
    bind_conv(m);
}

}  // namespace cuda
}  // namespace fastjac
