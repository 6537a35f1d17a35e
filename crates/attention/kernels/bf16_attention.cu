// Attention over a sparse index from compute capability 8.0 on, bfloat16.
#include "portable/attention.cuh"

SPEEDREAD_ATTENTION(bf16_attention, __nv_bfloat16, 64)
SPEEDREAD_ATTENTION(bf16_attention, __nv_bfloat16, 96)
SPEEDREAD_ATTENTION(bf16_attention, __nv_bfloat16, 128)
