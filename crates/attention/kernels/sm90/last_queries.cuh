// Where the attention mass of a prompt's last queries lies (MInference, algorithm 2), for Hopper: A = softmax(Q[-64..] K^T), summed per
// column and per diagonal. A is never held: a first launch finds each row's normaliser, a second one the sums.
//
// A thread block takes a run of keys of one key head, and a warpgroup of it the 64 last queries of one query head of the group; the copy
// engine brings tiles of 64 keys, which all warpgroups share. Row i of the 64 stands at position `len - 64 + i`; those before the first
// query row are left out.
#pragma once
#include <cuda.h>

#include "index.cuh"
#include "mma/wgmma.cuh"
#include "ptx/math.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/tma.cuh"

namespace sm90 {

constexpr int kLastQueries = 64;
constexpr int kScoredKeys = 64;     // keys of a tile
constexpr int kMaxStages = 4;
constexpr int kWeightPitch = 72;    // floats of a row of weights: four rows on, the banks have moved by a whole turn

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

// Hands `use` the scores of every key tile, unscaled, minus infinity where the key lies behind the query.
template <typename Element, int Dim, typename Use>
__device__ __forceinline__ void each_tile(ScoreBarriers& s, const uint8_t* keys, const uint8_t* queries, const LastQueriesParams& p, int tile,
                                          int end, int row, int lane, Use use) {
  using T = ScoreTiles<Dim>;
  const mma::Operand a{ptx::shared_address(queries), 16, 1024}, b{ptx::shared_address(keys), 16, 1024};
  float scores[kScoredKeys / 2];
  s.queries.wait(0);
  int stage = 0;
  for (uint32_t parity = 0; tile < end; tile++) {
    s.full[stage].wait(parity);
    mma::keep(scores);
    mma::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Dim / 16; i++) {
      const int step = (i / 4) * T::kPanelBytes + (i % 4) * 32;
      mma::Wgmma<Element, kScoredKeys>::shared_shared(scores, (a + step).descriptor(), (b + stage * T::kBytes + step).descriptor(), i != 0);
    }
    mma::wgmma_commit();
    mma::wgmma_wait<0>();
    mma::keep(scores);
    if (lane == 0) s.empty[stage].arrive();
    if (++stage == p.stages) {
      stage = 0;
      parity ^= 1;
    }
    if (tile * kScoredKeys + kScoredKeys - 1 > p.len - kLastQueries) {
      const int behind = p.len - kLastQueries + row - tile * kScoredKeys - lane % 4 * 2;  // last column of the tile that the row sees
#pragma unroll
      for (int i = 0; i < kScoredKeys / 2; i++)
        if ((i / 4) * 8 + (i & 1) > behind + ((i >> 1) & 1) * 8) scores[i] = -INFINITY;
    }
    use(tile, scores);
  }
}

// First launch: per row and run of keys the largest score (times scale times log2 e) and the sum of powers of two below it.
template <typename Element, int Dim>
__device__ __forceinline__ void row_sums(ScoreBarriers& s, const uint8_t* keys, const uint8_t* queries, const LastQueriesParams& p, int slot,
                                         int tile, int end, int row, int lane) {
  // Finite: a run of keys may hold none that the row sees.
  float top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f};
  each_tile<Element, Dim>(s, keys, queries, p, tile, end, row, lane, [&](int, float (&scores)[kScoredKeys / 2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float now = top[r];
#pragma unroll
      for (int i = 0; i < kScoredKeys / 4; i++) now = fmaxf(now, scores[(i / 2) * 4 + 2 * r + (i & 1)]);
      // The difference first: of two products, one fused with the subtraction, it would not be zero where nothing is raised, and of tops
      // as low as a run's without visible keys its power would be infinite.
      sum[r] *= ptx::exp2_approx((top[r] - now) * p.scale_log2);
      top[r] = now;
      const float shift = now * p.scale_log2;
#pragma unroll
      for (int i = 0; i < kScoredKeys / 4; i++) sum[r] += ptx::exp2_approx(fmaf(scores[(i / 2) * 4 + 2 * r + (i & 1)], p.scale_log2, -shift));
    }
  });
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float all = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
    all = fmaxf(all, __shfl_xor_sync(~0u, all, 2));
    float total = sum[r] * ptx::exp2_approx((top[r] - all) * p.scale_log2);
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (lane % 4 == 0)
      p.partials[(static_cast<int64_t>(slot) * gridDim.x + blockIdx.x) * kLastQueries + row + 8 * r] = make_float2(all * p.scale_log2, total);
  }
}

