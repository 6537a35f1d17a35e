// Attention of one query row per head: a decode step. It only reads the cache, so every key and value is read once, straight into
// registers, for all query heads of its key head together.
//
// The keys are split over thread blocks, and within a block over its warps, 16 at a time. A warp holds the queries of up to 16 heads as
// the rows of A and multiplies them with 8 keys as the columns of B. Which of the 16 places along the inner dimension a component
// takes does not matter as long as A and B agree, so a lane takes components that lie side by side in memory: 16 bytes a load. For the
// product with V likewise: which column of B a component is does not matter as long as the output is read back the same way.
//
// What the warps and blocks found is put together by largest score and sum (as FlashDecoding does).
#include "mma/warp.cuh"

constexpr int kWarps = 4;
constexpr int kHeads = 16;  // rows of A
constexpr int kKeys = 16;   // of a step

template <typename Element>
struct DecodeParams {
  const Element* q;
  const Element* k;
  const Element* v;
  Element* out;
  float* sums;     // [query heads][splits][dim]: weighted values, in the order of `component`
  float2* scales;  // [query heads][splits]: largest score in powers of two, and sum of weights
  int64_t q_head_stride, out_head_stride;
  int64_t k_row_stride, k_head_stride, v_row_stride, v_head_stride;
  int32_t len;         // keys
  int32_t split_keys;  // of a thread block; a multiple of kWarps * kKeys
  int32_t splits;
  int32_t group;       // query heads of a key head
  float scale_log2;    // softmax scale times log2(e)
};

// Which component stands at `place` of the sums of a head: the first of every eighth, the second of every eighth, and so on, as the lanes hold
// them. Stores of a warp then go to different banks.
template <int kDim>
__device__ __forceinline__ int component(int place) {
  return place % 8 * (kDim / 8) + place / 8;
}

// The elements of row `row` that lane group `g` holds of V: the g-th eighth.
template <int kDim>
__device__ __forceinline__ void load_eighth(uint32_t (&words)[kDim / 16], const void* row, int g) {
  if constexpr (kDim % 64 == 0) {
    const uint4* from = static_cast<const uint4*>(row) + g * (kDim / 64);
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) {
      const uint4 x = from[i];
      words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
    }
  } else {
    const uint2* from = static_cast<const uint2*>(row) + g * (kDim / 32);
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint2 x = from[i];
      words[2 * i] = x.x, words[2 * i + 1] = x.y;
    }
  }
}

