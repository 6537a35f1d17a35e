// Keys and values in codes of 8 bits, e4m3 or whole numbers, with an f32 scale for each token and head: the head's largest number over the
// largest code. Of keys a reference is taken first, one for all keys of a head. Making the reference, appending keys and values, and making
// bf16 of them again.
//
// Keys of some models, of those with a bias above all, have a few large components that are much the same in every key. Left in, they set
// the scale, and so the step of all components in whole numbers; in e4m3 their own step is larger than what keys differ by. The softmax
// over keys k of q.(k - m) is that of q.k, whatever m is: all scores of a query q are less by q.m. So m, the reference, costs nothing, and
// who reads the keys need not know it. SageAttention (arXiv 2410.02367, section 4.2) takes the mean of all keys; here later ones are not
// known yet, and it is the mean of the first.
#include <cuda_fp8.h>

#include "overlap.cuh"
#include "rope.cuh"

// Heads of zeros, or of numbers that change nothing, take this one: no division by zero, and no code that is not a number.
constexpr float kLeastScale = 1e-30f;
constexpr uint32_t kInfinity = 0x7f800000u, kNaN = 0x7fffffffu;

// Rows that a reference is the mean of, at most: the error of a mean of so many is a sixteenth of what keys differ by.
constexpr int kReferenceRows = 256, kReferenceWarps = 32;

struct CodedRopeParams {
  RopeParams<uint8_t> rope;
  float* scales_k;  // of the first row in the first head
  float* scales_v;
  int64_t scale_head_stride;
  float* reference;  // [kv_heads][row_stride of the cache]
};

struct Four {
  float v[4];
};

// The conversions are the header's: an instruction from compute capability 8.9 on, computed elsewhere.
struct E4m3 {
  static constexpr float kLargest = 448.0f;

  static __device__ __forceinline__ uint32_t encode(const Four& x) {
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x.v[0], x.v[1]), __NV_SATFINITE, __NV_E4M3);
    return low | static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(x.v[2], x.v[3]), __NV_SATFINITE, __NV_E4M3)) << 16;
  }
  static __device__ __forceinline__ Four decode(uint32_t codes) {
    Four x;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto two = static_cast<__nv_fp8x2_storage_t>(codes >> 16 * i);
      const float2 pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
      x.v[2 * i] = pair.x, x.v[2 * i + 1] = pair.y;
    }
    return x;
  }
};

struct Int8 {
  static constexpr float kLargest = 127.0f;

  static __device__ __forceinline__ uint32_t encode(const Four& x) {
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The sum has a unit of one: rounded to even, its last byte is the number's in two's complement.
      codes[i] = __float_as_uint(fminf(fmaxf(x.v[i], -kLargest), kLargest) + 0x1.8p23f);
    }
    return __byte_perm(__byte_perm(codes[0], codes[1], 0x0040), __byte_perm(codes[2], codes[3], 0x0040), 0x5410);
  }
  static __device__ __forceinline__ Four decode(uint32_t codes) {
    Four x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] = static_cast<float>(static_cast<int8_t>(codes >> 8 * i));
    return x;
  }
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

// The reference of each key head: the mean of its rotated keys over rows of the chunk that are evenly spread, or over all if they are few.
// A thread block a head, a warp a row at a time, four components a lane; the sums of warps are added in their order, so that the same keys
// always have the same reference.
template <bool kHalves, int kWidth>
__device__ __forceinline__ void reference_keys(const CodedRopeParams& params, int64_t rows) {
  overlap();
  const RopeParams<uint8_t>& p = params.rope;
  const int head = blockIdx.x, warp = threadIdx.x / 32, at = threadIdx.x % 32 * 4;
  const int count = static_cast<int>(min(rows, static_cast<int64_t>(kReferenceRows)));
  // Each part of the mean by itself: a sum could be too large for a float where none of its numbers is.
  const float part = 1.0f / static_cast<float>(count);
  Four mean = {};
  if (at < p.dim) {
#pragma unroll 2
    for (int i = warp; i < count; i += kReferenceWarps) {
      const int64_t row = i * rows / count;
      const Four x = rotated4<kHalves, (kWidth > 1)>(p.k + (row * p.kv_heads + head) * p.dim, p.cosines + row * p.pairs,
                                                     p.sines + row * p.pairs, at, p.pairs);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // What is not finite is to show in its own key and no other.
        const bool finite = __float_as_uint(fabsf(x.v[j])) < kInfinity;
        mean.v[j] += finite ? x.v[j] * part : 0.0f;
      }
    }
  }
  __shared__ __align__(16) float of_warp[kReferenceWarps][128];
  *reinterpret_cast<float4*>(&of_warp[warp][at]) = make_float4(mean.v[0], mean.v[1], mean.v[2], mean.v[3]);
  __syncthreads();
  if (threadIdx.x >= p.dim) return;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kReferenceWarps; ++i) sum += of_warp[i][threadIdx.x];
  params.reference[static_cast<int64_t>(head) * p.row_stride + threadIdx.x] = sum;
}

#define SPEEDREAD_REFERENCE(name, halves, width)                      \
  extern "C" __global__ void __launch_bounds__(kReferenceWarps * 32)  \
      name(const __grid_constant__ CodedRopeParams p, int64_t rows) { \
    reference_keys<halves, width>(p, rows);                           \
  }

SPEEDREAD_REFERENCE(reference_keys_halves, true, 8)
SPEEDREAD_REFERENCE(reference_keys_halves_narrow, true, 1)
SPEEDREAD_REFERENCE(reference_keys_interleaved, false, 4)
SPEEDREAD_REFERENCE(reference_keys_interleaved_narrow, false, 1)

