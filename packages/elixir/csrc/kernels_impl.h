// The loops. Plain C++ that the compiler vectorises for the flags of the including file; without
// contraction and with IEEE division and square root, so all files compute the same bits.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace elixir {
namespace {

inline float from_bits(uint32_t u) {
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline uint32_t to_bits(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return u;
}
inline float load_bf16(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }
inline uint16_t store_bf16(float f) {  // round to nearest even; NaN stays NaN
    const uint32_t u = to_bits(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? ((u >> 16) | 0x40u) : rounded);
}
inline float load_fp16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
    const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x70000000u : 0u;  // infinity and NaN
    const float value = from_bits(magnitude) * 0x1p112f;  // exact, subnormals included
    return from_bits((special ? (magnitude | 0x7f800000u) : to_bits(value)) | sign);
}
inline uint16_t store_fp16(float f) {  // round to nearest even, overflow to infinity
    const uint32_t u = to_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t small = to_bits(from_bits(a) + 0.5f) - 0x3f000000u;  // the adder rounds at 2^-24
    const uint32_t big = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t h = a >= 0x477ff000u ? big : (a < 0x38800000u ? small : normal);
    return static_cast<uint16_t>(h | sign);
}

struct None {
    using type = float;
    static float load(const float*) { return 0; }
    static void store(float*, float) {}
};
struct F32 {
    using type = float;
    static float load(const float* x) { return *x; }
    static void store(float* x, float y) { *x = y; }
};
struct B16 {
    using type = uint16_t;
    static float load(const uint16_t* x) { return load_bf16(*x); }
    static void store(uint16_t* x, float y) { *x = store_bf16(y); }
};
struct F16 {
    using type = uint16_t;
    static float load(const uint16_t* x) { return load_fp16(*x); }
    static void store(uint16_t* x, float y) { *x = store_fp16(y); }
};

template <class G, class L>
void adamw_loop(const AdamW& a, float* __restrict p, float* __restrict m, float* __restrict v,
                const typename G::type* __restrict g, typename L::type* __restrict low, int64_t n) {
    const AdamW k = a;
    constexpr bool has_low = !std::is_same<L, None>::value;
    for (int64_t i = 0; i < n; ++i) {
        const float q = p[i];
        const float x = G::load(g + i) * k.gradient_scale + k.l2 * q;
        const float mi = k.beta1 * m[i] + k.one_minus_beta1 * x;
        const float vi = k.beta2 * v[i] + (k.one_minus_beta2 * x) * x;
        const float d = std::sqrt(vi) * k.inverse_sqrt_bias2 + k.epsilon;
        const float r = q * k.decay - (k.step_size * mi) / d;
        m[i] = mi;
        v[i] = vi;
        p[i] = r;
        if (has_low) L::store(low + i, r);
    }
}

// 8-bit moments. A code counts eighths of an octave down from the block's scale: it is the float's exponent and
// first three mantissa bits, so both directions are additions and shifts. Rounding adds a hash of (element, step) to
// the bits that are cut off: on average nothing is lost, and a moment that changes by less than a code still moves.
constexpr uint32_t kCut = 20, kRest = (1u << kCut) - 1;
constexpr int32_t kTopM = 127, kTopV = 255;

inline uint32_t dither(uint32_t i, uint32_t seed) {
    uint32_t h = (i * 0x9E3779B1u) ^ seed;
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    return h ^ (h >> 15);
}
inline uint32_t decode(int32_t code, int32_t scale, int32_t top) {
    const int32_t t = code + scale - top;
    return code > 0 && t > 0 ? static_cast<uint32_t>(t) << kCut : 0u;
}
inline int32_t encode(uint32_t bits, uint32_t noise, int32_t scale, int32_t top, int32_t least) {
    int32_t k = static_cast<int32_t>((bits + noise) >> kCut) - scale + top;
    k = k < least ? least : k;
    k = k > top ? top : k;
    return bits ? k : 0;
}

template <class G, class L>
void adamw8_loop(const AdamW& a, float* __restrict p, int8_t* __restrict m, uint8_t* __restrict v, float* m_scale,
                 float* v_scale, const typename G::type* __restrict g, typename L::type* __restrict low, int64_t first,
                 uint32_t seed, int64_t n) {
    const AdamW k = a;
    constexpr bool has_low = !std::is_same<L, None>::value;
    alignas(64) uint32_t mf[kBlock], vf[kBlock];
    for (int64_t begin = 0, b = 0; begin < n; begin += kBlock, ++b) {
        const int32_t count = static_cast<int32_t>(n - begin < kBlock ? n - begin : kBlock);
        float* __restrict q = p + begin;
        const auto* __restrict gb = g + begin;
        int8_t* __restrict mb = m + begin;
        uint8_t* __restrict vb = v + begin;
        auto* __restrict lb = low + (has_low ? begin : 0);
        const int32_t me = static_cast<int32_t>(to_bits(m_scale[b]) >> kCut);
        const int32_t ve = static_cast<int32_t>(to_bits(v_scale[b]) >> kCut);
        uint32_t m_max = 0, v_max = 0;
        for (int32_t i = 0; i < count; ++i) {
            const int32_t c = mb[i], d = vb[i];
            const uint32_t sign = static_cast<uint32_t>(c) & 0x80000000u;
            const float old_m = from_bits(decode(c < 0 ? -c : c, me, kTopM) | sign);
            const float old_v = from_bits(decode(d, ve, kTopV));
            const float x = G::load(gb + i) * k.gradient_scale + k.l2 * q[i];
            const float mi = k.beta1 * old_m + k.one_minus_beta1 * x;
            const float vi = k.beta2 * old_v + (k.one_minus_beta2 * x) * x;
            const float e = std::sqrt(vi) * k.inverse_sqrt_bias2 + k.epsilon;
            const float r = q[i] * k.decay - (k.step_size * mi) / e;
            const uint32_t mu = to_bits(mi), vu = to_bits(vi), am = mu & 0x7fffffffu;
            m_max = am > m_max ? am : m_max;
            v_max = vu > v_max ? vu : v_max;
            mf[i] = mu;
            vf[i] = vu;
            q[i] = r;
            if (has_low) L::store(lb + i, r);
        }
        const int32_t mt = static_cast<int32_t>((m_max + kRest) >> kCut);
        const int32_t vt = static_cast<int32_t>((v_max + kRest) >> kCut);
        m_scale[b] = from_bits(static_cast<uint32_t>(mt) << kCut);
        v_scale[b] = from_bits(static_cast<uint32_t>(vt) << kCut);
        const uint32_t offset = static_cast<uint32_t>(first + begin);
        for (int32_t i = 0; i < count; ++i) {
            const uint32_t h = dither(offset + static_cast<uint32_t>(i), seed), mu = mf[i];
            const int32_t c = encode(mu & 0x7fffffffu, h & kRest, mt, kTopM, 0);
            mb[i] = static_cast<int8_t>(mu >> 31 ? -c : c);
            vb[i] = static_cast<uint8_t>(encode(vf[i], h >> (32 - kCut), vt, kTopV, 1));  // v > 0 stays above 0
        }
    }
}

template <class G>
void norm_loop(const typename G::type* g, int64_t n, double* sum, int* bad) {
    constexpr int kLanes = 16;  // fixed lanes: the order of additions is part of the result
    double lanes[kLanes] = {};
    uint32_t worst = 0;
    const int64_t whole = n - n % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const float x = G::load(g + i + j);
            lanes[j] += static_cast<double>(x) * x;
            const uint32_t e = to_bits(x) & 0x7f800000u;
            worst = e > worst ? e : worst;
        }
    for (int64_t i = whole; i < n; ++i) {
        const float x = G::load(g + i);
        lanes[i - whole] += static_cast<double>(x) * x;
        const uint32_t e = to_bits(x) & 0x7f800000u;
        worst = e > worst ? e : worst;
    }
    double total = 0;
    for (double lane : lanes) total += lane;
    *sum = total;
    *bad = worst == 0x7f800000u;
}

