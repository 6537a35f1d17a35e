// Keys and values in FP8: e4m3 codes with an f32 scale for each token and head, the head's largest number over 448; keys, and the queries
// that meet them, times a Walsh-Hadamard matrix. Appending them, and making bf16 of them again. The conversions are the header's: an
// instruction from compute capability 8.9 on, computed elsewhere.
#include <cuda_fp8.h>

#include "overlap.cuh"
#include "rope.cuh"

constexpr float kLargestCode = 448.0f;
// Heads of zeros, or of numbers that change nothing, take this one: no division by zero, and no code that is not a number.
constexpr float kLeastScale = 1e-30f;

struct Fp8RopeParams {
  RopeParams<uint8_t> rope;
  float* scales_k;  // of the first row in the first head
  float* scales_v;
  int64_t scale_head_stride;
};

struct Four {
  float v[4];
};

__device__ __forceinline__ Four load4(const __nv_bfloat16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {{__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
           __uint_as_float(bits.y & 0xffff0000u)}};
}

__device__ __forceinline__ void store4(__nv_bfloat16* to, const Four& x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack2(x.v[0], x.v[1]), pack2(x.v[2], x.v[3]));
}

// Component `at` of a rotated head.
template <bool kHalves>
__device__ __forceinline__ float rotated(const __nv_bfloat16* from, const float* cosines, const float* sines, int at, int pairs) {
  const float x = __bfloat162float(from[at]);
  if (at >= 2 * pairs) return x;
  const bool first = kHalves ? at < pairs : at % 2 == 0;
  const int pair = kHalves ? at % pairs : at / 2, step = kHalves ? pairs : 1;
  const float other = __bfloat162float(from[first ? at + step : at - step]);
  return first ? x * cosines[pair] - other * sines[pair] : x * cosines[pair] + other * sines[pair];
}

// Components `at` .. `at + 3` of a rotated head.
template <bool kHalves, bool kWide>
__device__ __forceinline__ Four rotated4(const __nv_bfloat16* from, const float* cosines, const float* sines, int at, int pairs) {
  Four y;
  if constexpr (kHalves && kWide) {
    // All four are of the same half, or not rotated.
    y = load4(from + at);
    if (at >= 2 * pairs) return y;
    const bool first = at < pairs;
    const int pair = first ? at : at - pairs;
    const Four other = load4(from + (first ? at + pairs : pair));
    const float4 c4 = *reinterpret_cast<const float4*>(cosines + pair), s4 = *reinterpret_cast<const float4*>(sines + pair);
    const float c[4] = {c4.x, c4.y, c4.z, c4.w}, s[4] = {s4.x, s4.y, s4.z, s4.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) y.v[i] = y.v[i] * c[i] + other.v[i] * (first ? -s[i] : s[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) y.v[i] = rotated<kHalves>(from, cosines, sines, at + i, pairs);
  }
  return y;
}

// Four of a rotated head's components a lane, times the orthonormal Walsh-Hadamard matrix of `block` components, block by block. Keys of
// some models have components many times larger than the rest, where queries are large too: most of a score's error would come from the
// codes of those. Times the matrix a head has its size in all components alike, and products of queries and keys are what they were.
__device__ __forceinline__ void spread(Four& x, int block) {
  const float a = x.v[0] + x.v[1], b = x.v[0] - x.v[1], c = x.v[2] + x.v[3], d = x.v[2] - x.v[3];
  x = {{a + c, b + d, a - c, b - d}};
  for (int lanes = 1; lanes < block / 4; lanes *= 2) {
    const float sign = threadIdx.x & lanes ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] = fmaf(sign, x.v[i], __shfl_xor_sync(0xffffffffu, x.v[i], lanes));
  }
  const float length = rsqrtf(static_cast<float>(block));
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] *= length;
}

