// Attention over a sparse index from compute capability 8.0 on, half precision.
#include "portable/attention.cuh"

SPEEDREAD_ATTENTION(f16_attention, __half, 64)
SPEEDREAD_ATTENTION(f16_attention, __half, 96)
SPEEDREAD_ATTENTION(f16_attention, __half, 128)
