#define GPTR_DESCRIBE describe_portable
#include "describe_impl.h"
