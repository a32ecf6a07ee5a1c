#include "fused.hpp"

backdoor_ft::Kernel backdoor_ft::portable_kernel() { return fused; }
