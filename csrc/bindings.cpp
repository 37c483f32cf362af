// The module fastjac._native: argument checks with named messages, nothing else.
//
// Python owns all memory and passes addresses, sizes and (for CUDA) the stream as
// integers; fastjac/native*.py are the only callers. To change what a function takes,
// raise the interface number in fastjac/_version.py. To add a CPU kernel `foo`: include
// cpu/foo.h, write bind_foo below, call it in PYBIND11_MODULE. CUDA kernels are bound
// in cuda/bindings.h, which the tests compile a second time without a GPU.
#include <pybind11/pybind11.h>

#include <type_traits>

#include "attack_bindings.h"
#include "binding_helpers.h"
#include "build_config.h"
#include "conv_bindings.h"
#include "cpu/deepfool_step.h"
#include "cpu/dispatch.h"
#include "cpu/jsma_step.h"
#include "cpu/max_pool.h"
#include "cpu/scale_push.h"
#include "cpu/squared_norms.h"
#include "live_bindings.h"
#if FASTJAC_WITH_CUDA
#    include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace fastjac {
namespace {

void bind_build(py::module_& m) {
    m.def("isa", [] { return isa_name(isa()); });
    m.def("thread_count", thread_count);
    m.def("supported_isas", [] {
        py::list names;
        for (Isa which : {Isa::baseline, Isa::avx2, Isa::avx512}) {
            if (isa_supported(which)) names.append(isa_name(which));
        }
        return names;
    });
    m.def("build_config", [] {
        py::dict config;
        config["version"] = FASTJAC_VERSION;
        config["interface"] = FASTJAC_INTERFACE;
        config["compiler"] = FASTJAC_COMPILER;
        config["flags"] = FASTJAC_FLAGS;
        config["isas"] = FASTJAC_ISAS;
        config["cuda_compiler"] = FASTJAC_CUDA_COMPILER;
        config["cuda_architectures"] = FASTJAC_CUDA_ARCHITECTURES;
        config["cuda_why_not"] = FASTJAC_CUDA_WHY_NOT;
        return config;
    });
}

void bind_squared_norms(py::module_& m) {
    m.attr("SQUARED_NORMS_PIECE") = kSquaredNormsPiece;
    m.def(
        "squared_norms",
        [](DType dtype, Address rows, Address weights, Address partials, Address norms,
           std::int64_t row_count, std::int64_t samples, std::int64_t row_length) {
            check_size("samples", samples);
            check_size("row_count", row_count);
            check_size("row_length", row_length);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                SquaredNorms<T> p{};
                p.rows =
                    pointer<const T>("rows", rows, samples * row_count * row_length);
                p.weights = optional_pointer<const double>("weights", weights);
                p.partials = pointer<double>("partials", partials,
                                             samples * row_count * row_length);
                p.norms = pointer<double>("norms", norms, samples);
                p.samples = samples;
                p.row_count = row_count;
                p.row_length = row_length;
                FASTJAC_CALL(squared_norms<T>, p);
            });
        },
        py::arg("dtype"), py::arg("rows"), py::arg("weights"), py::arg("partials"),
        py::arg("norms"), py::arg("row_count"), py::arg("samples"),
        py::arg("row_length"));
}

void bind_scale_push(py::module_& m) {
    m.def(
        "scale_push",
        [](DType dtype, Address rows, Address tangents, Address factor, Address pushed,
           Address gradient, std::int64_t row_count, std::int64_t row_length) {
            check_size("row_count", row_count);
            check_size("row_length", row_length);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                const std::int64_t all = row_count * row_length;
                ScalePush<T> p{};
                p.rows = pointer<const T>("rows", rows, all);
                p.tangents = pointer<const T>("tangents", tangents, all);
                p.factor = pointer<const T>("factor", factor, row_length);
                p.pushed = pointer<T>("pushed", pushed, all);
                p.gradient = pointer<T>("gradient", gradient, row_length);
                p.row_count = row_count;
                p.row_length = row_length;
                FASTJAC_CALL(scale_push<T>, p);
            });
        },
        py::arg("dtype"), py::arg("rows"), py::arg("tangents"), py::arg("factor"),
        py::arg("pushed"), py::arg("gradient"), py::arg("row_count"),
        py::arg("row_length"));
}

void bind_max_pool(py::module_& m) {
    m.def(
        "max_pool",
        [](DType dtype, Address input, Address values, Address places,
           std::int64_t planes, std::int64_t height, std::int64_t width) {
            check_size("planes", planes);
            check_size("height", height);
            check_size("width", width);
            const std::int64_t outputs = planes * (height / 2) * (width / 2);
            by_dtype(dtype, [&](auto zero) {
                using T = decltype(zero);
                MaxPool<T> p{};
                p.input = pointer<const T>("input", input, outputs);
                p.values = pointer<T>("values", values, outputs);
                p.places = pointer<std::int64_t>("places", places, outputs);
                p.planes = planes;
                p.height = height;
                p.width = width;
                FASTJAC_CALL(max_pool<T>, p);
            });
        },
        py::kw_only(), py::arg("dtype"), py::arg("input"), py::arg("values"),
        py::arg("places"), py::arg("planes"), py::arg("height"), py::arg("width"));
}

void bind_attack_steps(py::module_& m) {
    def_deepfool_step(m, [](const auto& p) {
        using T = std::remove_pointer_t<decltype(p.x)>;
        FASTJAC_CALL(deepfool_step<T>, p);
    });
    def_jsma_step(m, [](const auto& p) {
        using T = std::remove_pointer_t<decltype(p.x)>;
        FASTJAC_CALL(jsma_step<T>, p);
    });
}

}  // namespace
}  // namespace fastjac

PYBIND11_MODULE(_native, m) {
    fastjac::bind_dtype(m);
    fastjac::bind_build(m);
    fastjac::bind_squared_norms(m);
    fastjac::bind_conv_geometry(m);
    fastjac::bind_live_arrays(m);
    fastjac::bind_gated_conv(m);
    fastjac::bind_gated_head(m);
    fastjac::bind_live_list(m);
    fastjac::bind_live_pull(m);
    fastjac::bind_scale_push(m);
    fastjac::bind_max_pool(m);
    fastjac::bind_attack_steps(m);
#if FASTJAC_WITH_CUDA
    py::module_ cuda = m.def_submodule("cuda");
    cuda.attr("DType") = m.attr("DType");
    cuda.attr("ConvGeometry") = m.attr("ConvGeometry");
    cuda.attr("LiveArrays") = m.attr("LiveArrays");
    cuda.attr("RowsPlace") = m.attr("RowsPlace");
    fastjac::cuda::bind(cuda);
#endif
}
