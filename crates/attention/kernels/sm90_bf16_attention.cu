// Attention over a sparse index on Hopper, bfloat16.
#include "sm90/attention.cuh"

SPEEDREAD_ATTENTION(sm90_bf16_attention, __nv_bfloat16, 64)
SPEEDREAD_ATTENTION(sm90_bf16_attention, __nv_bfloat16, 96)
SPEEDREAD_ATTENTION(sm90_bf16_attention, __nv_bfloat16, 128)
