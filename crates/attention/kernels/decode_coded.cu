// Decode steps of bf16 queries over keys and values in codes of 8 bits, e4m3 or whole numbers, with an f32 scale a row: half the bytes of
// bf16, and a decode step is as fast as its bytes come. What puts the splits together is the kernel for bf16.
#include <cuda_fp8.h>

#include "decode.cuh"

// What codes are: four of them as pairs of bf16, which holds each number exactly.
struct E4m3 {
  // The header takes the instruction where there is one (from compute capability 8.9) and computes it elsewhere.
  static __device__ __forceinline__ uint2 widen4(uint32_t four) {
    const float2 low = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(four & 0xffff), __NV_E4M3)));
    const float2 high = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(four >> 16), __NV_E4M3)));
    return make_uint2(mma::pack<__nv_bfloat16>(low.x, low.y), mma::pack<__nv_bfloat16>(high.x, high.y));
  }
};

struct Int8 {
  // Under 0x43 a code's lower seven bits are the bf16 128 plus their number, and its sign alone is 128, or 256 where it is set: what the
  // number of the bits must lose.
  static __device__ __forceinline__ uint32_t widen2(uint32_t under) {
    const uint32_t bits = under & 0xff7fff7fu, base = under & 0xff80ff80u;
    const __nv_bfloat162 x = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&bits), *reinterpret_cast<const __nv_bfloat162*>(&base));
    return *reinterpret_cast<const uint32_t*>(&x);
  }
  static __device__ __forceinline__ uint2 widen4(uint32_t four) {
    return make_uint2(widen2(__byte_perm(four, 0x43434343u, 0x4140)), widen2(__byte_perm(four, 0x43434343u, 0x4342)));
  }
};

template <typename Codes, int kDim>
struct CodedRows {
  using Stored = uint8_t;
  static constexpr bool kScaled = true;
  static constexpr int kRun = kDim % 64 == 0 ? 16 : 8;
  static constexpr int kKeyWords = kDim / 16;
  static constexpr int kValueWords = kDim / 32;

  static __device__ __forceinline__ uint2 pairs(const uint32_t (&key)[kKeyWords], int i) { return Codes::widen4(key[i]); }
  static __device__ __forceinline__ uint2 columns(const uint32_t (&first)[kValueWords], const uint32_t (&second)[kValueWords], int i) {
    return Codes::widen4(__byte_perm(first[i / 2], second[i / 2], i % 2 == 0 ? 0x5140 : 0x7362));
  }
};

// Registers for three blocks a multiprocessor: with fewer bytes in flight than bf16's, memory needs more readers to be busy.
#define SPEEDREAD_DECODE(name, Codes, dim)                                                                               \
  extern "C" __global__ void __launch_bounds__(kWarps * 32, 3)                                                           \
      decode_##name##_d##dim(const __grid_constant__ DecodeParams<__nv_bfloat16, uint8_t> p) {                           \
    decode_split<__nv_bfloat16, CodedRows<Codes, dim>, dim>(p, blockIdx.z);                                              \
  }                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kWarps * 32, 3)                                                           \
      decode_rows_##name##_d##dim(const __grid_constant__ DecodeRows<__nv_bfloat16, uint8_t> p) {                        \
    decode_rows<__nv_bfloat16, CodedRows<Codes, dim>, dim>(p);                                                           \
  }

SPEEDREAD_DECODE(fp8, E4m3, 64)
SPEEDREAD_DECODE(fp8, E4m3, 96)
SPEEDREAD_DECODE(fp8, E4m3, 128)
SPEEDREAD_DECODE(int8, Int8, 64)
SPEEDREAD_DECODE(int8, Int8, 96)
SPEEDREAD_DECODE(int8, Int8, 128)
