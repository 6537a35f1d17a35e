// Where the attention mass of a prompt's last queries lies (masses.cuh), for Hopper.
//
// A thread block takes a run of keys of one key head, and a warpgroup of it the 64 last queries of one query head of the group; the copy
// engine brings tiles of 64 keys, which all warpgroups share.
#pragma once
#include <cuda.h>

#include "masses.cuh"
#include "mma/wgmma.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

namespace sm90 {

constexpr int kMaxStages = 4;

template <int Dim>
struct ScoreTiles {
  static constexpr int kPanels = (Dim + 63) / 64;
  static constexpr int kPanelBytes = 64 * 128;
  static constexpr int kBytes = kPanels * kPanelBytes;  // of a tile of keys, and of the queries of a head
};

struct ScoreBarriers {
  ptx::Mbarrier queries, full[kMaxStages], empty[kMaxStages];
};

// One thread: brings the queries, and keeps the ring of key tiles full.
template <int Dim>
__device__ __forceinline__ void produce_scores(ScoreBarriers& s, uint8_t* keys, uint8_t* queries, const CUtensorMap* q_map,
                                               const CUtensorMap* k_map, const LastQueriesParams& p, const ScoreTask& task, int tile, int end) {
  using T = ScoreTiles<Dim>;
  s.queries.expect(task.count * T::kBytes);
  for (int g = 0; g < task.count; g++)
    for (int panel = 0; panel < T::kPanels; panel++)
      ptx::tma_load(queries + g * T::kBytes + panel * T::kPanelBytes, q_map, &s.queries, 64 * panel, p.rows - kLastQueries,
                    p.heads[task.slot + g]);
  int stage = 0;
  for (uint32_t parity = 1; tile < end; tile++) {
    s.empty[stage].wait(parity);
    s.full[stage].expect(T::kBytes);
    for (int panel = 0; panel < T::kPanels; panel++)
      ptx::tma_load(keys + stage * T::kBytes + panel * T::kPanelBytes, k_map, &s.full[stage], 64 * panel, tile * kScoredKeys, task.kv_head);
    if (++stage == p.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// Hands `use` the scores of every key tile, of which there is one at least, unscaled, minus infinity where the key lies behind the query.
// Those of the next tile are made meanwhile.
template <typename Element, int Dim, typename Use>
__device__ __forceinline__ void each_tile(ScoreBarriers& s, const uint8_t* keys, const uint8_t* queries, const LastQueriesParams& p, int tile,
                                          int end, int row, int lane, Use use) {
  using T = ScoreTiles<Dim>;
  const mma::Operand a{ptx::shared_address(queries), 16, 1024}, b{ptx::shared_address(keys), 16, 1024};
  float even[kTileScores], odd[kTileScores];
  int stage = 0;
  uint32_t parity = 0;
  auto begin = [&](float (&scores)[kTileScores]) {
    s.full[stage].wait(parity);
    mma::keep(scores);
    mma::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Dim / 16; i++) {
      const int step = (i / 4) * T::kPanelBytes + (i % 4) * 32;
      mma::Wgmma<Element, kScoredKeys>::shared_shared(scores, (a + step).descriptor(), (b + stage * T::kBytes + step).descriptor(), i != 0);
    }
    mma::wgmma_commit();
  };
  auto end_of = [&](float (&scores)[kTileScores]) {
    mma::wgmma_wait<0>();
    mma::keep(scores);
    if (lane == 0) s.empty[stage].arrive();
    if (++stage == p.stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  auto take = [&](float (&scores)[kTileScores]) {
    mask_scores(scores, p, tile, row, lane);
    use(tile, scores);
    tile++;
  };
  s.queries.wait(0);
  begin(even);
  // The last tile is taken apart in both arrays: products begun under a condition would be waited for at once.
  while (true) {
    end_of(even);
    if (tile + 1 == end) {
      take(even);
      break;
    }
    begin(odd);
    take(even);
    end_of(odd);
    if (tile + 1 == end) {
      take(odd);
      break;
    }
    begin(even);
    take(odd);
  }
}

// Grid: (runs of keys, tasks). Block: a warpgroup for each head of the largest task, and the producer's warp.
template <typename Element, int Dim, bool Lines>
__device__ __forceinline__ void last_queries(const CUtensorMap* q_map, const CUtensorMap* k_map, const LastQueriesParams& p) {
  using T = ScoreTiles<Dim>;
  __shared__ ScoreBarriers s;
  extern __shared__ uint8_t raw[];
  const ScoreTask task = p.tasks[blockIdx.y];
  const int groups = blockDim.x / 128;
  uint8_t* const keys = raw + (-ptx::shared_address(raw) & 1023);
  uint8_t* const queries = keys + p.stages * T::kBytes;
  float* const weights = reinterpret_cast<float*>(queries + groups * T::kBytes);
  const int tile = blockIdx.x * p.chunk_tiles;
  const int end = min(tile + p.chunk_tiles, (p.len + kScoredKeys - 1) / kScoredKeys);
  if (threadIdx.x == 0) {
    s.queries.init(1);
    for (int i = 0; i < p.stages; i++) {
      s.full[i].init(1);
      s.empty[i].init(4 * task.count);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  if (group == groups) {
    if (lane == 0) produce_scores<Dim>(s, keys, queries, q_map, k_map, p, task, tile, end);
  } else if (group < task.count) {
    const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;  // and 8 rows below
    const uint8_t* const own = queries + group * T::kBytes;
    auto each = [&](auto use) { each_tile<Element, Dim>(s, keys, own, p, tile, end, row, lane, use); };
    if (Lines) {
      line_sums(each, weights + group * kLastQueries * kWeightPitch, p, group, task.slot + group, tile, end, row, lane);
    } else {
      row_sums(each, p, task.slot + group, row, lane);
    }
  }
}

}  // namespace sm90

#define SPEEDREAD_LAST_QUERIES(NAME, ELEMENT, DIM)                                                                              \
  extern "C" __global__ void __launch_bounds__(4 * 128 + 32)                                                                    \
      NAME##_row_sums_d##DIM(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,                      \
                             const __grid_constant__ LastQueriesParams params) {                                                \
    sm90::last_queries<ELEMENT, DIM, false>(&q, &k, params);                                                                    \
  }                                                                                                                             \
  extern "C" __global__ void __launch_bounds__(4 * 128 + 32)                                                                    \
      NAME##_line_sums_d##DIM(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,                     \
                              const __grid_constant__ LastQueriesParams params) {                                               \
    sm90::last_queries<ELEMENT, DIM, true>(&q, &k, params);                                                                     \
  }
