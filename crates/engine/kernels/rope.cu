// Rotary embedding of queries and keys, and the keys' and values' way into the cache.
#include "vector.cuh"

// cosines[row][pair], sines[row][pair] = scale * cos, sin((start + row) * frequency[pair]). Angles in f64: at a million tokens an f32 angle
// is wrong by 0.06 radians.
extern "C" __global__ void __launch_bounds__(256)
rotary_table(const double* frequencies, float* cosines, float* sines, int64_t rows, int32_t pairs, int64_t start, double scale) {
  const int64_t count = rows * pairs, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    double s, c;
    sincos(static_cast<double>(start + i / pairs) * frequencies[i % pairs], &s, &c);
    cosines[i] = static_cast<float>(c * scale);
    sines[i] = static_cast<float>(s * scale);
  }
}

struct RopeParams {
  __nv_bfloat16* q;        // [rows][q_heads][dim], rotated in place
  const __nv_bfloat16* k;  // [rows][kv_heads][dim]
  const __nv_bfloat16* v;
  const float* cosines;    // [rows][pairs]
  const float* sines;
  __nv_bfloat16* cache_k;  // the place of the first row in the first head
  __nv_bfloat16* cache_v;
  int64_t head_stride;     // of the cache, in elements
  int32_t row_stride;
  int32_t q_heads, kv_heads, dim, pairs;
};

// Of a head, `kWidth` pairs of components (i, i + pairs).
template <int kWidth>
__device__ __forceinline__ void rotate_halves(const __nv_bfloat16* from, __nv_bfloat16* to, const float* cosines, const float* sines,
                                              int pair, int pairs) {
  if constexpr (kWidth == 8) {
    const Eight first = load8(from + pair), second = load8(from + pairs + pair);
    const Eight c = load8(cosines + pair), s = load8(sines + pair);
    Eight x, y;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x.v[i] = first.v[i] * c.v[i] - second.v[i] * s.v[i];
      y.v[i] = second.v[i] * c.v[i] + first.v[i] * s.v[i];
    }
    store8(to + pair, x);
    store8(to + pairs + pair, y);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float a = __bfloat162float(from[pair + i]), b = __bfloat162float(from[pairs + pair + i]);
      const float c = cosines[pair + i], s = sines[pair + i];
      to[pair + i] = __float2bfloat16_rn(a * c - b * s);
      to[pairs + pair + i] = __float2bfloat16_rn(b * c + a * s);
    }
  }
}

// Of a head, `kWidth` pairs of components (2i, 2i + 1).
template <int kWidth>
__device__ __forceinline__ void rotate_neighbours(const __nv_bfloat16* from, __nv_bfloat16* to, const float* cosines, const float* sines,
                                                  int pair) {
  if constexpr (kWidth == 4) {
    const Eight x = load8(from + 2 * pair);
    const float4 c4 = *reinterpret_cast<const float4*>(cosines + pair), s4 = *reinterpret_cast<const float4*>(sines + pair);
    const float c[4] = {c4.x, c4.y, c4.z, c4.w}, s[4] = {s4.x, s4.y, s4.z, s4.w};
    Eight y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y.v[2 * i] = x.v[2 * i] * c[i] - x.v[2 * i + 1] * s[i];
      y.v[2 * i + 1] = x.v[2 * i + 1] * c[i] + x.v[2 * i] * s[i];
    }
    store8(to + 2 * pair, y);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float a = __bfloat162float(from[2 * (pair + i)]), b = __bfloat162float(from[2 * (pair + i) + 1]);
      const float c = cosines[pair + i], s = sines[pair + i];
      to[2 * (pair + i)] = __float2bfloat16_rn(a * c - b * s);
      to[2 * (pair + i) + 1] = __float2bfloat16_rn(b * c + a * s);
    }
  }
}

// A thread block a row; a thread takes `kWidth` pairs at a time, or eight components where nothing is rotated.
template <bool kHalves, int kWidth>
__device__ __forceinline__ void rope_append(const RopeParams& p) {
  const int64_t row = blockIdx.x;
  __nv_bfloat16* q = p.q + row * p.q_heads * p.dim;
  const __nv_bfloat16* k = p.k + row * p.kv_heads * p.dim;
  const __nv_bfloat16* v = p.v + row * p.kv_heads * p.dim;
  const float *cosines = p.cosines + row * p.pairs, *sines = p.sines + row * p.pairs;
  __nv_bfloat16* cache_k = p.cache_k + row * p.row_stride;
  __nv_bfloat16* cache_v = p.cache_v + row * p.row_stride;

  const int turns = p.pairs / kWidth;
  for (int i = threadIdx.x; i < (p.q_heads + p.kv_heads) * turns; i += blockDim.x) {
    const int head = i / turns, pair = i % turns * kWidth;
    const bool is_key = head >= p.q_heads;
    const int kv_head = head - p.q_heads;
    const __nv_bfloat16* from = is_key ? k + kv_head * p.dim : q + head * p.dim;
    __nv_bfloat16* to = is_key ? cache_k + kv_head * p.head_stride : q + head * p.dim;
    if constexpr (kHalves) {
      rotate_halves<kWidth>(from, to, cosines, sines, pair, p.pairs);
    } else {
      rotate_neighbours<kWidth>(from, to, cosines, sines, pair);
    }
  }
  // The components of keys that are not rotated.
  const int rotated = 2 * p.pairs, rest = p.dim - rotated;
  for (int i = threadIdx.x; i < p.kv_heads * rest; i += blockDim.x) {
    const int head = i / rest, at = rotated + i % rest;
    cache_k[head * p.head_stride + at] = k[head * p.dim + at];
  }
  const int chunks = p.dim / 8;
  for (int i = threadIdx.x; i < p.kv_heads * chunks; i += blockDim.x) {
    const int head = i / chunks, at = i % chunks * 8;
    *reinterpret_cast<uint4*>(cache_v + head * p.head_stride + at) = *reinterpret_cast<const uint4*>(v + head * p.dim + at);
  }
}

#define SPEEDREAD_ROPE(name, halves, width) \
  extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ RopeParams p) { rope_append<halves, width>(p); }

SPEEDREAD_ROPE(rope_append_halves, true, 8)
SPEEDREAD_ROPE(rope_append_halves_narrow, true, 1)
SPEEDREAD_ROPE(rope_append_interleaved, false, 4)
SPEEDREAD_ROPE(rope_append_interleaved_narrow, false, 1)
