// Packed pairs of 16-bit elements to f32.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

struct Bf16 {
  static __device__ __forceinline__ float2 widen(uint32_t x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }
};
struct F16 {
  static __device__ __forceinline__ float2 widen(uint32_t x) { return __half22float2(*reinterpret_cast<const __half2*>(&x)); }
};
