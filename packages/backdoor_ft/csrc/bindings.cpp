#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

template <typename T, int D>
using Read = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

static void run(Read<std::uint8_t, 4> images, Read<std::int64_t, 2> draws,
                Read<std::uint8_t, 1> stamped, Read<std::uint8_t, 3> pattern,
                Read<std::int32_t, 3> alpha, Read<float, 2> table, Out out, std::int64_t pad,
                int threads, std::string instructions) {
    const auto n = static_cast<std::int64_t>(images.shape(0));
    const auto h = static_cast<std::int64_t>(images.shape(1));
    const auto w = static_cast<std::int64_t>(images.shape(2));
    const auto c = static_cast<std::int64_t>(images.shape(3));
    auto same = [&](auto& a) {
        return static_cast<std::int64_t>(a.shape(0)) == h &&
               static_cast<std::int64_t>(a.shape(1)) == w &&
               static_cast<std::int64_t>(a.shape(2)) == c;
    };
    if (static_cast<std::int64_t>(draws.shape(0)) != n || draws.shape(1) != 3 ||
        static_cast<std::int64_t>(stamped.shape(0)) != n || !same(pattern) || !same(alpha) ||
        static_cast<std::int64_t>(table.shape(0)) != c || table.shape(1) != 256 ||
        static_cast<std::int64_t>(out.shape(0)) != n ||
        static_cast<std::int64_t>(out.shape(1)) != c ||
        static_cast<std::int64_t>(out.shape(2)) != h ||
        static_cast<std::int64_t>(out.shape(3)) != w || pad < 0)
        throw std::invalid_argument("the shapes of the arrays do not belong together");
    const backdoor_ft::Kernel kernel = backdoor_ft::choose(instructions);
    const backdoor_ft::Batch batch{images.data(), draws.data(), stamped.data(), pattern.data(),
                                   alpha.data(),  table.data(), out.data(),     n,
                                   h,             w,            c,              pad};
    nb::gil_scoped_release released;
    if (threads <= 1 || n < 2 * threads) {
        kernel(batch, 0, n);
        return;
    }
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
        pool.emplace_back(kernel, std::cref(batch), n * t / threads, n * (t + 1) / threads);
    for (auto& thread : pool) thread.join();
}

NB_MODULE(_native, m) {
    m.def("fused", &run, "images"_a, "draws"_a, "stamped"_a, "pattern"_a, "alpha"_a, "table"_a,
          "out"_a, "pad"_a, "threads"_a, "instructions"_a);
    m.def("available", &backdoor_ft::available, "name"_a);
}
