// Where the attention mass of a prompt's last queries lies (masses.cuh), for every chip from compute capability 8.0 on.
//
// A thread block takes a run of keys of one key head, and four warps of it, a group, the 64 last queries of one query head. Queries stay in
// registers; tiles of 64 keys, which all groups share, go through two slots of shared memory: while one is multiplied, the copy of the next
// is under way.
#pragma once
#include "masses.cuh"
#include "mma/warp.cuh"
#include "portable/tensor.cuh"
#include "portable/tiles.cuh"
#include "ptx/shared.cuh"

namespace portable {

constexpr int kScoreGroups = 2;  // at most: two blocks of 68 KB at dim 128 share an Ampere multiprocessor, and four groups pass 99 KB
constexpr int kScoreSlots = 2;
static_assert(kScoreGroups <= kScoreSlots && kScoreSlots == 2, "queries come through the slots of the keys, and those change places");

// The mirror of `ScoreTensors` in `src/cuda/index/scores.rs`.
template <typename Element>
struct ScoreTensors {
  Tensor<const Element> q, k;
};

// The scores of a group's queries over the key tiles `first` .. `end`. All groups of a block call `begin`, then go through the tiles.
template <typename Element, int Dim>
struct Scores {
  using T = Tiles<Dim>;
  static_assert(T::kKeys == kScoredKeys && T::kThreads == 128, "a tile of keys, copied by whole groups");

  const Tensor<const Element>& k;
  const LastQueriesParams& p;
  uint32_t ring;
  int kv_head, first, end, groups, group, row, lane;
  uint32_t queries[Dim / 16][4];

  // Starts the copy of a key tile, a part by each group.
  __device__ __forceinline__ void load(uint32_t to, int tile) const {
    constexpr int kPart = kScoredKeys / kScoreGroups;
    for (int part = group; part < kScoreGroups; part += groups)
      T::template load<kPart>(to + part * kPart * T::kRowBytes, k.data + kv_head * k.head_stride, k.row_stride, tile * kScoredKeys + part * kPart,
                              p.len, threadIdx.x % T::kThreads);
    ptx::copy_async_commit();
  }

  // Brings the group's queries, those before the first row as zeros, and the first key tile.
  __device__ __forceinline__ void begin(const Tensor<const Element>& q, int head) {
    const uint32_t own = ring + group * T::kBytesK;
    T::template load<kLastQueries>(own, q.data + head * q.head_stride, q.row_stride, p.rows - kLastQueries, p.rows, threadIdx.x % T::kThreads);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncthreads();
    const uint32_t from = own + T::place(threadIdx.x % T::kThreads / 32 * 16 + lane % 16, lane / 16);
#pragma unroll
    for (int d = 0; d < Dim / 16; d++) mma::load_matrices(queries[d], T::along(from, 2 * d));
    __syncthreads();  // everybody has the queries: keys may take their place
    load(ring, first);
  }

  // Waits for a tile, and starts the copy of the next one. Returns the slot.
  __device__ __forceinline__ uint32_t arrive(int tile) const {
    const uint32_t slot = (tile - first) % kScoreSlots * T::kBytesK;
    ptx::copy_async_wait<0>();
    ptx::barrier_sync(0, groups * T::kThreads);  // everybody's part has come, and the last tile is no longer needed
    if (tile + 1 < end) load(ring + T::kBytesK - slot, tile + 1);
    return ring + slot;
  }

  // All that a group without a head does: its part of the copies.
  __device__ __forceinline__ void help() const {
    for (int tile = first; tile < end; tile++) arrive(tile);
  }

  template <typename Use>
  __device__ __forceinline__ void operator()(Use use) const {
    const uint32_t lane_place = T::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll 1
    for (int tile = first; tile < end; tile++) {
      const uint32_t from = arrive(tile) + lane_place;
      float scores[kTileScores];
#pragma unroll
      for (int i = 0; i < kTileScores; i++) scores[i] = 0.f;
#pragma unroll
      for (int d = 0; d < Dim / 16; d++)
#pragma unroll
        for (int n = 0; n < kScoredKeys / 16; n++) {
          uint32_t keys[4];
          mma::load_matrices(keys, T::along(from, 2 * d) + n * 16 * T::kRowBytes);
          mma::multiply<Element>(scores + 8 * n, queries[d], keys[0], keys[1]);
          mma::multiply<Element>(scores + 8 * n + 4, queries[d], keys[2], keys[3]);
        }
      mask_scores(scores, p, tile, row, lane);
      use(tile, scores);
    }
  }
};

// Grid: (runs of keys, tasks, blocks that share the heads of the largest task). Block: a group for each head of it, `kScoreGroups` at most.
template <typename Element, int Dim, bool Lines>
__device__ __forceinline__ void last_queries(const ScoreTensors<Element>& x, const LastQueriesParams& p) {
  using T = Tiles<Dim>;
  extern __shared__ __align__(128) uint8_t raw[];
  const ScoreTask task = p.tasks[blockIdx.y];
  const int groups = blockDim.x / T::kThreads, group = threadIdx.x / T::kThreads, lane = threadIdx.x % 32;
  if (static_cast<int>(blockIdx.z) * groups >= task.count) return;
  // An odd head leaves a group without one, which is there for the copies; its queries are the last head's again.
  const int head = blockIdx.z * groups + group;
  const int slot = task.slot + min(head, task.count - 1);
  const int first = blockIdx.x * p.chunk_tiles, end = min(first + p.chunk_tiles, (p.len + kScoredKeys - 1) / kScoredKeys);
  const int row = threadIdx.x % T::kThreads / 32 * 16 + lane / 4;  // and 8 rows below
  Scores<Element, Dim> scores{x.k, p, ptx::shared_address(raw), task.kv_head, first, end, groups, group, row, lane};
  scores.begin(x.q, p.heads[slot]);
  if (head >= task.count) {
    scores.help();
  } else if (Lines) {
    float* const weights = reinterpret_cast<float*>(raw + kScoreSlots * T::kBytesK) + group * kLastQueries * kWeightPitch;
    line_sums(scores, weights, p, group, slot, first, end, row, lane);
  } else {
    row_sums(scores, p, slot, row, lane);
  }
}

}  // namespace portable

#define SPEEDREAD_LAST_QUERIES(NAME, ELEMENT, DIM)                                                                                   \
  extern "C" __global__ void __launch_bounds__(portable::kScoreGroups * 128, 2)                                                      \
      NAME##_row_sums_d##DIM(const __grid_constant__ portable::ScoreTensors<ELEMENT> tensors,                                        \
                             const __grid_constant__ LastQueriesParams params) {                                                     \
    portable::last_queries<ELEMENT, DIM, false>(tensors, params);                                                                    \
  }                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(portable::kScoreGroups * 128, 2)                                                      \
      NAME##_line_sums_d##DIM(const __grid_constant__ portable::ScoreTensors<ELEMENT> tensors,                                       \
                              const __grid_constant__ LastQueriesParams params) {                                                    \
    portable::last_queries<ELEMENT, DIM, true>(tensors, params);                                                                     \
  }
