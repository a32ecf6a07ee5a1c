// Vectors of VITCOD_WIDTH floats in the compiler's own vector types: one source for 512, 256 and
// 128 bits. Everything is in an anonymous namespace, so that no instruction set leaks into another.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace vitcod {
namespace {

constexpr int W = VITCOD_WIDTH;
typedef float V __attribute__((vector_size(4 * VITCOD_WIDTH)));
typedef std::int32_t I __attribute__((vector_size(4 * VITCOD_WIDTH)));
typedef float V16 __attribute__((vector_size(64)));
typedef std::int32_t I16 __attribute__((vector_size(64)));
#define VITCOD_INLINE inline __attribute__((always_inline))

// Trip counts are known: unrolled whole, so that arrays of vectors become registers.
#define UNROLL _Pragma("GCC unroll 16")

constexpr float NINF = -std::numeric_limits<float>::infinity();

template <typename T>
VITCOD_INLINE T load(const float* p) {
    T v;
    std::memcpy(&v, p, sizeof(T));
    return v;
}
template <typename T>
VITCOD_INLINE void store(float* p, T v) {
    std::memcpy(p, &v, sizeof(T));
}
template <typename T>
VITCOD_INLINE T larger(T a, T b) {
    return a > b ? a : b;
}
template <typename T>
VITCOD_INLINE T splat(float x) {
    return x - T{};  // x - 0 is x for every x, so the compiler keeps a plain broadcast
}

template <int N, int H, int... L>
VITCOD_INLINE auto fold_pair(V a, V b, std::integer_sequence<int, L...>) {
    // Lanes without bit H sum two lanes of a, lanes with it two lanes of b.
    const V straight = __builtin_shufflevector(a, b, ((L & H) ? N + L : L)...);
    const V crossed = __builtin_shufflevector(a, b, ((L & H) ? N + (L ^ H) : (L ^ H))...);
    return straight + crossed;
}
template <int H>
VITCOD_INLINE V fold(V a, V b) {
    return fold_pair<W, H>(a, b, std::make_integer_sequence<int, W>{});
}

// Sums of K vectors: lane l of the result is the sum over the lanes of acc[l % K].
template <int K>
VITCOD_INLINE V sums(V* acc) {
    if constexpr (K >= 16)
        UNROLL for (int k = 0; k < 8; ++k) acc[k] = fold<8>(acc[k], acc[k + 8]);
    if constexpr (K >= 8)
        UNROLL for (int k = 0; k < 4; ++k) acc[k] = fold<4>(acc[k], acc[k + 4]);
    UNROLL for (int k = 0; k < 2; ++k) acc[k] = fold<2>(acc[k], acc[k + 2]);
    V r = fold<1>(acc[0], acc[1]);
    if constexpr (W >= 8 && K < 8) r = fold<4>(r, r);
    if constexpr (W >= 16 && K < 16) r = fold<8>(r, r);
    return r;
}
VITCOD_INLINE float sum(V v) {
    v = fold<1>(v, v);
    v = fold<2>(v, v);
    if constexpr (W >= 8) v = fold<4>(v, v);
    if constexpr (W >= 16) v = fold<8>(v, v);
    return v[0];
}
template <int H, int... L>
VITCOD_INLINE V swap_lanes(V a, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, a, (L ^ H)...);
}
VITCOD_INLINE float maximum(V v) {
    const auto lanes = std::make_integer_sequence<int, W>{};
    if constexpr (W >= 16) v = larger(v, swap_lanes<8>(v, lanes));
    if constexpr (W >= 8) v = larger(v, swap_lanes<4>(v, lanes));
    v = larger(v, swap_lanes<2>(v, lanes));
    v = larger(v, swap_lanes<1>(v, lanes));
    return v[0];
}
template <int... L>
VITCOD_INLINE I lane_numbers(std::integer_sequence<int, L...>) {
    return I{L...};
}
VITCOD_INLINE I lane_numbers() { return lane_numbers(std::make_integer_sequence<int, W>{}); }

// exp(x) for x <= 0 to about one unit in the last place; 0 below -87.3 and for -inf, NaN for NaN.
template <typename T, typename N>
VITCOD_INLINE T exponential(T x) {
    const T low = splat<T>(-87.3f);
    const T y = larger(low, x);  // in this order NaN stays
    constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    const T t = y * 1.44269504088896341f + magic;
    N bits, n;
    std::memcpy(&bits, &t, sizeof(T));
    n = bits - 0x4B400000;
    const T f = t - magic;
    T r = y - f * 0.693359375f;
    r = r - f * -2.12194440e-4f;
    T p = splat<T>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    std::memcpy(&bits, &p, sizeof(T));
    bits += n << 23;
    std::memcpy(&p, &bits, sizeof(T));
    return x < low ? T{} : p;
}

}  // namespace
}  // namespace vitcod
