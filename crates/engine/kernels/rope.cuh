// What the kernels that rotate and append share: their parameters, and rotation of a few pairs of components.
#pragma once
#include "vector.cuh"

template <typename Cached>
struct RopeParams {
  __nv_bfloat16* q;        // [rows][q_heads][dim], rotated in place
  const __nv_bfloat16* k;  // [rows][kv_heads][dim]
  const __nv_bfloat16* v;
  const float* cosines;    // [rows][pairs]
  const float* sines;
  Cached* cache_k;         // the place of the first row in the first head
  Cached* cache_v;
  int64_t head_stride;     // of the cache, in elements
  int32_t row_stride;
  int32_t q_heads, kv_heads, dim, pairs;
};

// Single rows of several sequences that go in one launch, a thread block of the grid's first index each.
constexpr int kRows = 8;
template <typename Params>
struct RopeRows {
  Params rows[kRows];
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
