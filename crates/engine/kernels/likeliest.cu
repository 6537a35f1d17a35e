// The token of the largest logit, as the sampler on the host chooses it: the lowest of equals. Two passes: a rank a thread block, then one.
#include <cstdint>

#include "overlap.cuh"

constexpr int kThreads = 256;

// The logit above and the token below, so that the larger number is the token to choose.
using Rank = unsigned long long;

__device__ __forceinline__ Rank rank_of(float logit, uint32_t token) {
  uint32_t bits = __float_as_uint(logit);
  if (bits == 0x80000000u) bits = 0;  // the zeros are equal
  // Bits of negative numbers descend as the numbers ascend.
  uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
  // No logit may be NaN or positive infinity. Such a one wins, and the host says so.
  if (!(logit < __uint_as_float(0x7f800000u))) order = 0xffffffffu;
  return static_cast<Rank>(order) << 32 | static_cast<uint32_t>(~token);
}

__device__ __forceinline__ void write_largest(Rank mine, Rank* to) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, lane));
  __shared__ Rank of_warp[kThreads / 32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) mine = max(mine, of_warp[warp]);
  *to = mine;
}

// The largest rank of what each thread block strides over; the grid's second index is the row of `count` logits.
extern "C" __global__ void __launch_bounds__(kThreads) rank_logits(const float* logits, int64_t count, Rank* ranks) {
  overlap();
  logits += blockIdx.y * count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  Rank mine = 0;  // below that of any token
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    mine = max(mine, rank_of(logits[i], static_cast<uint32_t>(i)));
  write_largest(mine, ranks + static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x);
}

// The largest of all `count` of a row, by a thread block each.
extern "C" __global__ void __launch_bounds__(kThreads) largest_rank(const Rank* ranks, int64_t count, Rank* to) {
  overlap();
  ranks += blockIdx.x * count;
  Rank mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine = max(mine, ranks[i]);
  write_largest(mine, to + blockIdx.x);
}
