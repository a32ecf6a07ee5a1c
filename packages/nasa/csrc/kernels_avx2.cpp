// Compiled with the flags of this instruction set; see CMakeLists.txt.
#define NASA_ISA avx2
#include "kernels_impl.h"
