// Attention over a sparse index on Hopper, half precision.
#include "sm90/attention.cuh"

SPEEDREAD_ATTENTION(sm90_f16_attention, __half, 64)
SPEEDREAD_ATTENTION(sm90_f16_attention, __half, 96)
SPEEDREAD_ATTENTION(sm90_f16_attention, __half, 128)
