// Which instruction set runs on this processor.
#include <cstring>

#include "describe.h"

namespace gptr {
namespace {
#ifdef GPTR_X86
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif
}  // namespace

const char* best_isa() {
#ifdef GPTR_X86
    if (has_avx512()) return "avx512";
    if (has_avx2()) return "avx2";
#endif
    return "portable";
}

Describe find_describe(const char* name) {
    if (!*name) name = best_isa();
#ifdef GPTR_X86
    if (!std::strcmp(name, "avx512")) return has_avx512() ? describe_avx512 : nullptr;
    if (!std::strcmp(name, "avx2")) return has_avx2() ? describe_avx2 : nullptr;
#endif
    return std::strcmp(name, "portable") ? nullptr : describe_portable;
}

}  // namespace gptr
