// What every binding needs: element types, addresses, sizes, the messages for bad ones.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastjac {

enum class DType { float32, float64 };

using Address = std::uintptr_t;

inline void bind_dtype(pybind11::module_& m) {
    pybind11::enum_<DType>(m, "DType", pybind11::module_local())
        .value("float32", DType::float32)
        .value("float64", DType::float64);
}

// Calls body(float{}) or body(double{}), with the interpreter's lock released.
template <typename Body>
void by_dtype(DType dtype, Body&& body) {
    pybind11::gil_scoped_release released;
    if (dtype == DType::float32) {
        body(float{});
    } else {
        body(double{});
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