// Base-2 log-sum-exp of a row; plus infinity for a row before the first query, so that it has no mass.
__device__ __forceinline__ float normaliser(const LastQueriesParams& p, int slot, int row) {
  if (row < kLastQueries - p.rows) return INFINITY;
  const float2* partials = p.partials + static_cast<int64_t>(slot) * gridDim.x * kLastQueries + row;
  float top = -INFINITY, sum = 0.f;
  for (int chunk = 0; chunk < gridDim.x; chunk++) top = fmaxf(top, __ldg(&partials[chunk * kLastQueries].x));
  for (int chunk = 0; chunk < gridDim.x; chunk++) {
    const float2 partial = __ldg(&partials[chunk * kLastQueries]);
    sum += partial.y * ptx::exp2_approx(partial.x - top);
  }
  return top + log2f(sum);
}

// Second launch: sums over the 64 rows. The warpgroup lays the weights of a tile into shared memory, and half of it adds up columns, the
// other half diagonals.
//
// Thread t of the latter adds the tile's diagonals 63 - t (columns minus rows; `near` below) and -1 - t (`far`). The far ones of a tile
// are the near ones of the tile before it, so a sum is whole, and written, one tile later; those at the ends of a run of keys are whole
// only with another run's, and two additions to zero give the same in either order.
template <typename Element, int Dim>
__device__ __forceinline__ void line_sums(ScoreBarriers& s, const uint8_t* keys, const uint8_t* queries, float* weights,
                                          const LastQueriesParams& p, int group, int slot, int tile, int end, int row, int lane) {
  const float shift[2] = {normaliser(p, slot, row), normaliser(p, slot, row + 8)};
  const int thread = threadIdx.x % 128, t = thread % 64;
  const bool adds_columns = thread < 64;
  float* const columns = p.columns + static_cast<int64_t>(slot) * p.pitch;
  float* const diagonals = p.diagonals + static_cast<int64_t>(slot) * p.pitch;
  const int first = tile;
  float carried = 0.f;
  each_tile<Element, Dim>(s, keys, queries, p, tile, end, row, lane, [&](int tile, float (&scores)[kScoredKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kScoredKeys / 2; i++) scores[i] = ptx::exp2_approx(fmaf(scores[i], p.scale_log2, -shift[(i >> 1) & 1]));
    ptx::barrier_sync(1 + group, 128);  // the tile before has been added up
#pragma unroll
    for (int i = 0; i < kScoredKeys / 2; i += 2)
      *reinterpret_cast<float2*>(weights + (row + ((i >> 1) & 1) * 8) * kWeightPitch + (i / 4) * 8 + lane % 4 * 2) =
          make_float2(scores[i], scores[i + 1]);
    ptx::barrier_sync(1 + group, 128);
    if (adds_columns) {
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int r = 0; r < kLastQueries; r++) sum[r % 4] += weights[r * kWeightPitch + t];
      const int key = tile * kScoredKeys + t;
      if (key < p.len) columns[key] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    } else {
      float near[2] = {0.f, 0.f}, far[2] = {0.f, 0.f};
      const float* const at = weights + 63 - t;
#pragma unroll
      for (int r = 0; r < kLastQueries; r++) {
        const float weight = (r <= t ? at : at - 64)[r * (kWeightPitch + 1)];
        if (r <= t) {
          near[r % 2] += weight;
        } else {
          far[r % 2] += weight;
        }
      }
      const float whole = carried + (far[0] + far[1]);
      carried = near[0] + near[1];
      const int distance = p.len - 63 - tile * kScoredKeys + t;
      if (distance >= 0 && distance < p.len) {
        if (tile == first) {
          atomicAdd(diagonals + distance, whole);
        } else {
          diagonals[distance] = whole;
        }
      }
    }
  });
  if (!adds_columns) {
    const int distance = p.len - 127 - (end - 1) * kScoredKeys + t;
    if (distance >= 0 && distance < p.len) atomicAdd(diagonals + distance, carried);
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
    if (Lines) {
      line_sums<Element, Dim>(s, keys, own, weights + group * kLastQueries * kWeightPitch, p, group, task.slot + group, tile, end, row, lane);
    } else {
      row_sums<Element, Dim>(s, keys, own, p, task.slot + group, tile, end, row, lane);
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
