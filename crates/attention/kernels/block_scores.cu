// Scores of pooled queries against pooled keys, in f32: 64 query tiles by 64 key tiles a thread block, 4 by 4 a thread.
#include "blocks.cuh"

constexpr int kSide = 64;
constexpr int kThreads = 256;
constexpr int kDepth = 32;          // elements of dim held at a time; every head dim is a multiple
constexpr int kPitch = kSide + 4;   // rows of four floats stay aligned, and columns spread over the banks

// Rows `first ..` of a pooled matrix, `depth` elements from `at` on, transposed; zero past the end.
__device__ __forceinline__ void load(float (&to)[kDepth][kPitch], const float* rows, int first, int end, int dim, int at) {
  for (int i = threadIdx.x; i < kSide * kDepth / 4; i += kThreads) {
    const int row = i / (kDepth / 4), column = i % (kDepth / 4) * 4;
    float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
    if (first + row < end) x = *reinterpret_cast<const float4*>(rows + static_cast<int64_t>(first + row) * dim + at + column);
    to[column][row] = x.x;
    to[column + 1][row] = x.y;
    to[column + 2][row] = x.z;
    to[column + 3][row] = x.w;
  }
}

// Grid: (groups of key tiles, groups of query tiles, slots of the batch).
extern "C" __global__ void __launch_bounds__(kThreads) block_scores(const __grid_constant__ BlockParams p) {
  __shared__ __align__(16) float q[kDepth][kPitch], k[kDepth][kPitch];
  const int key = blockIdx.x * kSide, row = blockIdx.y * kSide, slot = blockIdx.z;
  const int tile = p.first_tile + row, end = min(tile + kSide, p.first_tile + p.tiles);
  // Past the own tiles of all of these queries.
  if (static_cast<int64_t>(key) * kTileKeys > p.start + static_cast<int64_t>(end - 1) * kTileQueries) return;
  const float* const pooled_q = p.pooled_q + static_cast<int64_t>(p.first_slot + slot) * p.query_tiles * p.dim;
  const float* const pooled_k = p.pooled_k + static_cast<int64_t>(p.key_slots[p.first_slot + slot]) * p.key_tiles * p.dim;
  const int x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
  float sums[4][4] = {};
  for (int at = 0; at < p.dim; at += kDepth) {
    load(q, pooled_q, tile, end, p.dim, at);
    load(k, pooled_k, key, p.key_tiles, p.dim, at);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; d++) {
      const float4 a = *reinterpret_cast<const float4*>(&q[d][y]), b = *reinterpret_cast<const float4*>(&k[d][x]);
      const float rows[4] = {a.x, a.y, a.z, a.w}, columns[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (tile + y + i < end)
      *reinterpret_cast<float4*>(p.scores + (static_cast<int64_t>(slot) * p.tiles + row + y + i) * p.pitch + key + x) =
          make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
}
