// Attention mass of the last queries on Hopper, bfloat16.
#include "sm90/last_queries.cuh"

SPEEDREAD_LAST_QUERIES(sm90_bf16, __nv_bfloat16, 64)
SPEEDREAD_LAST_QUERIES(sm90_bf16, __nv_bfloat16, 96)
SPEEDREAD_LAST_QUERIES(sm90_bf16, __nv_bfloat16, 128)
