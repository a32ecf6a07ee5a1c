#include "fused.hpp"

backdoor_ft::Kernel backdoor_ft::avx512_kernel() { return fused; }
