// Attention of one query row per head: a decode step. It only reads the cache, so every key and value is read once, straight into
// registers, for all query heads of its key head together.
//
// The keys are split over thread blocks, and within a block over its warps, 16 at a time. A warp holds the queries of up to 16 heads as
// the rows of A and multiplies them with 8 keys as the columns of B. Which of the 16 places along the inner dimension a component
// takes does not matter as long as A and B agree, so a lane takes components that lie side by side in memory: 16 bytes a load. For the
// product with V likewise: which column of B a component is does not matter as long as the output is read back the same way.
//
// What the warps and blocks found is put together by largest score and sum (as FlashDecoding does).
#pragma once
#include "mma/warp.cuh"
#include "overlap.cuh"

constexpr int kWarps = 4;
constexpr int kHeads = 16;  // rows of A
constexpr int kKeys = 16;   // of a step
// Pairs from a head's sums to the next one's in shared memory.
template <int kDim>
constexpr int kSumsPitch = kDim / 2 + 4;

template <typename Element, typename Stored = Element>
struct DecodeParams {
  const Element* q;
  const Stored* k;
  const Stored* v;
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
  // Of quantised rows, null for others: [key heads][keys].
  const float* k_scales;
  const float* v_scales;
  int64_t scale_head_stride;
};

// Rows of several sequences that go in one launch; the third index of a grid is the row, and within it the round.
constexpr int kRows = 8;
template <typename Element, typename Stored = Element>
struct DecodeRows {
  DecodeParams<Element, Stored> rows[kRows];
  int32_t rounds;
};

// Which component stands at `place` of the sums of a head: the first of every eighth, the second of every eighth, and so on, as the lanes hold
// them. Stores of a warp then go to different banks.
template <int kDim>
__device__ __forceinline__ int component(int place) {
  return place % 8 * (kDim / 8) + place / 8;
}

template <int kBytes>
struct Vector;
template <>
struct Vector<4> { using Type = uint32_t; };
template <>
struct Vector<8> { using Type = uint2; };
template <>
struct Vector<16> { using Type = uint4; };

__device__ __forceinline__ void unpack(uint32_t* to, uint32_t x) { *to = x; }
__device__ __forceinline__ void unpack(uint32_t* to, uint2 x) { to[0] = x.x, to[1] = x.y; }
__device__ __forceinline__ void unpack(uint32_t* to, uint4 x) { to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w; }

// Words `kCount * index ..` of `from`, in loads as wide as their alignment allows.
template <int kCount>
__device__ __forceinline__ void load_words(uint32_t (&words)[kCount], const void* from, int index) {
  constexpr int kWide = kCount % 4 == 0 ? 4 : kCount % 2 == 0 ? 2 : 1;
  using Wide = typename Vector<4 * kWide>::Type;
#pragma unroll
  for (int i = 0; i < kCount / kWide; ++i) unpack(words + i * kWide, static_cast<const Wide*>(from)[index * (kCount / kWide) + i]);
}

// Rows of the cache as `decode_split` reads them: here rows of the queries' own 16-bit type.
template <typename Element, int kDim>
struct PlainRows {
  using Stored = Element;
  static constexpr bool kScaled = false;
  static constexpr int kRun = 8;                // components that a lane takes side by side of a key
  static constexpr int kKeyWords = kDim / 8;    // that a lane holds of a key: a quarter
  static constexpr int kValueWords = kDim / 16;  // and of a value: an eighth

  // Components 4i .. 4i + 3 of those that a lane holds, in pairs.
  static __device__ __forceinline__ uint2 pairs(const uint32_t (&key)[kKeyWords], int i) { return make_uint2(key[2 * i], key[2 * i + 1]); }
  // Component 2i of two values, then component 2i + 1.
  static __device__ __forceinline__ uint2 columns(const uint32_t (&first)[kValueWords], const uint32_t (&second)[kValueWords], int i) {
    return make_uint2(__byte_perm(first[i], second[i], 0x5410), __byte_perm(first[i], second[i], 0x7632));
  }
};

template <typename Element, typename Cache, int kDim>
__device__ __forceinline__ void decode_split(const DecodeParams<Element, typename Cache::Stored>& p, int round) {
  constexpr int kRuns = kDim / (4 * Cache::kRun);  // of a lane
  constexpr int kColumns = kDim / 8;  // components of V that a lane holds of a key
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int split = blockIdx.x, kv_head = blockIdx.y, first_head = round * kHeads;
  const int heads = min(kHeads, p.group - first_head);
  const int64_t query_head = static_cast<int64_t>(kv_head) * p.group + first_head;
  const typename Cache::Stored* k = p.k + kv_head * p.k_head_stride;
  const typename Cache::Stored* v = p.v + kv_head * p.v_head_stride;
  const int end = static_cast<int>(min(static_cast<int64_t>(p.len), (split + static_cast<int64_t>(1)) * p.split_keys));
  overlap();

  // Rows g and g + 8 of A.
  uint32_t q[2][kDim / 8] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = g + 8 * half;
    if (head >= heads) continue;
    const uint4* from = reinterpret_cast<const uint4*>(p.q + (query_head + head) * p.q_head_stride);
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      constexpr int kParts = Cache::kRun / 8;
      unpack(q[half] + 4 * i, from[(i / kParts * 4 + t) * kParts + i % kParts]);
    }
  }

  // A key past the end is read as the last one, and does not count.
  uint32_t keys[2][Cache::kKeyWords];
  float k_scales[2][2];
  const auto load_keys = [&](int key) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* row = k + min(key + 8 * half + g, end - 1) * p.k_row_stride;
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        constexpr int kWords = Cache::kKeyWords / kRuns;
        uint32_t words[kWords];
        load_words(words, row, run * 4 + t);
