// Which set of kernels runs on this processor.
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace noiser {

#ifdef NOISER_X86
namespace {
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace
#endif

Kernels choose_kernels(const char* name) {
    const std::string wanted = name;
#ifdef NOISER_X86
    if ((wanted.empty() || wanted == "avx512") && has_avx512()) return avx512_kernels();
    if ((wanted.empty() || wanted == "avx2") && has_avx2()) return avx2_kernels();
#endif
    if (wanted.empty() || wanted == "portable") return portable_kernels();
    throw std::invalid_argument("instruction set '" + wanted +
                                "' is not available here: one of avx512, avx2 (where the processor"
                                " has them), portable");
}

}  // namespace noiser
