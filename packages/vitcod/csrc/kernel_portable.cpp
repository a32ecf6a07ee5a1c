#define VITCOD_WIDTH 4
#define VITCOD_NAME "portable"
#include "attention_rows.hpp"

namespace vitcod {
Kernels portable_kernels() { return make_kernels(); }
}  // namespace vitcod
