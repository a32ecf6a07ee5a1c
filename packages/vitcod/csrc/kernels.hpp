// What every instruction set provides.
#pragma once
#include <cstdint>
#include <string>

#include "layout.hpp"

namespace vitcod {

// A (batch, head, token, channel) tensor of float; the channels are contiguous.
struct View {
    float* data = nullptr;
    std::int64_t batch = 0, head = 0, row = 0;  // strides in elements
    float* at(std::int64_t b, std::int64_t h) const { return data + b * batch + h * head; }
};

// Additive bias (batch, head, query, key); strides may be zero. data == nullptr: none.
struct Bias {
    const float* data = nullptr;
    std::int64_t batch = 0, head = 0, row = 0, key = 0;
};

struct Problem {
    const Layout* layout = nullptr;
    std::int64_t batch = 0, dim = 0, value_dim = 0;
    View q, k, v, out;
    float* lse = nullptr;  // (batch, head, query), may be null
    Bias bias;
    float scale = 1;
};

struct Gradients {
    View grad_out, dq, dk, dv;
    const float* lse = nullptr;
    float* probability = nullptr;  // (batch, entries)
    float* score = nullptr;        // (batch, entries): gradient of the scores
};

struct Kernels {
    // Ordered rows [begin, end) of one (batch, head); begin is a multiple of LANES for tiles.
    void (*forward)(const Problem&, std::int64_t b, std::int64_t h, std::int64_t begin,
                    std::int64_t end);
    void (*backward_rows)(const Problem&, const Gradients&, std::int64_t b, std::int64_t h,
                          std::int64_t begin, std::int64_t end);
    void (*backward_keys)(const Problem&, const Gradients&, std::int64_t b, std::int64_t h,
                          std::int64_t begin, std::int64_t end);
    const char* name;
};

Kernels portable_kernels();
#ifdef VITCOD_X86
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif
bool kernels_available(const std::string& name);
Kernels choose_kernels(const std::string& name);

}  // namespace vitcod
