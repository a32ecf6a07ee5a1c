// Compiled with the flags of this instruction set; see CMakeLists.txt.
#define NASA_ISA portable
#include "kernels_impl.h"
