#include "fused.hpp"

backdoor_ft::Kernel backdoor_ft::avx2_kernel() { return fused; }
