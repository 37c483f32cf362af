// What every binding needs: element types, addresses, sizes, the messages for bad ones.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "row_types.h"

namespace fastjac {

// Rows are held in any of these, all else in one of the first two.
enum class DType { float32, float64, float16, bfloat16 };

using Address = std::uintptr_t;

inline void bind_dtype(pybind11::module_& m) {
    pybind11::enum_<DType>(m, "DType", pybind11::module_local())
        .value("float32", DType::float32)
        .value("float64", DType::float64)
        .value("float16", DType::float16)
        .value("bfloat16", DType::bfloat16);
}

// Calls body(float{}) or body(double{}), with the interpreter's lock released.
template <typename Body>
void by_dtype(DType dtype, Body&& body) {
    if (dtype != DType::float32 && dtype != DType::float64) {
        throw std::invalid_argument("`dtype` must be float32 or float64");
    }
    pybind11::gil_scoped_release released;
    if (dtype == DType::float32) {
        body(float{});
    } else {
        body(double{});
    }
}

// The same for kernels that take rows of every type.
template <typename Body>
void by_row_dtype(DType dtype, Body&& body) {
    if (dtype == DType::float32 || dtype == DType::float64) {
        by_dtype(dtype, body);
        return;
    }
    pybind11::gil_scoped_release released;
    if (dtype == DType::float16) {
        body(Half{});
    } else {
        body(BFloat16{});
    }
}

inline void check_size(const char* name, std::int64_t value) {
    if (value >= 0) return;
    throw std::invalid_argument(std::string("`") + name +
                                "` (=" + std::to_string(value) + ") must be >= 0");
}

inline void check_positive(const char* name, std::int64_t value) {
    if (value > 0) return;
    throw std::invalid_argument(std::string("`") + name +
                                "` (=" + std::to_string(value) + ") must be > 0");
}

// The array of `count` elements at `address`; null is allowed only if it is empty.
template <typename T>
T* pointer(const char* name, Address address, std::int64_t count) {
    if (address == 0 && count > 0) {
        throw std::invalid_argument(std::string("`") + name +
                                    "` is null but must hold elements");
    }
    if (address % alignof(T) != 0) {
        throw std::invalid_argument(
            std::string("`") + name + "` (=" + std::to_string(address) +
            ") must be aligned to " + std::to_string(alignof(T)) + " bytes");
    }
    return reinterpret_cast<T*>(address);
}

// The array at `address`, or null if there is none.
template <typename T>
T* optional_pointer(const char* name, Address address) {
    return address == 0 ? nullptr : pointer<T>(name, address, 0);
}

}  // namespace fastjac
