// How the output of sparse attention differs from that of dense attention: for each head, sums over runs of rows, in an order that is always
// the same.
#include "widen.cuh"

constexpr int kWarps = 8;
constexpr int kRows = 64;  // of a run, a thread block's

// These mirror `src/cuda/compare.rs`.
struct DeviationSums {
  double error;   // squared differences
  double energy;  // squared dense outputs
  double kept;    // shares of attention mass
  double least;   // of these
};
struct DeviationParams {
  const uint32_t* dense;    // [rows][heads][pairs]
  const uint32_t* sparse;   // [rows][heads][pairs]
  const float* dense_lse;   // [heads][rows], natural log-sum-exp
  const float* sparse_lse;  // [heads][rows]
  DeviationSums* sums;      // [heads][runs]
  int32_t rows;
  int32_t heads;
  int32_t pairs;            // of elements in a head's row
};

__device__ __forceinline__ double sum_of_lanes(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Grid: (runs, heads). A warp takes every eighth row of the run.
template <typename Element>
__device__ __forceinline__ void deviations(const DeviationParams& p) {
  __shared__ DeviationSums warps[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t head = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kRows;
  DeviationSums sum = {0, 0, 0, INFINITY};
  auto keep_least = [&](double share) { sum.least = share < sum.least ? share : sum.least; };
  for (int64_t row = first + warp; row < min(first + kRows, static_cast<int64_t>(p.rows)); row += kWarps) {
    const int64_t at = (row * p.heads + head) * p.pairs;
    float off = 0.f, all = 0.f;
    for (int i = lane; i < p.pairs; i += 32) {
      const float2 a = Element::widen(p.dense[at + i]), b = Element::widen(p.sparse[at + i]);
      off += (a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y);
      all += a.x * a.x + a.y * a.y;
    }
    sum.error += off;
    sum.energy += all;
    const double share = exp(static_cast<double>(p.sparse_lse[head * p.rows + row]) - p.dense_lse[head * p.rows + row]);
    sum.kept += share;
    keep_least(share);
  }
  sum.error = sum_of_lanes(sum.error);
  sum.energy = sum_of_lanes(sum.energy);
  if (lane == 0) warps[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; w++) {
    sum.error += warps[w].error;
    sum.energy += warps[w].energy;
    sum.kept += warps[w].kept;
    keep_least(warps[w].least);
  }
  p.sums[head * gridDim.x + blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(32 * kWarps) deviations_bf16(const __grid_constant__ DeviationParams p) { deviations<Bf16>(p); }
extern "C" __global__ void __launch_bounds__(32 * kWarps) deviations_f16(const __grid_constant__ DeviationParams p) { deviations<F16>(p); }
