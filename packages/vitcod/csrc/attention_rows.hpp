// Sparse attention over ordered rows, forward and backward, for one instruction set.
//
// csr:   one row at a time; K rows are visited through the row's key list, W keys per step, so that
//        W dot products are reduced together; scores stay in a buffer between softmax and V.
// lanes: 32 rows side by side in the lanes of two vectors over the union of their keys; nothing is
//        reduced across lanes, but slots outside the mask are computed and thrown away.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace vitcod {
namespace {

struct Free {
    void operator()(float* p) const { std::free(p); }
};

// Scratch memory of a thread, aligned to cache lines; grows, never shrinks within a call.
class Buffer {
   public:
    float* get(std::int64_t floats) {
        if (floats > size_) {
            const std::size_t bytes = (static_cast<std::size_t>(floats) * 4 + 127) / 64 * 64;
            data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
            if (!data_) throw std::bad_alloc();
            size_ = floats;
        }
        return data_.get();
    }

   private:
    std::unique_ptr<float, Free> data_;
    std::int64_t size_ = 0;
};

struct Scratch {
    Buffer query, grad, output, scores, second, k, v, q, o, state, tile, tile_scores, tile_out;
};
thread_local Scratch scratch;

VITCOD_INLINE std::int64_t padded(std::int64_t dim) { return (dim + W - 1) / W * W; }

// Rows that vector loads may walk: channels padded to W, no cache line split, no set aliasing.
struct Rows {
    const float* data;
    std::int64_t stride;
};

bool walks_well(const float* data, std::int64_t stride, std::int64_t dim) {
    if (dim % W) return false;
    if (reinterpret_cast<std::uintptr_t>(data) % 64 || stride % 16) return W <= 4;
    // Rows at a multiple of 1 KiB that are no longer than it fall into a quarter of L1's sets.
    return stride == dim || stride % 256 != 0;
}

Rows rows_of(const float* data, std::int64_t stride, std::int64_t count, std::int64_t dim,
             Buffer& buffer) {
    if (walks_well(data, stride, dim)) return {data, stride};
    const std::int64_t wide = padded(dim);
    float* to = buffer.get(count * wide);
    for (std::int64_t i = 0; i < count; ++i) {
        std::copy_n(data + i * stride, dim, to + i * wide);
        std::fill(to + i * wide + dim, to + (i + 1) * wide, 0.f);
    }
    return {to, wide};
}

// Dot products of the row `q` with the rows idx[0..K) of `x`, lane l: key l (mod K).
// NC > 0: vectors per row, known; 0: `vectors` of them.
template <int K, int NC>
VITCOD_INLINE V dots(const float* q, Rows x, const std::int32_t* idx, std::int64_t vectors) {
    V acc[K];
    if constexpr (NC > 0) {
        V qv[NC];
        UNROLL for (int c = 0; c < NC; ++c) qv[c] = load<V>(q + c * W);
        UNROLL for (int k = 0; k < K; ++k) {
            const float* row = x.data + idx[k] * x.stride;
            acc[k] = qv[0] * load<V>(row);
            UNROLL for (int c = 1; c < NC; ++c) acc[k] += qv[c] * load<V>(row + c * W);
        }
    } else {
        const float* row[K];
        UNROLL for (int k = 0; k < K; ++k) {
            row[k] = x.data + idx[k] * x.stride;
            acc[k] = V{};
        }
        for (std::int64_t c = 0; c < vectors; ++c) {
            const V qv = load<V>(q + c * W);
            UNROLL for (int k = 0; k < K; ++k) acc[k] += qv * load<V>(row[k] + c * W);
        }
    }
    return sums<K>(acc);
}

// Dot products with n gathered rows into s (room for n + W); the lanes after n hold `rest`.
template <int NC>
VITCOD_INLINE V all_dots(const float* q, Rows x, const std::int32_t* idx, std::int64_t n,
                         std::int64_t vectors, float rest, float* s) {
    const I lane = lane_numbers();
    V most = splat<V>(NINF);
    std::int64_t i = 0;
    for (; i + W <= n; i += W) {
        const V r = dots<W, NC>(q, x, idx + i, vectors);
        store(s + i, r);
        most = larger(most, r);
    }
    if (const auto left = static_cast<std::int32_t>(n - i)) {
        V r;
        if constexpr (W >= 16) {
            r = left > 8   ? dots<16, NC>(q, x, idx + i, vectors)
                : left > 4 ? dots<8, NC>(q, x, idx + i, vectors)
                           : dots<4, NC>(q, x, idx + i, vectors);
        } else if constexpr (W >= 8) {
            r = left > 4 ? dots<8, NC>(q, x, idx + i, vectors) : dots<4, NC>(q, x, idx + i, vectors);
        } else {
            r = dots<4, NC>(q, x, idx + i, vectors);
        }
        r = lane < left ? r : splat<V>(rest);
        store(s + i, r);
        most = larger(most, r);
    }
    return most;
}

// out[0..G*W) (+)= sum of p[i] * x[idx[i]], channels from `from` on.
template <int G, bool ADD>
VITCOD_INLINE void weighted(const float* p, Rows x, const std::int32_t* idx, std::int64_t n,
                            std::int64_t from, float* out, float factor) {
    constexpr int SETS = G <= 4 && W >= 16 ? 2 : 1;
    V acc[SETS][G];
    UNROLL for (int t = 0; t < SETS; ++t)
        UNROLL for (int g = 0; g < G; ++g) acc[t][g] = V{};
    if constexpr (ADD)
        UNROLL for (int g = 0; g < G; ++g) acc[0][g] = load<V>(out + from + g * W) * factor;
    std::int64_t i = 0;
    for (; i + SETS <= n; i += SETS)
        UNROLL for (int t = 0; t < SETS; ++t) {
            const float* row = x.data + idx[i + t] * x.stride + from;
            const V pv = splat<V>(p[i + t]);
            UNROLL for (int g = 0; g < G; ++g) acc[t][g] += pv * load<V>(row + g * W);
        }
    if (i < n) {
        const float* row = x.data + idx[i] * x.stride + from;
        const V pv = splat<V>(p[i]);
        UNROLL for (int g = 0; g < G; ++g) acc[0][g] += pv * load<V>(row + g * W);
    }
    UNROLL for (int g = 0; g < G; ++g) {
        V r = acc[0][g];
        if constexpr (SETS == 2) r += acc[1][g];
        if constexpr (!ADD) r = r * factor;
        store(out + from + g * W, r);
    }
}

// ADD: out = out * factor + sum; otherwise out = sum * factor.
template <bool ADD>
VITCOD_INLINE void weighted_sum(const float* p, Rows x, const std::int32_t* idx, std::int64_t n,
                                std::int64_t vectors, float* out, float factor) {
    std::int64_t c = 0;
    for (; c + 4 <= vectors; c += 4) weighted<4, ADD>(p, x, idx, n, c * W, out, factor);
    for (; c + 2 <= vectors; c += 2) weighted<2, ADD>(p, x, idx, n, c * W, out, factor);
    if (c < vectors) weighted<1, ADD>(p, x, idx, n, c * W, out, factor);
}

void add_bias(const float* bias, std::int64_t key, const std::int32_t* idx, std::int64_t n,
              float* s) {
    for (std::int64_t i = 0; i < n; ++i) s[i] += bias[idx[i] * key];
}

// Largest of s[0..n); the lanes after n hold -inf.
VITCOD_INLINE float largest(const float* s, std::int64_t n) {
    V most = splat<V>(NINF);
    for (std::int64_t i = 0; i < n; i += W) most = larger(most, load<V>(s + i));
    return maximum(most);
}

// s = exp(s - m), returns the sum.
VITCOD_INLINE float exponentials(float* s, std::int64_t n, float m) {
    V total{};
    const V mv = splat<V>(m);
    for (std::int64_t i = 0; i < n; i += W) {
        const V e = exponential<V, I>(load<V>(s + i) - mv);
        store(s + i, e);
        total += e;
    }
    return sum(total);
}

void scaled_row(const float* from, std::int64_t dim, std::int64_t wide, float scale, float* to) {
    for (std::int64_t c = 0; c < dim; ++c) to[c] = from[c] * scale;
    for (std::int64_t c = dim; c < wide; ++c) to[c] = 0;
}

template <int NC>
void forward_csr(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t begin,
                 std::int64_t end) {
    const Layout& layout = *p.layout;
    const Head& head = layout.heads[static_cast<std::size_t>(h)];
    const std::int64_t wide = padded(p.dim), value_wide = padded(p.value_dim);
    const std::int64_t vectors = wide / W, value_vectors = value_wide / W;
    const Rows k = rows_of(p.k.at(b, h), p.k.row, layout.keys, p.dim, scratch.k);
    const Rows v = rows_of(p.v.at(b, h), p.v.row, layout.keys, p.value_dim, scratch.v);
    const float* q = p.q.at(b, h);
    float* out = p.out.at(b, h);
    float* lse = p.lse ? p.lse + (b * static_cast<std::int64_t>(layout.heads.size()) + h) *
                                     layout.queries
                       : nullptr;
    const float* bias = p.bias.data ? p.bias.data + b * p.bias.batch + h * p.bias.head : nullptr;
    float* query = scratch.query.get(wide);
    float* s = scratch.scores.get(layout.keys + 2 * LANES);
    const bool direct = p.value_dim == value_wide;
    float* padded_row = scratch.output.get(value_wide);

    auto finish = [&](std::int64_t r, float m, float total) {
        if (lse) lse[r] = total == 0 ? NINF : m + std::log(total);
    };
    if (head.blocks == 1) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t r = head.row[static_cast<std::size_t>(i)];
            const std::int32_t first = head.ptr[static_cast<std::size_t>(i)];
            const std::int64_t n = head.ptr[static_cast<std::size_t>(i) + 1] - first;
            const std::int32_t* idx = head.idx.data() + first;
            scaled_row(q + r * p.q.row, p.dim, wide, p.scale, query);
            float m = maximum(all_dots<NC>(query, k, idx, n, vectors, NINF, s));
            if (bias) {
                add_bias(bias + r * p.bias.row, p.bias.key, idx, n, s);
                m = largest(s, n);
            }
            float* to = direct ? out + r * p.out.row : padded_row;
            if (n == 0 || m == NINF) {
                // No key, or a maximum that lost a NaN: then the sum is NaN, and so is the output.
                const float total = n == 0 ? 0.f : exponentials(s, n, 0.f);
                std::fill_n(to, value_wide, total);
                finish(r, NINF, total);
            } else {
                const float total = exponentials(s, n, m);
                weighted_sum<false>(s, v, idx, n, value_vectors, to, 1.f / total);
                finish(r, m, total);
            }
            if (!direct) std::copy_n(to, p.value_dim, out + r * p.out.row);
        }
        return;
    }
    // Column blocks: GROUP rows pass over one block of keys, which then stays in the first cache.
    constexpr std::int64_t GROUP = 64;
    float* state = scratch.state.get(GROUP * (value_wide + 2));
    float* queries = scratch.q.get(GROUP * wide);
    for (std::int64_t g = begin; g < end; g += GROUP) {
        const std::int64_t rows = std::min(GROUP, end - g);
        float *most = state + GROUP * value_wide, *total = most + GROUP;
        std::fill_n(state, GROUP * value_wide, 0.f);
        std::fill_n(most, GROUP, NINF);
        std::fill_n(total, GROUP, 0.f);
        for (std::int64_t i = 0; i < rows; ++i)
            scaled_row(q + head.row[static_cast<std::size_t>(g + i)] * p.q.row, p.dim, wide,
                       p.scale, queries + i * wide);
        for (int block = 0; block < head.blocks; ++block)
            for (std::int64_t i = 0; i < rows; ++i) {
                const std::int32_t* segment = head.segment.data() + (g + i) * (head.blocks + 1);
                const std::int64_t n = segment[block + 1] - segment[block];
                if (n == 0) continue;
                const std::int32_t* idx = head.idx.data() + segment[block];
                float m = maximum(
                    all_dots<NC>(queries + i * wide, k, idx, n, vectors, NINF, s));
                if (bias) {
                    const std::int64_t r = head.row[static_cast<std::size_t>(g + i)];
                    add_bias(bias + r * p.bias.row, p.bias.key, idx, n, s);
                    m = largest(s, n);
                }
                if (m == NINF) {
                    total[i] += exponentials(s, n, 0.f);  // 0, or NaN
                    continue;
                }
                const float before = most[i], now = m > before ? m : before;
                const float factor = std::exp(before - now);  // 0 at the first block
                total[i] = total[i] * factor + exponentials(s, n, now);
                weighted_sum<true>(s, v, idx, n, value_vectors, state + i * value_wide, factor);
                most[i] = now;
            }
        for (std::int64_t i = 0; i < rows; ++i) {
            const std::int64_t r = head.row[static_cast<std::size_t>(g + i)];
            // A total of NaN must reach the output.
            const float inverse = total[i] == 0 ? 0.f : 1.f / total[i];
            for (std::int64_t c = 0; c < p.value_dim; ++c)
                out[r * p.out.row + c] = state[i * value_wide + c] * inverse;
            finish(r, most[i], total[i]);
        }
    }
}

