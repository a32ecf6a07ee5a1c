// Tensors cross as addresses: the caller has checked device, dtype, contiguity and shapes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;

namespace {

nasa::Shape shape(const std::vector<int64_t>& v) {
    if (v.size() != 16) throw std::invalid_argument("a shape has 16 numbers");
    return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]};
}

const nasa::Kernels& kernels(const std::string& isa) {
    const nasa::Kernels* found = nasa::find_kernels(isa.c_str());
    if (!found) throw std::invalid_argument("no kernels named '" + isa + "' on this processor");
    return *found;
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

}  // namespace

NB_MODULE(_native, m) {
    m.def("isa", [](const std::string& name) { return std::string(kernels(name).name); }, nb::arg("name") = "");
    m.def("available", [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "portable"})
            if (nasa::find_kernels(name)) names.emplace_back(name);
        return names;
    });
    m.def("probe", [](int formula, int64_t steps, const std::string& isa) {
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        return k.probe(formula, steps);
    });
    m.def("adder_forward", [](const std::vector<int64_t>& z, uintptr_t x, uintptr_t w, uintptr_t y, bool exact, int threads, const std::string& isa) {
        const auto s = shape(z);
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        k.adder_forward(s, at<const float>(x), at<const float>(w), at<float>(y), exact, threads);
    });
    m.def("adder_grad_input", [](const std::vector<int64_t>& z, uintptr_t x, uintptr_t w, uintptr_t gy, uintptr_t gx, int threads, const std::string& isa) {
        const auto s = shape(z);
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        k.adder_grad_input(s, at<const float>(x), at<const float>(w), at<const float>(gy), at<float>(gx), threads);
    });
    m.def("sad_int8", [](const std::vector<int64_t>& z, uintptr_t x, uintptr_t w, uintptr_t y, int threads, const std::string& isa) {
        const auto s = shape(z);
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        k.sad_int8(s, at<const int8_t>(x), at<const int8_t>(w), at<int32_t>(y), threads);
    });
    m.def("conv_int8", [](const std::vector<int64_t>& z, uintptr_t x, uintptr_t w, uintptr_t y, int threads, const std::string& isa) {
        const auto s = shape(z);
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        k.conv_int8(s, at<const int8_t>(x), at<const int8_t>(w), at<int32_t>(y), threads);
    });
}
