// The attention mass that a window at each offset brings: diagonal sums under a triangle.
//
// Window o holds, for row r of a query tile, the diagonals o+r-127 ..= o+r. A diagonal's mass is spread evenly over its rows, so the gain is
// the mean over the rows of 128 diagonals' mass: two running sums of 128, one of the other.
#include "index.cuh"

constexpr int kOffsets = 1024;               // of a thread block
constexpr int kThreads = 256;
constexpr int kEach = 5;                     // entries of a thread in a running sum
constexpr int kHalo = kTileKeys - 1;
// Less than this is no gain: of a mass of 64, it is what rounding leaves.
constexpr double kLeastGain = 1e-9;

static_assert(kTileKeys == kTileQueries, "the triangle is symmetrical");
static_assert(kThreads * kEach >= kOffsets + 2 * kHalo, "a running sum reaches over the offsets and what is beside them");

// Replaces x[i] by the sum of x[0..=i].
__device__ void running_sum(double (&x)[kThreads * kEach], double (&warps)[kThreads / 32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double own[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; i++) own[i] = sum += x[threadIdx.x * kEach + i];
  double upto = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double before = __shfl_up_sync(~0u, upto, step);
    if (lane >= step) upto += before;
  }
  if (lane == 31) warps[warp] = upto;
  __syncthreads();
  double before = upto - sum;
  for (int w = 0; w < warp; w++) before += warps[w];
#pragma unroll
  for (int i = 0; i < kEach; i++) x[threadIdx.x * kEach + i] = before + own[i];
  __syncthreads();
}

// Grid: (runs of offsets, slots).
extern "C" __global__ void __launch_bounds__(kThreads) window_gains(const __grid_constant__ IndexParams p) {
  __shared__ double sums[kThreads * kEach], warps[kThreads / 32];
  const int64_t slot = blockIdx.y;
  if (p.heads[p.slot_heads[slot]].kind != kTiles) return;
  const float* const diagonals = p.diagonals + slot * p.pitch;
  const int first = blockIdx.x * kOffsets;

  for (int i = threadIdx.x; i < kThreads * kEach; i += kThreads) {
    const int at = first - kHalo + i;
    sums[i] = at >= 0 && at < p.len ? diagonals[at] : 0.f;
  }
  __syncthreads();
  running_sum(sums, warps);
  // Sums of 128 that end at offset `first + i`: entries 127 + i and 128 before.
  double box[kEach];
#pragma unroll
  for (int j = 0; j < kEach; j++) {
    const int i = threadIdx.x + j * kThreads;
    box[j] = i + kHalo < kThreads * kEach ? sums[i + kHalo] - (i > 0 ? sums[i - 1] : 0.) : 0.;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kEach; j++) sums[threadIdx.x + j * kThreads] = box[j];
  __syncthreads();
  running_sum(sums, warps);

  // A warp does a run of 128 offsets.
  uint64_t best = 0;
#pragma unroll
  for (int j = 0; j < kOffsets / kThreads; j++) {
    const int i = threadIdx.x / 32 * kTileKeys + j * 32 + threadIdx.x % 32, offset = first + i;
    if (offset >= p.len) break;
    const double gain = (sums[i + kHalo] - (i > 0 ? sums[i - 1] : 0.)) / kTileQueries;
    // The first two windows are always chosen, and nothing may overlap them.
    const float counted = offset < 2 * kTileKeys || gain < kLeastGain ? 0.f : static_cast<float>(gain);
    p.gains[slot * p.pitch + offset] = counted;
    const uint64_t candidate = gain_at(counted, offset);
    best = candidate > best ? candidate : best;
  }
  best = warp_max(best);
  const int64_t run = first / kTileKeys + threadIdx.x / 32;
  if (threadIdx.x % 32 == 0 && run < p.runs) p.best[slot * p.runs + run] = best;
}
