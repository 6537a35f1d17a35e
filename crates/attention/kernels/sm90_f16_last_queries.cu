// Attention mass of the last queries on Hopper, IEEE half.
#include "sm90/last_queries.cuh"

SPEEDREAD_LAST_QUERIES(sm90_f16, __half, 64)
SPEEDREAD_LAST_QUERIES(sm90_f16, __half, 96)
SPEEDREAD_LAST_QUERIES(sm90_f16, __half, 128)
