#define VITCOD_WIDTH 8
#define VITCOD_NAME "avx2"
#include "attention_rows.hpp"

namespace vitcod {
Kernels avx2_kernels() { return make_kernels(); }
}  // namespace vitcod
