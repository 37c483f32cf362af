// The stand-in as a Python module: the bindings that ship, and the device's memory.
#include <pybind11/pybind11.h>

#include "cuda/bindings.h"
#include "runtime.h"

namespace py = pybind11;

namespace fastjac {
namespace cuda {
void run_planted(const char* name, const float* in, float* out, std::int64_t count,
                 std::int64_t blocks);
}  // namespace cuda
}  // namespace fastjac

PYBIND11_MODULE(_cuda_standin, m) {
    py::register_exception<standin::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
    fastjac::bind_dtype(m);
    fastjac::bind_conv_geometry(m);
    fastjac::bind_live_arrays(m);
    fastjac::cuda::bind(m);

    py::enum_<standin::Mode>(m, "Mode", py::module_local())
        .value("input", standin::Mode::input)
        .value("output", standin::Mode::output)
        .value("inout", standin::Mode::inout)
        .value("workspace", standin::Mode::workspace);
    m.def("allocate", standin::allocate);
    m.def("reset_memory", standin::reset_memory);
    m.def("first_unwritten", standin::first_unwritten);
    m.def("allow_any_memory", standin::allow_any_memory);
    m.def("launch_count", standin::launch_count);
    m.def("set_seed", standin::set_seed);
    m.def("set_most_blocks", standin::set_most_blocks);
    m.def(
        "run_planted", [](const std::string& name, std::uintptr_t in,
                          std::uintptr_t out, std::int64_t count, std::int64_t blocks) {
            fastjac::cuda::run_planted(name.c_str(), reinterpret_cast<const float*>(in),
                                       reinterpret_cast<float*>(out), count, blocks);
        });
}
