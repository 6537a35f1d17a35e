// Decode steps over keys and values of the queries' own 16-bit type; and what puts the splits of any decode step together.
#include "decode.cuh"

#define SPEEDREAD_DECODE(name, element, dim)                                                                                          \
  extern "C" __global__ void __launch_bounds__(kWarps * 32) decode_##name##_d##dim(const __grid_constant__ DecodeParams<element> p) { \
    decode_split<element, PlainRows<element, dim>, dim>(p, blockIdx.z);                                                               \
  }                                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(dim) combine_##name##_d##dim(const __grid_constant__ DecodeParams<element> p) {        \
    decode_combine<element, dim>(p);                                                                                                  \
  }

#define SPEEDREAD_DECODE_ROWS(dim)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(kWarps * 32) decode_rows_bf16_d##dim(                                               \
      const __grid_constant__ DecodeRows<__nv_bfloat16> p) {                                                                       \
    decode_rows<__nv_bfloat16, PlainRows<__nv_bfloat16, dim>, dim>(p);                                                             \
  }                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(dim) combine_rows_bf16_d##dim(const __grid_constant__ DecodeRows<__nv_bfloat16> p) { \
    decode_combine<__nv_bfloat16, dim>(p.rows[blockIdx.y]);                                                                        \
  }

SPEEDREAD_DECODE(bf16, __nv_bfloat16, 64)
SPEEDREAD_DECODE(bf16, __nv_bfloat16, 96)
SPEEDREAD_DECODE(bf16, __nv_bfloat16, 128)
SPEEDREAD_DECODE(f16, __half, 64)
SPEEDREAD_DECODE(f16, __half, 96)
SPEEDREAD_DECODE(f16, __half, 128)
SPEEDREAD_DECODE_ROWS(64)
SPEEDREAD_DECODE_ROWS(96)
SPEEDREAD_DECODE_ROWS(128)
