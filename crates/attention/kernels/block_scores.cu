// Scores of pooled queries against pooled keys: 128 query tiles by 128 key tiles a thread block, 64 by 32 a warp; and the largest of every
// group of key tiles.
#include "blocks.cuh"
#include "mma/warp.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/shared.cuh"

constexpr int kSide = 128;
constexpr int kThreads = 256;
constexpr int kDepth = 32;       // elements of dim held at a time, in two slots; every head dim is a multiple
constexpr int kPitch = kDepth + 8;  // elements: rows of 16 bytes times an odd number, so that eight of them lie in different banks
constexpr int kWarpRows = 64, kWarpKeys = 32, kStrips = kWarpRows / 16, kColumns = kWarpKeys / 8;
static_assert(kWarpKeys == 2 * kGroup, "a warp has whole groups");

// The mirror of `SCORE_BYTES` in `src/cuda/index/blocks.rs`.
struct Shared {
  __half q[2][kSide][kPitch], k[2][kSide][kPitch];
};
static_assert(sizeof(Shared) == 40960, "the host's size");

// Starts the copy of rows `first ..` of a pooled matrix, `kDepth` elements from `at` on; zeros past the end.
__device__ __forceinline__ void load(__half (&to)[kSide][kPitch], const __half* rows, int first, int end, int dim, int at) {
#pragma unroll
  for (int i = threadIdx.x; i < kSide * kDepth / 8; i += kThreads) {
    const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
    const bool valid = first + row < end;
    ptx::copy_async(ptx::shared_address(&to[row][column]), rows + static_cast<int64_t>(valid ? first + row : 0) * dim + at + column, valid);
  }
}

// Grid: (groups of key tiles, groups of query tiles, slots of the batch).
extern "C" __global__ void __launch_bounds__(kThreads, 2) block_scores(const __grid_constant__ BlockParams p) {
  extern __shared__ __align__(128) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared*>(raw);
  const int key = blockIdx.x * kSide, row = blockIdx.y * kSide, slot = blockIdx.z;
  const int tile = p.first_tile + row, end = min(tile + kSide, p.first_tile + p.tiles);
  // Past the own tiles of all of these queries.
  if (static_cast<int64_t>(key) * kTileKeys > p.start + static_cast<int64_t>(end - 1) * kTileQueries) return;
  const __half* const pooled_q = p.pooled_q + static_cast<int64_t>(p.first_slot + slot) * p.query_tiles * p.dim;
  const __half* const pooled_k = p.pooled_k + static_cast<int64_t>(p.key_slots[p.first_slot + slot]) * p.key_tiles * p.dim;
  auto bring = [&](int at) {
    load(s.q[at / kDepth % 2], pooled_q, tile, end, p.dim, at);
    load(s.k[at / kDepth % 2], pooled_k, key, p.key_tiles, p.dim, at);
    ptx::copy_async_commit();
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int y = warp / 4 * kWarpRows, x = warp % 4 * kWarpKeys;
  float sums[kStrips][kColumns][4] = {};
  bring(0);
  for (int at = 0; at < p.dim; at += kDepth) {
    ptx::copy_async_wait<0>();
    __syncthreads();
    if (at + kDepth < p.dim) bring(at + kDepth);
    const auto& rows = s.q[at / kDepth % 2];
    const auto& keys = s.k[at / kDepth % 2];
#pragma unroll
    for (int d = 0; d < kDepth; d += 16) {
      uint32_t a[kStrips][4], b[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kStrips; i++) mma::load_matrices(a[i], ptx::shared_address(&rows[y + 16 * i + lane % 16][d + lane / 16 * 8]));
#pragma unroll
      for (int j = 0; j < kColumns / 2; j++)
        mma::load_matrices(b[j], ptx::shared_address(&keys[x + 16 * j + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]));
#pragma unroll
      for (int i = 0; i < kStrips; i++)
#pragma unroll
        for (int j = 0; j < kColumns; j++) mma::multiply<__half>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < kStrips; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int in_block = y + 16 * i + 8 * half + lane / 4;
      float largest[2];
#pragma unroll
      for (int g = 0; g < 2; g++) {
        const auto &near = sums[i][2 * g], &far = sums[i][2 * g + 1];
        float most = fmaxf(fmaxf(near[2 * half], near[2 * half + 1]), fmaxf(far[2 * half], far[2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        largest[g] = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      }
      if (tile + in_block >= end) continue;
      const int64_t in_batch = static_cast<int64_t>(slot) * p.tiles + row + in_block;
      float* const to = p.scores + in_batch * p.pitch + key + x + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kColumns; j++) *reinterpret_cast<float2*>(to + 8 * j) = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      if (lane % 4 < 2) p.largest[(in_batch * p.pitch + key + x) / kGroup + lane % 4] = lane % 4 == 0 ? largest[0] : largest[1];
    }
}
