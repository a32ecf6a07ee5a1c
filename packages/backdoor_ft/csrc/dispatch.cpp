// Which kernel runs on this processor.
#include <stdexcept>

#include "kernels.hpp"

namespace backdoor_ft {

bool available(const std::string& name) {
#ifdef BACKDOOR_FT_X86
    if (name == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (name == "avx2") return __builtin_cpu_supports("avx2");
#endif
    return name == "portable";
}

Kernel choose(std::string& name) {
    if (name.empty())
        name = available("avx512") ? "avx512" : available("avx2") ? "avx2" : "portable";
    if (!available(name))
        throw std::invalid_argument("instruction set '" + name + "' is not available here");
#ifdef BACKDOOR_FT_X86
    if (name == "avx512") return avx512_kernel();
    if (name == "avx2") return avx2_kernel();
#endif
    return portable_kernel();
}

}  // namespace backdoor_ft