template <typename Element, int kDim>
__device__ __forceinline__ void decode_split(const DecodeParams<Element>& p) {
  constexpr int kChunks = kDim / 32;  // of 32 components, 8 a lane
  constexpr int kColumns = kDim / 8;  // components of V that a lane holds of a key
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int split = blockIdx.x, kv_head = blockIdx.y, first_head = blockIdx.z * kHeads;
  const int heads = min(kHeads, p.group - first_head);
  const int64_t query_head = static_cast<int64_t>(kv_head) * p.group + first_head;
  const Element* k = p.k + kv_head * p.k_head_stride;
  const Element* v = p.v + kv_head * p.v_head_stride;
  const int end = min(p.len, (split + 1) * p.split_keys);

  // Rows g and g + 8 of A.
  uint4 q[2][kChunks];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = g + 8 * half;
    const uint4* from = reinterpret_cast<const uint4*>(p.q + (query_head + head) * p.q_head_stride);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) q[half][c] = head < heads ? from[c * 4 + t] : make_uint4(0, 0, 0, 0);
  }

  // A key past the end is read as the last one, and does not count.
  uint4 keys[2][kChunks];
  const auto load_keys = [&](int key) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4* from = reinterpret_cast<const uint4*>(k + min(key + 8 * half + g, end - 1) * p.k_row_stride);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) keys[half][c] = from[c * 4 + t];
    }
  };

  float o[kColumns][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const int first = split * p.split_keys + warp * kKeys;
  if (first < end) load_keys(first);
  for (int key = first; key < end; key += kWarps * kKeys) {
    // Keys 2t, 2t + 1, 2t + 8 and 2t + 9: their places along the inner dimension of the second product.
    uint32_t values[4][kDim / 16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_eighth<kDim>(values[i], v + min(key + 2 * t + i % 2 + 8 * (i / 2), end - 1) * p.v_row_stride, g);
    }
    float s[2][4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const uint32_t low[4] = {q[0][c].x, q[1][c].x, q[0][c].y, q[1][c].y};
      const uint32_t high[4] = {q[0][c].z, q[1][c].z, q[0][c].w, q[1][c].w};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma::multiply<Element>(s[half], low, keys[half][c].x, keys[half][c].y);
        mma::multiply<Element>(s[half], high, keys[half][c].z, keys[half][c].w);
      }
    }
    load_keys(min(key + kWarps * kKeys, end - 1));

    // Scores to weights; a lane holds those of two rows.
    float grown[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most = largest[row];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = s[half][2 * row + i];
          score = key + 8 * half + 2 * t + i < end ? score * p.scale_log2 : -INFINITY;
          most = fmaxf(most, score);
        }
      }
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      // The first key of a step is below the end: `most` is finite.
      grown[row] = exp2f(largest[row] - most);
      largest[row] = most;
      sum[row] *= grown[row];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = s[half][2 * row + i];
          weight = exp2f(weight - most);
          sum[row] += weight;
        }
      }
    }
    if (__any_sync(0xffffffffu, grown[0] != 1.0f || grown[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        o[i][0] *= grown[0], o[i][1] *= grown[0];
        o[i][2] *= grown[1], o[i][3] *= grown[1];
      }
    }
    const uint32_t weights[4] = {mma::pack<Element>(s[0][0], s[0][1]), mma::pack<Element>(s[0][2], s[0][3]),
                                 mma::pack<Element>(s[1][0], s[1][1]), mma::pack<Element>(s[1][2], s[1][3])};
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // The lower or the upper halves of two keys' words.
      const int halves = i % 2 == 0 ? 0x5410 : 0x7632;
      mma::multiply<Element>(o[i], weights, __byte_perm(values[0][i / 2], values[1][i / 2], halves),
                             __byte_perm(values[2][i / 2], values[3][i / 2], halves));
    }
  }

  // Pairs; the pitch keeps the rows of a quarter of a warp apart.
  __shared__ float2 all_sums[kWarps][kHeads][kDim / 2 + 4];
  __shared__ float2 all_scales[kWarps][kHeads];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
    sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
    const int head = g + 8 * row;
    if (t == 0) all_scales[warp][head] = make_float2(largest[row], sum[row]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // Column c of product i is component c * kColumns + i: place 8 * i + c.
      all_sums[warp][head][4 * i + t] = make_float2(o[i][2 * row], o[i][2 * row + 1]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * kDim; i += kWarps * 32) {
    const int head = i / kDim, place = i % kDim;
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, all_scales[w][head].x);
    float total = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float share = exp2f(all_scales[w][head].x - most);
      total += share * all_scales[w][head].y;
      value += share * reinterpret_cast<const float*>(all_sums[w][head])[place];
    }
    const int64_t of_split = (query_head + head) * p.splits + split;
    p.sums[of_split * kDim + place] = value;
    if (place == 0) p.scales[of_split] = make_float2(most, total);
  }
}

// A thread block a query head, a thread a component.
template <typename Element, int kDim>
__device__ __forceinline__ void decode_combine(const DecodeParams<Element>& p) {
  const int64_t head = blockIdx.x;
  const float2* scales = p.scales + head * p.splits;
  const float* sums = p.sums + head * p.splits * kDim + threadIdx.x;
  float most = -INFINITY;
  for (int split = 0; split < p.splits; ++split) most = fmaxf(most, scales[split].x);
  float total = 0.0f, value = 0.0f;
  for (int split = 0; split < p.splits; ++split) {
    const float share = exp2f(scales[split].x - most);
    total += share * scales[split].y;
    value += share * sums[static_cast<int64_t>(split) * kDim];
  }
  p.out[head * p.out_head_stride + component<kDim>(threadIdx.x)] = static_cast<Element>(value / total);
}

#define SPEEDREAD_DECODE(name, element, dim)                                                                                      \
  extern "C" __global__ void __launch_bounds__(kWarps * 32) decode_##name##_d##dim(const __grid_constant__ DecodeParams<element> p) { \
    decode_split<element, dim>(p);                                                                                                \
  }                                                                                                                               \
  extern "C" __global__ void __launch_bounds__(dim) combine_##name##_d##dim(const __grid_constant__ DecodeParams<element> p) {     \
    decode_combine<element, dim>(p);                                                                                              \
  }

SPEEDREAD_DECODE(bf16, __nv_bfloat16, 64)
SPEEDREAD_DECODE(bf16, __nv_bfloat16, 96)
SPEEDREAD_DECODE(bf16, __nv_bfloat16, 128)
SPEEDREAD_DECODE(f16, __half, 64)
SPEEDREAD_DECODE(f16, __half, 96)
SPEEDREAD_DECODE(f16, __half, 128)
