// From the scores of a prompt's last queries to where their attention mass lies (MInference, algorithm 2): A = softmax(Q[-64..] K^T), summed
// per column and per diagonal. A is never held: a first launch finds each row's normaliser, a second one the sums. Here is what the kernels
// of all chips do with the scores; how they come by them differs.
//
// Four warps, threads 0 .. 128, hold the scores of one query head's 64 last queries over a tile of 64 keys, as matrix products leave them:
// thread t has in scores[4 i + 2 r + e] that of row 16 (t / 32) + t % 32 / 4 + 8 r and column 8 i + 2 (t % 4) + e. Row i of the 64 stands at
// position `len - 64 + i`; those before the first query row are left out.
//
// `each_tile(use)` calls `use(tile, scores)` for the key tiles of the thread block's run, one after the other.
#pragma once
#include "index.cuh"
#include "mma/mask.cuh"
#include "ptx/math.cuh"
#include "ptx/named_barrier.cuh"

constexpr int kLastQueries = 64;
constexpr int kScoredKeys = 64;     // keys of a tile
constexpr int kTileScores = kLastQueries * kScoredKeys / 128;  // of a thread
constexpr int kWeightPitch = 72;    // floats of a row of weights: four rows on, the banks have moved by a whole turn

// Minus infinity for the keys that lie behind a query. `row` is the thread's first one.
__device__ __forceinline__ void mask_scores(float (&scores)[kTileScores], const LastQueriesParams& p, int tile, int row, int lane) {
  const int first_key = tile * kScoredKeys, first_position = p.len - kLastQueries;
  if (first_key + kScoredKeys - 1 > first_position) mma::mask_causal(scores, first_key, first_position + row, lane);
}

// First launch: per row and run of keys the largest score (times scale times log2 e) and the sum of powers of two below it.
template <typename EachTile>
__device__ __forceinline__ void row_sums(const EachTile& each_tile, const LastQueriesParams& p, int slot, int row, int lane) {
  // Finite: a run of keys may hold none that the row sees.
  float top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f};
  each_tile([&](int, float (&scores)[kTileScores]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float now = top[r];
#pragma unroll
      for (int i = 0; i < kTileScores / 2; i++) now = fmaxf(now, scores[(i / 2) * 4 + 2 * r + (i & 1)]);
      // The difference first: of two products, one fused with the subtraction, it would not be zero where nothing is raised, and of tops
      // as low as a run's without visible keys its power would be infinite.
      sum[r] *= ptx::exp2_approx((top[r] - now) * p.scale_log2);
      top[r] = now;
      const float shift = now * p.scale_log2;
#pragma unroll
      for (int i = 0; i < kTileScores / 2; i++) sum[r] += ptx::exp2_approx(fmaf(scores[(i / 2) * 4 + 2 * r + (i & 1)], p.scale_log2, -shift));
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

// Second launch: sums over the 64 rows. The four warps, the block's `group`th, lay the weights of a tile into shared memory, and half of them
// add up columns, the other half diagonals. The run is the tiles `first` .. `end`.
//
// Thread t of the latter adds the tile's diagonals 63 - t (columns minus rows; `near` below) and -1 - t (`far`). The far ones of a tile
// are the near ones of the tile before it, so a sum is whole, and written, one tile later; those at the ends of a run of keys are whole
// only with another run's, and two additions to zero give the same in either order.
template <typename EachTile>
__device__ __forceinline__ void line_sums(const EachTile& each_tile, float* weights, const LastQueriesParams& p, int group, int slot, int first,
                                          int end, int row, int lane) {
  const float shift[2] = {normaliser(p, slot, row), normaliser(p, slot, row + 8)};
  const int thread = threadIdx.x % 128, t = thread % 64;
  // Diagonals are more work: one group's first two warps do them, the next one's last two, so that no scheduler has them all.
  const bool adds_columns = (thread < 64) == (group % 2 == 0);
  float* const columns = p.columns + static_cast<int64_t>(slot) * p.pitch;
  float* const diagonals = p.diagonals + static_cast<int64_t>(slot) * p.pitch;
  float carried = 0.f;
  each_tile([&](int tile, float (&scores)[kTileScores]) {
#pragma unroll
    for (int i = 0; i < kTileScores; i++) scores[i] = ptx::exp2_approx(fmaf(scores[i], p.scale_log2, -shift[(i >> 1) & 1]));
    ptx::barrier_sync(1 + group, 128);  // the tile before has been added up
#pragma unroll
    for (int i = 0; i < kTileScores; i += 2)
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
      // A warp's 32 diagonals change tiles at 32 rows; in the others all of them are near, or all are far. Not unrolled as a whole: the
      // portable kernel has no registers left for more loads in flight.
      auto add = [&](int r, bool is_near) {
        const float weight = (is_near ? at : at - 64)[r * (kWeightPitch + 1)];
        if (is_near) {
          near[r % 2] += weight;
        } else {
          far[r % 2] += weight;
        }
      };
      if (t < 32) {
#pragma unroll 16
        for (int r = 0; r < 32; r++) add(r, r <= t);
#pragma unroll 16
        for (int r = 32; r < kLastQueries; r++) add(r, false);
      } else {
#pragma unroll 16
        for (int r = 0; r < 32; r++) add(r, true);
#pragma unroll 16
        for (int r = 32; r < kLastQueries; r++) add(r, r <= t);
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
