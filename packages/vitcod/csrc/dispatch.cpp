// Which set of kernels runs on this processor.
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace vitcod {

#ifdef VITCOD_X86
namespace {
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace
#endif

bool kernels_available(const std::string& name) {
#ifdef VITCOD_X86
    if (name == "avx512") return has_avx512();
    if (name == "avx2") return has_avx2();
#endif
    return name.empty() || name == "portable";
}

Kernels choose_kernels(const std::string& name) {
    if (!kernels_available(name))
        throw std::invalid_argument("instruction set '" + name + "' is not available here");
#ifdef VITCOD_X86
    if (name == "avx512" || (name.empty() && has_avx512())) return avx512_kernels();
    if (name == "avx2" || (name.empty() && has_avx2())) return avx2_kernels();
#endif
    return portable_kernels();
}

}  // namespace vitcod