// Tiles of LANES rows in R vectors; a broadcast number of a key serves all R.
void forward_lanes(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t begin,
                   std::int64_t end) {
    constexpr int R = LANES / 16, KEYS = W >= 16 ? 8 : 2, CHANNELS = W >= 16 ? 8 : 2;
    constexpr std::int64_t BLOCK = 128;
    const Layout& layout = *p.layout;
    const Head& head = layout.heads[static_cast<std::size_t>(h)];
    const float *q = p.q.at(b, h), *k = p.k.at(b, h), *v = p.v.at(b, h);
    float* out = p.out.at(b, h);
    float* lse = p.lse ? p.lse + (b * static_cast<std::int64_t>(layout.heads.size()) + h) *
                                     layout.queries
                       : nullptr;
    const std::int64_t dim = p.dim, value_dim = p.value_dim;
    const std::int64_t room = (value_dim + CHANNELS - 1) / CHANNELS * CHANNELS;
    // The last channels are read in a whole step: without room for it, from padded copies.
    const Rows vr = room == value_dim
                        ? Rows{v, p.v.row}
                        : [&] {
                              float* to = scratch.v.get(layout.keys * room);
                              for (std::int64_t j = 0; j < layout.keys; ++j) {
                                  std::copy_n(v + j * p.v.row, value_dim, to + j * room);
                                  std::fill(to + j * room + value_dim, to + (j + 1) * room, 0.f);
                              }
                              return Rows{to, room};
                          }();
    float* qt = scratch.tile.get(dim * LANES);
    float* ot = scratch.tile_out.get(room * LANES);
    float* s = scratch.tile_scores.get((BLOCK + LANES) * LANES);
    const I16 bit = {1,   2,   4,    8,    16,   32,   64,    128,
                     256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    static_assert(LANES % 16 == 0 && LANES <= 32, "masks are 32 bits");
    for (std::int64_t first = begin; first < end; first += LANES) {
        const auto tile = static_cast<std::size_t>(first / LANES);
        const std::int64_t rows = std::min<std::int64_t>(LANES, end - first);
        std::fill_n(ot, room * LANES, 0.f);
        for (std::int64_t l = 0; l < LANES; ++l) {
            const float* from =
                q + head.row[static_cast<std::size_t>(first + std::min(l, rows - 1))] * p.q.row;
            for (std::int64_t c = 0; c < dim; ++c) qt[c * LANES + l] = from[c] * p.scale;
        }
        V16 most[R], total[R], base[R], factor[R];
        UNROLL for (int r = 0; r < R; ++r) {
            most[r] = splat<V16>(NINF);
            total[r] = V16{};
        }
        const std::int32_t to = head.tile_ptr[tile + 1];
        for (std::int32_t u0 = head.tile_ptr[tile]; u0 < to; u0 += BLOCK) {
            const std::int64_t n = std::min<std::int64_t>(BLOCK, to - u0);
            const std::int32_t* keys = head.tile_key.data() + u0;
            const std::uint32_t* masks = head.tile_mask.data() + u0;
            V16 here[R];
            UNROLL for (int r = 0; r < R; ++r) here[r] = most[r];
            for (std::int64_t u = 0; u < n; u += KEYS) {
                V16 acc[KEYS][R];
                const float* row[KEYS];
                UNROLL for (int x = 0; x < KEYS; ++x) {
                    UNROLL for (int r = 0; r < R; ++r) acc[x][r] = V16{};
                    row[x] = k + keys[u + x] * p.k.row;
                }
                for (std::int64_t c = 0; c < dim; ++c) {
                    V16 qv[R];
                    UNROLL for (int r = 0; r < R; ++r) qv[r] = load<V16>(qt + c * LANES + r * 16);
                    UNROLL for (int x = 0; x < KEYS; ++x) {
                        const V16 kv = splat<V16>(row[x][c]);
                        UNROLL for (int r = 0; r < R; ++r) acc[x][r] += qv[r] * kv;
                    }
                }
                UNROLL for (int x = 0; x < KEYS; ++x) {
                    // Keys after n belong to the next tile: nothing of them is kept.
                    const std::uint32_t mask = u + x < n ? masks[u + x] : 0;
                    UNROLL for (int r = 0; r < R; ++r) {
                        const auto half = static_cast<std::int32_t>(mask >> (16 * r) & 0xFFFF);
                        const V16 masked =
                            ((I16{} + half) & bit) != 0 ? acc[x][r] : splat<V16>(NINF);
                        store(s + (u + x) * LANES + r * 16, masked);
                        here[r] = larger(here[r], masked);
                    }
                }
            }
            UNROLL for (int r = 0; r < R; ++r) {
                base[r] = here[r] == NINF ? V16{} : here[r];  // rows without a key so far
                factor[r] = exponential<V16, I16>(most[r] - base[r]);
                total[r] = total[r] * factor[r];
                most[r] = here[r];
            }
            for (std::int64_t u = 0; u < n; ++u)
                UNROLL for (int r = 0; r < R; ++r) {
                    float* at = s + u * LANES + r * 16;
                    const V16 e = exponential<V16, I16>(load<V16>(at) - base[r]);
                    store(at, e);
                    total[r] += e;
                }
            for (std::int64_t c = 0; c < room; c += CHANNELS) {
                V16 acc[CHANNELS][R];
                UNROLL for (int x = 0; x < CHANNELS; ++x)
                    UNROLL for (int r = 0; r < R; ++r)
                        acc[x][r] = load<V16>(ot + (c + x) * LANES + r * 16) * factor[r];
                for (std::int64_t u = 0; u < n; ++u) {
                    const float* row = vr.data + keys[u] * vr.stride + c;
                    V16 e[R];
                    UNROLL for (int r = 0; r < R; ++r) e[r] = load<V16>(s + u * LANES + r * 16);
                    UNROLL for (int x = 0; x < CHANNELS; ++x) {
                        const V16 vv = splat<V16>(row[x]);
                        UNROLL for (int r = 0; r < R; ++r) acc[x][r] += e[r] * vv;
                    }
                }
                UNROLL for (int x = 0; x < CHANNELS; ++x)
                    UNROLL for (int r = 0; r < R; ++r)
                        store(ot + (c + x) * LANES + r * 16, acc[x][r]);
            }
        }
        UNROLL for (int r = 0; r < R; ++r) {
            const V16 inverse = total[r] == 0 ? V16{} : 1.f / total[r];
            for (std::int64_t c = 0; c < value_dim; ++c) {
                float* at = ot + c * LANES + r * 16;
                store(at, load<V16>(at) * inverse);
            }
        }
        for (std::int64_t l = 0; l < rows; ++l) {
            const std::int64_t r = head.row[static_cast<std::size_t>(first + l)];
            float* row = out + r * p.out.row;
            for (std::int64_t c = 0; c < value_dim; ++c) row[c] = ot[c * LANES + l];
            const float all = total[l / 16][l % 16];
            if (lse) lse[r] = all == 0 ? NINF : most[l / 16][l % 16] + std::log(all);
        }
    }
}

constexpr int KNOWN = 64 / W;  // vectors of the usual head dimension

void forward_rows(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t begin,
                  std::int64_t end) {
    if (p.layout->heads[static_cast<std::size_t>(h)].kind == lanes && !p.bias.data)
        return forward_lanes(p, b, h, begin, end);
    if (padded(p.dim) == 64) return forward_csr<KNOWN>(p, b, h, begin, end);
    if (padded(p.dim) == 32) return forward_csr<KNOWN / 2>(p, b, h, begin, end);
    forward_csr<0>(p, b, h, begin, end);
}

// Probabilities, gradients of the scores and dQ, a row at a time.
template <int NC>
void backward_rows_known(const Problem& p, const Gradients& g, std::int64_t b, std::int64_t h,
                         std::int64_t begin, std::int64_t end) {
    const Layout& layout = *p.layout;
    const Head& head = layout.heads[static_cast<std::size_t>(h)];
    const std::int64_t wide = padded(p.dim), value_wide = padded(p.value_dim);
    const Rows k = rows_of(p.k.at(b, h), p.k.row, layout.keys, p.dim, scratch.k);
    const Rows v = rows_of(p.v.at(b, h), p.v.row, layout.keys, p.value_dim, scratch.v);
    const std::int64_t bh = b * static_cast<std::int64_t>(layout.heads.size()) + h;
    const float* bias = p.bias.data ? p.bias.data + b * p.bias.batch + h * p.bias.head : nullptr;
    float *query = scratch.query.get(wide), *grad = scratch.grad.get(value_wide);
    float* dq = scratch.output.get(wide);
    float* s = scratch.scores.get(layout.keys + 2 * LANES);
    float* t = scratch.second.get(layout.keys + 2 * LANES);
    for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t r = head.row[static_cast<std::size_t>(i)];
        const std::int32_t first = head.ptr[static_cast<std::size_t>(i)];
        const std::int64_t n = head.ptr[static_cast<std::size_t>(i) + 1] - first;
        const std::int32_t* idx = head.idx.data() + first;
        const float* go = g.grad_out.at(b, h) + r * g.grad_out.row;
        const float lse = g.lse[bh * layout.queries + r];
        float* to = g.dq.at(b, h) + r * g.dq.row;
        float* probability = g.probability + b * layout.entries + head.first + first;
        float* score = g.score + b * layout.entries + head.first + first;
        if (n == 0 || lse == NINF) {
            std::fill_n(probability, n, 0.f);
            std::fill_n(score, n, 0.f);
            std::fill_n(to, p.dim, 0.f);
            continue;
        }
        scaled_row(p.q.at(b, h) + r * p.q.row, p.dim, wide, p.scale, query);
        scaled_row(go, p.value_dim, value_wide, 1.f, grad);
        all_dots<NC>(query, k, idx, n, wide / W, NINF, s);
        if (bias) add_bias(bias + r * p.bias.row, p.bias.key, idx, n, s);
        exponentials(s, n, lse);
        all_dots<0>(grad, v, idx, n, value_wide / W, 0.f, t);
        // sum of p dP equals dO . O; taken from the same products it cancels them exactly.
        V products{};
        for (std::int64_t e = 0; e < n; e += W) products += load<V>(s + e) * load<V>(t + e);
        const float delta = sum(products);
        const V dv = splat<V>(delta);
        for (std::int64_t e = 0; e < n; e += W)
            store(t + e, load<V>(s + e) * (load<V>(t + e) - dv));
        std::copy_n(s, n, probability);
        std::copy_n(t, n, score);
        weighted_sum<false>(t, k, idx, n, wide / W, dq, p.scale);
        std::copy_n(dq, p.dim, to);
    }
}

