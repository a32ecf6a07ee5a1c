#include <cstring>

#include "kernels.h"

namespace elixir {

const Kernels* find_kernels(const char* name) {
    const bool any = name[0] == '\0';
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (any || !std::strcmp(name, "avx512"))) return &kernels_avx512;
    if (avx2 && (any || !std::strcmp(name, "avx2"))) return &kernels_avx2;
#endif
    return any || !std::strcmp(name, "portable") ? &kernels_portable : nullptr;
}

}  // namespace elixir
