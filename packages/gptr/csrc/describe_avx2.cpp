#define GPTR_DESCRIBE describe_avx2
#include "describe_impl.h"
