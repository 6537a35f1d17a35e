// Attention mass of the last queries from compute capability 8.0 on, half precision.
#include "portable/last_queries.cuh"

SPEEDREAD_LAST_QUERIES(f16, __half, 64)
SPEEDREAD_LAST_QUERIES(f16, __half, 96)
SPEEDREAD_LAST_QUERIES(f16, __half, 128)
