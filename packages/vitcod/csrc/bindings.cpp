// The Python module. Tensors come as addresses and strides, so that torch is not needed to build;
// vitcod.native checks dtypes, devices and shapes before it calls.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Longs = nb::ndarray<const std::int64_t, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::c_contig, nb::device::cpu>;
using Four = std::array<std::int64_t, 4>;  // address and three strides
using Five = std::array<std::int64_t, 5>;

vitcod::View view(const Four& t) {
    return {reinterpret_cast<float*>(static_cast<std::uintptr_t>(t[0])), t[1], t[2], t[3]};
}

void check(bool holds, const char* rule) {
    if (!holds) throw std::invalid_argument(rule);
}

struct Item {
    std::int32_t b, h, begin, end;
};

// Pieces of about equal work: `cost` of a row is its entries plus a constant.
std::vector<Item> pieces(std::int64_t batch, const vitcod::Layout& layout, int threads,
                         bool by_key) {
    constexpr std::int64_t ROW = 6;  // a row costs about as much as this many entries
    const std::int64_t rows = by_key ? layout.keys : layout.queries;
    const auto heads = static_cast<std::int64_t>(layout.heads.size());
    const std::int64_t total = batch * (layout.entries + heads * rows * ROW);
    const std::int64_t wanted = threads == 1 ? total : std::max<std::int64_t>(total / (threads * 6), 1500);
    std::vector<Item> items;
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            const vitcod::Head& head = layout.heads[static_cast<std::size_t>(h)];
            const auto& ptr = by_key ? head.col_ptr : head.ptr;
            const std::int64_t work = ptr[static_cast<std::size_t>(rows)] + rows * ROW;
            const std::int64_t parts =
                std::clamp<std::int64_t>((work + wanted / 2) / wanted, 1, std::max<std::int64_t>(rows / 16, 1));
            std::int64_t from = 0;
            for (std::int64_t part = 1; part <= parts && from < rows; ++part) {
                std::int64_t to = rows;
                if (part < parts) {
                    std::int64_t low = from, high = rows;  // first row past part/parts of the work
                    while (low < high) {
                        const std::int64_t mid = (low + high) / 2;
                        if (ptr[static_cast<std::size_t>(mid)] + mid * ROW < work * part / parts)
                            low = mid + 1;
                        else
                            high = mid;
                    }
                    to = std::min((low + vitcod::LANES - 1) / vitcod::LANES * vitcod::LANES, rows);
                }
                if (to > from)
                    items.push_back({static_cast<std::int32_t>(b), static_cast<std::int32_t>(h),
                                     static_cast<std::int32_t>(from), static_cast<std::int32_t>(to)});
                from = std::max(from, to);
            }
        }
    return items;
}

vitcod::Problem problem(const vitcod::Layout& layout, std::int64_t batch, std::int64_t dim,
                        std::int64_t value_dim, const Four& q, const Four& k, const Four& v,
                        const Four& out, const Five& bias, float scale) {
    check(batch >= 0 && dim >= 1 && value_dim >= 1, "batch and head dimensions must be positive");
    vitcod::Problem p;
    p.layout = &layout;
    p.batch = batch;
    p.dim = dim;
    p.value_dim = value_dim;
    p.q = view(q);
    p.k = view(k);
    p.v = view(v);
    p.out = view(out);
    p.bias = {reinterpret_cast<const float*>(static_cast<std::uintptr_t>(bias[0])), bias[1], bias[2],
              bias[3], bias[4]};
    p.scale = scale;
    return p;
}

void forward(const vitcod::Layout& layout, std::int64_t batch, std::int64_t dim,
             std::int64_t value_dim, const Four& q, const Four& k, const Four& v, const Four& out,
             std::int64_t lse, const Five& bias, float scale, int threads,
             const std::string& instructions) {
    vitcod::Problem p = problem(layout, batch, dim, value_dim, q, k, v, out, bias, scale);
    p.lse = reinterpret_cast<float*>(static_cast<std::uintptr_t>(lse));
    const vitcod::Kernels kernels = vitcod::choose_kernels(instructions);
    nb::gil_scoped_release release;
    const std::vector<Item> items = pieces(batch, layout, threads, false);
    vitcod::in_parallel(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
        const Item& item = items[static_cast<std::size_t>(i)];
        kernels.forward(p, item.b, item.h, item.begin, item.end);
    });
}

void backward(const vitcod::Layout& layout, std::int64_t batch, std::int64_t dim,
              std::int64_t value_dim, const Four& q, const Four& k, const Four& v, const Four& out,
              std::int64_t lse, const Five& bias, const Four& grad_out, const Four& dq,
              const Four& dk, const Four& dv, std::int64_t probability, std::int64_t score,
              float scale, int threads, const std::string& instructions) {
    const vitcod::Problem p = problem(layout, batch, dim, value_dim, q, k, v, out, bias, scale);
    vitcod::Gradients g;
    g.grad_out = view(grad_out);
    g.dq = view(dq);
    g.dk = view(dk);
    g.dv = view(dv);
    g.lse = reinterpret_cast<const float*>(static_cast<std::uintptr_t>(lse));
    g.probability = reinterpret_cast<float*>(static_cast<std::uintptr_t>(probability));
    g.score = reinterpret_cast<float*>(static_cast<std::uintptr_t>(score));
    const vitcod::Kernels kernels = vitcod::choose_kernels(instructions);
    nb::gil_scoped_release release;
    for (const bool by_key : {false, true}) {
        const std::vector<Item> items = pieces(batch, layout, threads, by_key);
        const auto work = by_key ? kernels.backward_keys : kernels.backward_rows;
        vitcod::in_parallel(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
            const Item& item = items[static_cast<std::size_t>(i)];
            work(p, g, item.b, item.h, item.begin, item.end);
        });
    }
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // plans that live until the interpreter ends
    nb::class_<vitcod::Layout>(m, "Layout")
        .def(
            "__init__",
            [](vitcod::Layout* self, std::int64_t heads, std::int64_t queries, std::int64_t keys,
               const Longs& ptr, const Ints& idx, const Ints& order, const Ints& kinds,
               std::int64_t block) {
                check(ptr.size() == static_cast<std::size_t>(heads * queries + 1) &&
                          order.size() == static_cast<std::size_t>(heads * queries) &&
                          kinds.size() == static_cast<std::size_t>(heads),
                      "arrays of the layout have wrong sizes");
                check(ptr.data()[0] == 0, "ptr must start at 0");
                for (std::int64_t i = 0; i < heads * queries; ++i)
                    check(ptr.data()[i] <= ptr.data()[i + 1], "ptr must not descend");
                check(ptr.data()[heads * queries] == static_cast<std::int64_t>(idx.size()),
                      "ptr must end at the number of entries");
                new (self) vitcod::Layout(vitcod::build_layout(heads, queries, keys, ptr.data(),
                                                               idx.data(), order.data(),
                                                               kinds.data(), block));
            },
            "heads"_a, "queries"_a, "keys"_a, "ptr"_a, "idx"_a, "order"_a, "kinds"_a, "block"_a)
        .def_ro("queries", &vitcod::Layout::queries)
        .def_ro("keys", &vitcod::Layout::keys)
        .def_ro("entries", &vitcod::Layout::entries);
    m.def("instructions", [](const std::string& name) -> std::string {
        return vitcod::kernels_available(name) ? vitcod::choose_kernels(name).name : "";
    });
    m.def("use_openmp", &vitcod::use_openmp, "path"_a);
    m.def("forward", &forward);
    m.def("backward", &backward);
}
