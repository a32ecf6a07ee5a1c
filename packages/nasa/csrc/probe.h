// How fast this processor accumulates where nothing but the arithmetic limits it.

#if defined(__GNUC__) && (defined(__AVX512F__) || defined(__AVX2__))

template <class Formula> int64_t accumulate(int64_t steps, Formula formula) {
    constexpr int kChains = 10;  // enough for two operations a cycle of four cycles each
    Vec sum[kChains], x = Vec::set(0.5f);
    const Vec w = Vec::set(0.25f);
    for (Vec& s : sum) s = Vec::set(0);
    for (int64_t i = 0; i < steps; ++i)
        for (Vec& s : sum) {
            asm volatile("" : "+v"(x.v));  // x may be another one now: no sum can be reused, nothing is executed
            s = formula(s, x, w);
        }
    for (Vec& s : sum) asm volatile("" ::"v"(s.v));  // every sum is wanted
    return steps * kChains * V;
}

int64_t probe(int formula, int64_t steps) {
    const Vec one = Vec::set(1);
    switch (formula) {
        case 0: return accumulate(steps, [](Vec s, Vec x, Vec w) { return fma(x, w, s); });
        case 1: return accumulate(steps, [one](Vec s, Vec x, Vec w) { return fma(one, max(x, w), s); });
        case 2: return accumulate(steps, [](Vec s, Vec x, Vec w) { return s + max(x, w); });
        default: return accumulate(steps, [](Vec s, Vec x, Vec w) { return s + abs(x - w); });
    }
}

#else

int64_t probe(int, int64_t) { return 0; }

#endif