// A warp a head, four components a lane: queries and keys are rotated, keys lose their head's reference, and the largest number of keys and
// values is known in registers before anything is written. Components past `dim` get the code of zero. The thread blocks of a column of the
// grid share a row.
template <typename Codes, bool kHalves, int kWidth>
__device__ __forceinline__ void rope_append_coded(const CodedRopeParams& params, int64_t row) {
  overlap();
  const RopeParams<uint8_t>& p = params.rope;
  const float *cosines = p.cosines + row * p.pairs, *sines = p.sines + row * p.pairs;
  const int at = threadIdx.x % 32 * 4, warps = blockDim.x / 32;
  for (int task = blockIdx.y * warps + threadIdx.x / 32; task < p.q_heads + 2 * p.kv_heads; task += gridDim.y * warps) {
    const bool is_query = task < p.q_heads, is_value = task >= p.q_heads + p.kv_heads, is_key = !is_query && !is_value;
    const int head = is_query ? task : task - p.q_heads - (is_value ? p.kv_heads : 0);
    __nv_bfloat16* query = p.q + (row * p.q_heads + head) * p.dim;
    const __nv_bfloat16* from = is_query ? query : (is_key ? p.k : p.v) + (row * p.kv_heads + head) * p.dim;
    Four x = {};
    if (at < p.dim) x = is_value ? load4(from + at) : rotated4<kHalves, (kWidth > 1)>(from, cosines, sines, at, p.pairs);
    if (is_query) {
      // In place, where other lanes have read.
      __syncwarp();
      if (at < p.dim) store4(query + at, x);
      continue;
    }
    if (is_key && at < p.dim) {
      const float4 m = *reinterpret_cast<const float4*>(params.reference + static_cast<int64_t>(head) * p.row_stride + at);
      x = {{x.v[0] - m.x, x.v[1] - m.y, x.v[2] - m.z, x.v[3] - m.w}};
    }
    // Compared as whole numbers, where those that are none come after infinity.
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(fabsf(x.v[i])));
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
    // What is not finite shows, as it does in other types: its head's scale is no number.
    const bool finite = largest < kInfinity;
    const float scale = finite ? fmaxf(__uint_as_float(largest) / Codes::kLargest, kLeastScale) : __uint_as_float(kNaN);
    const float inverse = 1.0f / scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] *= inverse;
    uint8_t* to = (is_key ? p.cache_k : p.cache_v) + head * p.head_stride + row * p.row_stride;
    if (at < p.row_stride) *reinterpret_cast<uint32_t*>(to + at) = Codes::encode(x);
    if (at == 0) (is_key ? params.scales_k : params.scales_v)[head * params.scale_head_stride + row] = scale;
  }
}

#define SPEEDREAD_ROPE_CODED(name, Codes, halves, width)                                                               \
  extern "C" __global__ void __launch_bounds__(128) rope_append_##name(const __grid_constant__ CodedRopeParams p) {    \
    rope_append_coded<Codes, halves, width>(p, blockIdx.x);                                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      rope_append_rows_##name(const __grid_constant__ RopeRows<CodedRopeParams> p) {                                   \
    rope_append_coded<Codes, halves, width>(p.rows[blockIdx.x], 0);                                                    \
  }

SPEEDREAD_ROPE_CODED(fp8_halves, E4m3, true, 8)
SPEEDREAD_ROPE_CODED(fp8_halves_narrow, E4m3, true, 1)
SPEEDREAD_ROPE_CODED(fp8_interleaved, E4m3, false, 4)
SPEEDREAD_ROPE_CODED(fp8_interleaved_narrow, E4m3, false, 1)
SPEEDREAD_ROPE_CODED(int8_halves, Int8, true, 8)
SPEEDREAD_ROPE_CODED(int8_halves_narrow, Int8, true, 1)
SPEEDREAD_ROPE_CODED(int8_interleaved, Int8, false, 4)
SPEEDREAD_ROPE_CODED(int8_interleaved_narrow, Int8, false, 1)

// to[head][row][dim] = codes[head][row][dim] * scales[head][row], where the heads of codes and scales are `capacity` rows apart and those
// of `to` have no gaps; a head a row of thread blocks, eight components a thread.
template <typename Codes>
__device__ __forceinline__ void widen_coded(const uint8_t* codes, const float* scales, __nv_bfloat16* to, int64_t rows, int64_t capacity,
                                            int32_t dim) {
  const int chunks = dim / 8, at_a_time = blockDim.x / chunks, part = threadIdx.x % chunks * 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * at_a_time;
  if (threadIdx.x / chunks >= at_a_time) return;
  codes += blockIdx.y * capacity * dim + part;
  scales += blockIdx.y * capacity;
  to += blockIdx.y * rows * dim + part;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * at_a_time + threadIdx.x / chunks; row < rows; row += step) {
    const float scale = scales[row];
    const uint2 bits = *reinterpret_cast<const uint2*>(codes + row * dim);
    const Four low = Codes::decode(bits.x), high = Codes::decode(bits.y);
    Eight x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] = low.v[i] * scale, x.v[4 + i] = high.v[i] * scale;
    store8(to + row * dim, x);
  }
}

#define SPEEDREAD_WIDEN(name, Codes)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                                         \
      name(const uint8_t* codes, const float* scales, __nv_bfloat16* to, int64_t rows, int64_t capacity, int32_t dim) {     \
    widen_coded<Codes>(codes, scales, to, rows, capacity, dim);                                                             \
  }

SPEEDREAD_WIDEN(widen_fp8, E4m3)
SPEEDREAD_WIDEN(widen_int8, Int8)
