#define GPTR_DESCRIBE describe_avx512
#include "describe_impl.h"
