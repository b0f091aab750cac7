// Checks of the arrays that Python hands in; each failure names the array, what it is and what it
// must be.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernel_table.hpp"

namespace headrace {

namespace nb = nanobind;
using Array = nb::ndarray<nb::device::cpu>;

constexpr int64_t kAny = -1;

inline std::string shape_of(const Array& array) {
    std::string text = "[";
    for (size_t i = 0; i < array.ndim(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
    }
    return text + "]";
}

[[noreturn]] inline void refuse(const char* name, const std::string& why) {
    throw std::invalid_argument(std::string(name) + " " + why);
}

// An array of these sizes that is contiguous from dimension `first` on.
inline void check_layout(const char* name, const Array& array,
                         std::initializer_list<int64_t> sizes, size_t first) {
    std::string expected = "[";
    bool fits = array.ndim() == sizes.size();
    size_t i = 0;
    for (const int64_t size : sizes) {
        expected += (i == 0 ? "" : ", ") + (size == kAny ? "any" : std::to_string(size));
        if (fits && size != kAny) {
            fits = static_cast<int64_t>(array.shape(i)) == size;
        }
        ++i;
    }
    if (!fits) refuse(name, "has shape " + shape_of(array) + ", not " + expected + "]");
    if (array.size() == 0) return;
    int64_t stride = 1;
    for (size_t d = array.ndim(); d-- > first;) {
        if (array.shape(d) > 1 && array.stride(d) != stride) refuse(name, "is not contiguous");
        stride *= static_cast<int64_t>(array.shape(d));
    }
}

// A contiguous array of these sizes.
inline void check_shape(const char* name, const Array& array,
                        std::initializer_list<int64_t> sizes) {
    check_layout(name, array, sizes, 0);
}

// Contiguous blocks [any, halves, width] that may have something between them.
inline void check_blocks(const char* name, const Array& array, int64_t halves, int64_t width) {
    check_layout(name, array, {kAny, halves, width}, 1);
    if (array.shape(0) > 1 && array.stride(0) < halves * width) refuse(name, "overlap");
}

inline bool has_type(const Array& array, nb::dlpack::dtype_code code, uint8_t bits) {
    const auto type = array.dtype();
    return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
}

inline Type float_type(const char* name, const Array& array) {
    if (has_type(array, nb::dlpack::dtype_code::Float, 32)) return Type::float32;
    if (has_type(array, nb::dlpack::dtype_code::Bfloat, 16)) return Type::bfloat16;
    refuse(name, "is neither float32 nor bfloat16");
}

// Bytes stand for pages of int8 with their scales.
inline Type cache_type(const char* name, const Array& array) {
    if (has_type(array, nb::dlpack::dtype_code::UInt, 8)) return Type::int8;
    return float_type(name, array);
}

inline float* floats(const char* name, const Array& array, std::initializer_list<int64_t> sizes) {
    if (!has_type(array, nb::dlpack::dtype_code::Float, 32)) refuse(name, "is not float32");
    check_shape(name, array, sizes);
    return static_cast<float*>(array.data());
}

inline int32_t* integers(const char* name, const Array& array,
                         std::initializer_list<int64_t> sizes) {
    if (!has_type(array, nb::dlpack::dtype_code::Int, 32)) refuse(name, "is not int32");
    check_shape(name, array, sizes);
    return static_cast<int32_t*>(array.data());
}

inline int64_t* wide_integers(const char* name, const Array& array,
                              std::initializer_list<int64_t> sizes) {
    if (!has_type(array, nb::dlpack::dtype_code::Int, 64)) refuse(name, "is not int64");
    check_shape(name, array, sizes);
    return static_cast<int64_t*>(array.data());
}

inline uint8_t* bytes(const char* name, const Array& array, int64_t size) {
    if (!has_type(array, nb::dlpack::dtype_code::UInt, 8)) refuse(name, "is not uint8");
    check_shape(name, array, {size});
    return static_cast<uint8_t*>(array.data());
}

inline void check_same_type(const char* name, Type type, Type expected) {
    if (type != expected) refuse(name, "does not have the dtype of its partner");
}

// A cache of int8 holds what activations of any type bring, another only those of its own.
inline void check_holds(const char* name, Type type, Type cache) {
    if (cache != Type::int8) check_same_type(name, type, cache);
}

}  // namespace headrace