template <class A, class B>
void cast_loop(const typename A::type* __restrict from, typename B::type* __restrict to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) B::store(to + i, A::load(from + i));
}

// Only the combinations that the bindings let through are compiled: it is most of the build's time.
template <class F>
void with_float(int type, F&& f) {
    if (type == kFloat32) f(F32{});
    else if (type == kBFloat16) f(B16{});
    else if (type == kFloat16) f(F16{});
}

template <class F>
void with_low(int type, F&& f) {
    if (type == kBFloat16) f(B16{});
    else if (type == kFloat16) f(F16{});
    else f(None{});
}

void adamw_any(const AdamW& a, float* p, float* m, float* v, const void* g, int gt, void* low, int lt, int64_t n) {
    with_float(gt, [&](auto G) {
        with_low(lt, [&](auto L) {
            using GT = decltype(G);
            using LT = decltype(L);
            adamw_loop<GT, LT>(a, p, m, v, static_cast<const typename GT::type*>(g), static_cast<typename LT::type*>(low), n);
        });
    });
}

void adamw8_any(const AdamW& a, float* p, int8_t* m, uint8_t* v, float* ms, float* vs, const void* g, int gt, void* low,
                int lt, int64_t first, uint32_t seed, int64_t n) {
    with_float(gt, [&](auto G) {
        with_low(lt, [&](auto L) {
            using GT = decltype(G);
            using LT = decltype(L);
            adamw8_loop<GT, LT>(a, p, m, v, ms, vs, static_cast<const typename GT::type*>(g), static_cast<typename LT::type*>(low), first,
                                seed, n);
        });
    });
}

void norm_any(const void* g, int type, int64_t n, double* sum, int* bad) {
    with_float(type, [&](auto G) {
        using GT = decltype(G);
        norm_loop<GT>(static_cast<const typename GT::type*>(g), n, sum, bad);
    });
}

void cast_any(const void* from, int ft, void* to, int tt, int64_t n) {
    with_float(ft, [&](auto A) {
        with_float(tt, [&](auto B) {
            using AT = decltype(A);
            using BT = decltype(B);
            cast_loop<AT, BT>(static_cast<const typename AT::type*>(from), static_cast<typename BT::type*>(to), n);
        });
    });
}

}  // namespace
}  // namespace elixir