void backward_rows(const Problem& p, const Gradients& g, std::int64_t b, std::int64_t h,
                   std::int64_t begin, std::int64_t end) {
    if (padded(p.dim) == 64) return backward_rows_known<KNOWN>(p, g, b, h, begin, end);
    backward_rows_known<0>(p, g, b, h, begin, end);
}

// dK and dV, a key at a time over the transposed plan: no two threads write the same row.
void backward_keys(const Problem& p, const Gradients& g, std::int64_t b, std::int64_t h,
                   std::int64_t begin, std::int64_t end) {
    const Layout& layout = *p.layout;
    const Head& head = layout.heads[static_cast<std::size_t>(h)];
    const std::int64_t wide = padded(p.dim), value_wide = padded(p.value_dim);
    const Rows q = rows_of(p.q.at(b, h), p.q.row, layout.queries, p.dim, scratch.k);
    const Rows go =
        rows_of(g.grad_out.at(b, h), g.grad_out.row, layout.queries, p.value_dim, scratch.v);
    const float* probability = g.probability + b * layout.entries + head.first;
    const float* score = g.score + b * layout.entries + head.first;
    float* s = scratch.scores.get(layout.queries + 2 * LANES);
    float* t = scratch.second.get(layout.queries + 2 * LANES);
    float* sum_row = scratch.output.get(std::max(wide, value_wide));
    for (std::int64_t j = begin; j < end; ++j) {
        const std::int32_t first = head.col_ptr[static_cast<std::size_t>(j)];
        const std::int64_t n = head.col_ptr[static_cast<std::size_t>(j) + 1] - first;
        const std::int32_t* row = head.col_row.data() + first;
        const std::int32_t* entry = head.col_entry.data() + first;
        for (std::int64_t e = 0; e < n; ++e) {
            s[e] = probability[entry[e]];
            t[e] = score[entry[e]];
        }
        weighted_sum<false>(t, q, row, n, wide / W, sum_row, p.scale);
        std::copy_n(sum_row, p.dim, g.dk.at(b, h) + j * g.dk.row);
        weighted_sum<false>(s, go, row, n, value_wide / W, sum_row, 1.f);
        std::copy_n(sum_row, p.value_dim, g.dv.at(b, h) + j * g.dv.row);
    }
}

Kernels make_kernels() { return {forward_rows, backward_rows, backward_keys, VITCOD_NAME}; }

}  // namespace
}  // namespace vitcod
