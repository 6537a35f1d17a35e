// Attention mass of the last queries from compute capability 8.0 on, bfloat16.
#include "portable/last_queries.cuh"

SPEEDREAD_LAST_QUERIES(bf16, __nv_bfloat16, 64)
SPEEDREAD_LAST_QUERIES(bf16, __nv_bfloat16, 96)
SPEEDREAD_LAST_QUERIES(bf16, __nv_bfloat16, 128)
