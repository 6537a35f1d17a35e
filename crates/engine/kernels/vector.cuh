// Sixteen bytes at a time: eight bf16 as floats.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

struct Eight {
  float v[8];
};

__device__ __forceinline__ Eight widen(uint4 bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Eight x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // A bf16 is the upper half of a float.
    x.v[2 * i] = __uint_as_float(words[i] << 16);
    x.v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return x;
}

// `from` is aligned to 16 bytes.
__device__ __forceinline__ Eight load8(const __nv_bfloat16* from) { return widen(*reinterpret_cast<const uint4*>(from)); }

__device__ __forceinline__ uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ __forceinline__ void store8(__nv_bfloat16* to, const Eight& x) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack2(x.v[0], x.v[1]), pack2(x.v[2], x.v[3]), pack2(x.v[4], x.v[5]), pack2(x.v[6], x.v[7]));
}

__device__ __forceinline__ Eight load8(const float* from) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ void store8(float* to, const Eight& x) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

// The sum over the 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