#pragma unroll
        for (int i = 0; i < kWords; ++i) keys[half][run * kWords + i] = words[i];
      }
      // Those of the columns of the product that this lane gets.
      if constexpr (Cache::kScaled) {
#pragma unroll
        for (int i = 0; i < 2; ++i) k_scales[half][i] = p.k_scales[kv_head * p.scale_head_stride + min(key + 8 * half + 2 * t + i, end - 1)];
      }
    }
  };

  float o[kColumns][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const int first = split * p.split_keys + warp * kKeys;
  if (first < end) load_keys(first);
  for (int key = first; key < end; key += kWarps * kKeys) {
    // Keys 2t, 2t + 1, 2t + 8 and 2t + 9: their places along the inner dimension of the second product.
    uint32_t values[4][Cache::kValueWords];
    float v_scales[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = min(key + 2 * t + i % 2 + 8 * (i / 2), end - 1);
      load_words(values[i], v + at * p.v_row_stride, g);
      if constexpr (Cache::kScaled) v_scales[i / 2][i % 2] = p.v_scales[kv_head * p.scale_head_stride + at];
    }
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint32_t queries[4] = {q[0][2 * i], q[1][2 * i], q[0][2 * i + 1], q[1][2 * i + 1]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 four = Cache::pairs(keys[half], i);
        mma::multiply<Element>(s[half], queries, four.x, four.y);
      }
    }
    if constexpr (Cache::kScaled) {
#pragma unroll
      for (int i = 0; i < 8; ++i) s[i / 4][i % 4] *= k_scales[i / 4][i % 2];
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
    // Of a quantised value the weight takes the scale, after it was counted.
    if constexpr (Cache::kScaled) {
#pragma unroll
      for (int i = 0; i < 8; ++i) s[i / 4][i % 4] *= v_scales[i / 4][i % 2];
    }
    const uint32_t weights[4] = {mma::pack<Element>(s[0][0], s[0][1]), mma::pack<Element>(s[0][2], s[0][3]),
                                 mma::pack<Element>(s[1][0], s[1][1]), mma::pack<Element>(s[1][2], s[1][3])};
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const uint2 near = Cache::columns(values[0], values[1], i), far = Cache::columns(values[2], values[3], i);
      mma::multiply<Element>(o[2 * i], weights, near.x, far.x);
      mma::multiply<Element>(o[2 * i + 1], weights, near.y, far.y);
    }
  }

  // Of the heads there are, [kWarps][heads]: pairs; the pitch keeps the rows of a quarter of a warp apart.
  extern __shared__ __align__(16) uint8_t shared[];
  auto* const all_sums = reinterpret_cast<float2(*)[kSumsPitch<kDim>]>(shared);
  __shared__ float2 all_scales[kWarps][kHeads];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
    sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
    const int head = g + 8 * row;
    if (head >= heads) continue;
    if (t == 0) all_scales[warp][head] = make_float2(largest[row], sum[row]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // Column c of product i is component c * kColumns + i: place 8 * i + c.
      all_sums[warp * heads + head][4 * i + t] = make_float2(o[i][2 * row], o[i][2 * row + 1]);
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
      value += share * reinterpret_cast<const float*>(all_sums[w * heads + head])[place];
    }
    const int64_t of_split = (query_head + head) * p.splits + split;
    p.sums[of_split * kDim + place] = value;
    if (place == 0) p.scales[of_split] = make_float2(most, total);
  }
}

// The same of several rows. A row of fewer splits than the grid has leaves thread blocks without work.
template <typename Element, typename Cache, int kDim>
__device__ __forceinline__ void decode_rows(const DecodeRows<Element, typename Cache::Stored>& p) {
  const auto& row = p.rows[blockIdx.z / p.rounds];
  if (blockIdx.x < row.splits) decode_split<Element, Cache, kDim>(row, blockIdx.z % p.rounds);
}

// A thread block a query head, a thread a component.
template <typename Element, int kDim>
__device__ __forceinline__ void decode_combine(const DecodeParams<Element>& p) {
  overlap();
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
