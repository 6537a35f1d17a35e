// Rotary embedding of queries and keys, and the keys' and values' way into the cache.
#include "overlap.cuh"
#include "rope.cuh"

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

// A thread block a row; a thread takes `kWidth` pairs at a time, or eight components where nothing is rotated.
template <bool kHalves, int kWidth>
__device__ __forceinline__ void rope_append(const RopeParams<__nv_bfloat16>& p, int64_t row) {
  overlap();
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

#define SPEEDREAD_ROPE(name, halves, width)                                                \
  extern "C" __global__ void __launch_bounds__(128)                                        \
      rope_append_##name(const __grid_constant__ RopeParams<__nv_bfloat16> p) {            \
    rope_append<halves, width>(p, blockIdx.x);                                             \
  }                                                                                        \
  extern "C" __global__ void __launch_bounds__(128)                                        \
      rope_append_rows_##name(const __grid_constant__ RopeRows<RopeParams<__nv_bfloat16>> p) { \
    rope_append<halves, width>(p.rows[blockIdx.x], 0);                                     \
  }

SPEEDREAD_ROPE(halves, true, 8)
SPEEDREAD_ROPE(halves_narrow, true, 1)
SPEEDREAD_ROPE(interleaved, false, 4)
SPEEDREAD_ROPE(interleaved_narrow, false, 1)
