// Tensors cross as addresses: the caller has checked device, dtype, contiguity and sizes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using elixir::kTile;

namespace {

const elixir::Kernels& kernels(const std::string& isa) {
    const elixir::Kernels* found = elixir::find_kernels(isa.c_str());
    if (!found) throw std::invalid_argument("no kernels named '" + isa + "' on this processor");
    return *found;
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

template <class F> void tiles(int64_t n, int threads, F&& body) {
    const int64_t count = (n + kTile - 1) / kTile;
    auto call = [&](int64_t t) { body(t, t * kTile, n - t * kTile < kTile ? n - t * kTile : kTile); };
    elixir::parallel_for(count, threads, [](void* c, int64_t t) { (*static_cast<decltype(call)*>(c))(t); }, &call);
}

int64_t width(int type) { return type == elixir::kFloat32 ? 4 : 2; }

elixir::AdamW coefficients(double lr, double beta1, double beta2, double eps, double wd, int64_t step, double scale, bool decoupled) {
    const double bias1 = 1 - std::pow(beta1, step), bias2 = 1 - std::pow(beta2, step);
    elixir::AdamW a;
    a.gradient_scale = static_cast<float>(scale);
    a.beta1 = static_cast<float>(beta1);
    a.one_minus_beta1 = static_cast<float>(1 - beta1);
    a.beta2 = static_cast<float>(beta2);
    a.one_minus_beta2 = static_cast<float>(1 - beta2);
    a.inverse_sqrt_bias2 = static_cast<float>(1 / std::sqrt(bias2));
    a.epsilon = static_cast<float>(eps);
    a.decay = static_cast<float>(decoupled ? 1 - lr * wd : 1);
    a.l2 = static_cast<float>(decoupled ? 0 : wd);
    a.step_size = static_cast<float>(lr / bias1);
    return a;
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("BLOCK") = elixir::kBlock;
    m.def("isa", [](const std::string& name) { return std::string(kernels(name).name); }, nb::arg("name") = "");
    m.def("available", [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "portable"})
            if (elixir::find_kernels(name)) names.emplace_back(name);
        return names;
    });
    m.def("adamw", [](uintptr_t p, uintptr_t mo, uintptr_t v, uintptr_t g, int g_type, uintptr_t low, int low_type, int64_t n,
                      double lr, double beta1, double beta2, double eps, double wd, int64_t step, double scale, bool decoupled,
                      int threads, const std::string& isa) {
        const auto& k = kernels(isa);
        const auto a = coefficients(lr, beta1, beta2, eps, wd, step, scale, decoupled);
        nb::gil_scoped_release free;
        const int64_t gw = width(g_type), lw = width(low_type);
        tiles(n, threads, [&](int64_t, int64_t b, int64_t c) {
            k.adamw(a, at<float>(p) + b, at<float>(mo) + b, at<float>(v) + b, at<const char>(g) + b * gw, g_type,
                    low ? at<char>(low) + b * lw : nullptr, low_type, c);
        });
    });
    m.def("adamw8", [](uintptr_t p, uintptr_t mo, uintptr_t v, uintptr_t ms, uintptr_t vs, uintptr_t g, int g_type, uintptr_t low,
                       int low_type, int64_t n, double lr, double beta1, double beta2, double eps, double wd, int64_t step,
                       double scale, bool decoupled, int64_t first, int threads, const std::string& isa) {
        const auto& k = kernels(isa);
        const auto a = coefficients(lr, beta1, beta2, eps, wd, step, scale, decoupled);
        const uint32_t seed = static_cast<uint32_t>(step) * 0x85EBCA6Bu;
        nb::gil_scoped_release free;
        const int64_t gw = width(g_type), lw = width(low_type);
        tiles(n, threads, [&](int64_t, int64_t b, int64_t c) {
            k.adamw8(a, at<float>(p) + b, at<int8_t>(mo) + b, at<uint8_t>(v) + b, at<float>(ms) + b / elixir::kBlock,
                     at<float>(vs) + b / elixir::kBlock, at<const char>(g) + b * gw, g_type,
                     low ? at<char>(low) + b * lw : nullptr, low_type, first + b, seed, c);
        });
    });
    m.def("norm", [](uintptr_t g, int type, int64_t n, int threads, const std::string& isa) {
        const auto& k = kernels(isa);
        const int64_t count = (n + kTile - 1) / kTile;
        std::vector<double> sums(count);
        std::vector<int> bad(count);
        double total = 0;
        int any = 0;
        {
            nb::gil_scoped_release free;
            const int64_t w = width(type);
            tiles(n, threads, [&](int64_t t, int64_t b, int64_t c) { k.norm(at<const char>(g) + b * w, type, c, &sums[t], &bad[t]); });
            for (int64_t t = 0; t < count; ++t) { total += sums[t]; any |= bad[t]; }
        }
        return std::make_tuple(total, any != 0);
    });
    m.def("cast", [](uintptr_t from, int from_type, uintptr_t to, int to_type, int64_t n, int threads, const std::string& isa) {
        const auto& k = kernels(isa);
        nb::gil_scoped_release free;
        const int64_t fw = width(from_type), tw = width(to_type);
        tiles(n, threads, [&](int64_t, int64_t b, int64_t c) { k.cast(at<const char>(from) + b * fw, from_type, at<char>(to) + b * tw, to_type, c); });
    });
    m.def("copy", [](uintptr_t to, uintptr_t from, int64_t bytes, int threads, double until) {
        nb::gil_scoped_release free;
        constexpr int64_t piece = 1 << 20;
        struct Job { char* to; const char* from; int64_t bytes; } job{at<char>(to), at<const char>(from), bytes};
        elixir::parallel_for((bytes + piece - 1) / piece, threads, [](void* c, int64_t i) {
            const Job& j = *static_cast<Job*>(c);
            const int64_t b = i * piece;
            std::memcpy(j.to + b, j.from + b, static_cast<size_t>(j.bytes - b < piece ? j.bytes - b : piece));
        }, &job);
        // of the clock of time.perf_counter: a throttled copy takes the interpreter once, not twice
        if (until > 0) std::this_thread::sleep_until(std::chrono::steady_clock::time_point(std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(until))));
    });
    m.def("stream", [](uintptr_t p, uintptr_t mo, uintptr_t v, uintptr_t g, int64_t n, int threads) {
        // four reads and three writes with next to no arithmetic: the limit of an fp32 AdamW pass
        nb::gil_scoped_release free;
        tiles(n, threads, [&](int64_t, int64_t b, int64_t c) {
            float *__restrict x = at<float>(p) + b, *__restrict y = at<float>(mo) + b, *__restrict z = at<float>(v) + b;
            const float* __restrict w = at<const float>(g) + b;
            for (int64_t i = 0; i < c; ++i) { const float q = w[i]; x[i] += q; y[i] += q; z[i] += q; }
        });
    });
    m.def("belady_loads", [](const std::vector<int64_t>& items, const std::vector<int64_t>& offsets, int64_t chunks, int64_t blocks) {
        nb::gil_scoped_release free;
        return elixir::belady_loads(items.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1, chunks, blocks);
    });
}