// A warp a head, four components a lane: queries and keys are rotated and spread, and the largest number of keys and values is known in
// registers before anything is written. Components past `dim` get the code of zero. The thread blocks of a column of the grid share a row.
template <bool kHalves, int kWidth>
__device__ __forceinline__ void rope_append_fp8(const Fp8RopeParams& params) {
  overlap();
  const RopeParams<uint8_t>& p = params.rope;
  const int64_t row = blockIdx.x;
  const float *cosines = p.cosines + row * p.pairs, *sines = p.sines + row * p.pairs;
  // The largest power of two that divides a head: no block reaches past it.
  const int block = p.dim & -p.dim;
  const int at = threadIdx.x % 32 * 4, warps = blockDim.x / 32;
  for (int i = blockIdx.y * warps + threadIdx.x / 32; i < p.q_heads + 2 * p.kv_heads; i += gridDim.y * warps) {
    const bool is_query = i < p.q_heads, is_value = i >= p.q_heads + p.kv_heads, is_key = !is_query && !is_value;
    const int head = is_query ? i : i - p.q_heads - (is_value ? p.kv_heads : 0);
    __nv_bfloat16* query = p.q + (row * p.q_heads + head) * p.dim;
    const __nv_bfloat16* from = is_query ? query : (is_key ? p.k : p.v) + (row * p.kv_heads + head) * p.dim;
    Four x = {};
    if (at < p.dim) x = is_value ? load4(from + at) : rotated4<kHalves, (kWidth > 1)>(from, cosines, sines, at, p.pairs);
    if (!is_value) spread(x, block);
    if (is_query) {
      // In place, where other lanes have read.
      __syncwarp();
      if (at < p.dim) store4(query + at, x);
      continue;
    }
    float largest = fmaxf(fmaxf(fabsf(x.v[0]), fabsf(x.v[1])), fmaxf(fabsf(x.v[2]), fabsf(x.v[3])));
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
    const float scale = fmaxf(largest / kLargestCode, kLeastScale), inverse = 1.0f / scale;
    // What is not a number has a code that is none, so that it shows, as it does in other types.
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x.v[0] * inverse, x.v[1] * inverse), __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(x.v[2] * inverse, x.v[3] * inverse), __NV_SATFINITE, __NV_E4M3);
    uint8_t* to = (is_key ? p.cache_k : p.cache_v) + head * p.head_stride + row * p.row_stride;
    if (at < p.row_stride) *reinterpret_cast<uint32_t*>(to + at) = low | high << 16;
    if (at == 0) (is_key ? params.scales_k : params.scales_v)[head * params.scale_head_stride + row] = scale;
  }
}

#define SPEEDREAD_ROPE_FP8(name, halves, width) \
  extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ Fp8RopeParams p) { rope_append_fp8<halves, width>(p); }

SPEEDREAD_ROPE_FP8(rope_append_fp8_halves, true, 8)
SPEEDREAD_ROPE_FP8(rope_append_fp8_halves_narrow, true, 1)
SPEEDREAD_ROPE_FP8(rope_append_fp8_interleaved, false, 4)
SPEEDREAD_ROPE_FP8(rope_append_fp8_interleaved_narrow, false, 1)

// to[head][row][dim] = codes[head][row][dim] * scales[head][row], where the heads of codes and scales are `capacity` rows apart and those
// of `to` have no gaps; a head a row of thread blocks, eight components a thread.
extern "C" __global__ void __launch_bounds__(256)
widen_fp8(const uint8_t* codes, const float* scales, __nv_bfloat16* to, int64_t rows, int64_t capacity, int32_t dim) {
  const int chunks = dim / 8, at_a_time = blockDim.x / chunks, part = threadIdx.x % chunks * 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * at_a_time;
  if (threadIdx.x / chunks >= at_a_time) return;
  codes += blockIdx.y * capacity * dim + part;
  scales += blockIdx.y * capacity;
  to += blockIdx.y * rows * dim + part;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * at_a_time + threadIdx.x / chunks; row < rows; row += step) {
    const float scale = scales[row];
    const uint2 bits = *reinterpret_cast<const uint2*>(codes + row * dim);
    Eight x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t two = (i < 2 ? bits.x : bits.y) >> (i % 2 * 16) & 0xffff;
      const float2 pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two), __NV_E4M3)));
      x.v[2 * i] = pair.x * scale, x.v[2 * i + 1] = pair.y * scale;
    }
    store8(to + row * dim, x);
  }
}
