// Tensors cross as addresses: the caller has checked device, dtype, contiguity and shapes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "describe.h"

namespace nb = nanobind;

namespace {
template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }
}  // namespace

NB_MODULE(_native, m) {
    m.def("best", [] { return std::string(gptr::best_isa()); });
    m.def("available", [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "portable"})
            if (gptr::find_describe(name)) names.emplace_back(name);
        return names;
    });
    m.def("describe", [](uintptr_t rgb, int64_t batch, int64_t height, int64_t width, int64_t stride, int low,
                         int high, uintptr_t colour, uintptr_t tensor, uintptr_t borders, uintptr_t edges,
                         int threads, const std::string& isa) {
        const gptr::Describe run = gptr::find_describe(isa.c_str());
        if (!run) throw std::invalid_argument("no code for '" + isa + "' on this processor");
        if (stride < 2 || height % stride || width % stride)
            throw std::invalid_argument("sides must be multiples of the stride");
        nb::gil_scoped_release free;
        const int64_t nodes = (height / stride) * (width / stride);
        std::atomic<int64_t> next{0};
        const auto work = [&] {
            for (int64_t b; (b = next.fetch_add(1)) < batch;)
                run({at<const uint8_t>(rgb) + b * height * width * 3, height, width}, stride, low, high,
                    {at<float>(colour) + b * nodes * 9, at<float>(tensor) + b * nodes * 3,
                     at<uint8_t>(borders) + b * nodes * 4 * stride, at<uint8_t>(edges) + b * height * width});
        };
        std::vector<std::thread> helpers;
        for (int64_t i = 1; i < std::min<int64_t>(threads, batch); ++i) helpers.emplace_back(work);
        work();
        for (auto& helper : helpers) helper.join();
    });
}
