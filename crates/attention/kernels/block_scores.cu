// Scores of pooled queries against pooled keys, and the largest of every group of key tiles. A thread block takes 128 query tiles and a run
// of key tiles, 128 at a time, of which a warp has 64 by 32; the copy of the next ones is under way meanwhile.
#include "blocks.cuh"
#include "mma/warp.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/shared.cuh"

constexpr int kSide = 128;
constexpr int kSteps = 4;  // of 128 key tiles, of a thread block
constexpr int kThreads = 256;
constexpr int kWarpRows = 64, kWarpKeys = 32, kStrips = kWarpRows / 16, kColumns = kWarpKeys / 8;
static_assert(kWarpKeys == 2 * kGroup, "a warp has whole groups");

// Rows of a pooled matrix, of 16 chunks of 16 bytes. Chunks change places by row, so that a chunk of eight successive rows lies in different
// banks.
struct Rows {
  __half elements[kSide][128];

  __device__ __forceinline__ uint32_t place(int row, int column) const {
    return ptx::shared_address(&elements[row][((column / 8) ^ (row % 8)) * 8]);
  }
};

// The mirror of `SCORE_BYTES` in `src/cuda/index/blocks.rs`: chips of 100 KB have room for it.
struct Shared {
  Rows q, k[2];
};
static_assert(sizeof(Shared) == 98304, "the host's size");

// Starts the copy of rows `first ..` of a pooled matrix; zeros past the end.
__device__ __forceinline__ void load(Rows& to, const __half* rows, int first, int end, int dim) {
  constexpr int kChunks = 128 / 8;
  const int column = threadIdx.x % kChunks * 8;
  if (column >= dim) return;
#pragma unroll
  for (int row = threadIdx.x / kChunks; row < kSide; row += kThreads / kChunks) {
    const bool valid = first + row < end;
    ptx::copy_async(to.place(row, column), rows + static_cast<int64_t>(valid ? first + row : 0) * dim + column, valid);
  }
}

// Grid: (runs of key tiles, groups of query tiles, slots of the batch).
extern "C" __global__ void __launch_bounds__(kThreads, 2) block_scores(const __grid_constant__ BlockParams p) {
  extern __shared__ __align__(128) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared*>(raw);
  const int row = blockIdx.y * kSide, slot = blockIdx.z;
  const int tile = p.first_tile + row, end = min(tile + kSide, p.first_tile + p.tiles);
  // Up to the own tiles of the last of these queries; all of a row up to its own tile is written, in whole steps.
  const int first_key = blockIdx.x * kSide * kSteps;
  const int own = static_cast<int>((p.start + static_cast<int64_t>(end - 1) * kTileQueries) / kTileKeys);
  const int end_key = min(first_key + kSide * kSteps, own + 1);
  if (first_key >= end_key) return;
  const __half* const pooled_q = p.pooled_q + static_cast<int64_t>(p.first_slot + slot) * p.query_tiles * p.dim;
  const __half* const pooled_k = p.pooled_k + static_cast<int64_t>(p.key_slots[p.first_slot + slot]) * p.key_tiles * p.dim;
  load(s.q, pooled_q, tile, end, p.dim);
  load(s.k[0], pooled_k, first_key, p.key_tiles, p.dim);
  ptx::copy_async_commit();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int y = warp / 4 * kWarpRows, x = warp % 4 * kWarpKeys;
  auto scores = [](float a, float b) { return order_of_pair(mma::pack<__half>(a, b)); };
  for (int step = 0, key = first_key; key < end_key; step++, key += kSide) {
    ptx::copy_async_wait<0>();
    __syncthreads();  // everybody's part has come, and the last step's keys are no longer needed
    if (key + kSide < end_key) {
      load(s.k[(step + 1) % 2], pooled_k, key + kSide, p.key_tiles, p.dim);
      ptx::copy_async_commit();
    }
    const auto& keys = s.k[step % 2];
    float sums[kStrips][kColumns][4] = {};
    Score* to = p.scores + (static_cast<int64_t>(slot) * p.tiles + row + y + lane / 4) * p.pitch + key + x + lane % 4 * 2;
    Score* to_largest = p.largest + ((static_cast<int64_t>(slot) * p.tiles + row + y + lane / 4) * p.pitch + key + x) / kGroup;
#pragma unroll
    for (int d = 0; d < 128; d += 16) {
      if (d >= p.dim) break;
      uint32_t a[kStrips][4], b[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kStrips; i++) mma::load_matrices(a[i], s.q.place(y + 16 * i + lane % 16, d + lane / 16 * 8));
#pragma unroll
      for (int j = 0; j < kColumns / 2; j++)
        mma::load_matrices(b[j], keys.place(x + 16 * j + lane / 16 * 8 + lane % 8, d + lane / 8 % 2 * 8));
#pragma unroll
      for (int i = 0; i < kStrips; i++)
#pragma unroll
        for (int j = 0; j < kColumns; j++) mma::multiply<__half>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
#pragma unroll
    for (int i = 0; i < kStrips; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t pairs[kColumns];
        float largest[2];
#pragma unroll
        for (int j = 0; j < kColumns; j++) pairs[j] = scores(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
#pragma unroll
        for (int g = 0; g < 2; g++) {
          const auto &near = sums[i][2 * g], &far = sums[i][2 * g + 1];
          float most = fmaxf(fmaxf(near[2 * half], near[2 * half + 1]), fmaxf(far[2 * half], far[2 * half + 1]));
          most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
          largest[g] = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        }
        if (tile + y + 16 * i + 8 * half + lane / 4 < end) {
#pragma unroll
          for (int j = 0; j < kColumns; j++) *reinterpret_cast<uint32_t*>(to + 8 * j) = pairs[j];
          if (lane % 4 == 0) *reinterpret_cast<uint32_t*>(to_largest) = scores(largest[0], largest[1]);
        }
        to += 8 * p.pitch;
        to_largest += 8 * p.pitch / kGroup;
      }
  }
}
