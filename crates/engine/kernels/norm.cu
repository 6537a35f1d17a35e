// Root-mean-square norms. Sizes are multiples of eight elements. The second reading of a row comes from the cache.
#include "overlap.cuh"
#include "vector.cuh"

constexpr int kThreads = 256;

// out = x / rms(x) * weight; a thread block a row.
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm(const float* x, const float* weight, __nv_bfloat16* out, int64_t columns, float eps) {
  overlap();
  x += blockIdx.x * columns;
  out += blockIdx.x * columns;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * 8; i < columns; i += kThreads * 8) {
    const Eight a = load8(x + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += a.v[j] * a.v[j];
  }
  __shared__ float sums[kThreads / 32];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += sums[warp];
  const float scale = rsqrtf(sum / static_cast<float>(columns) + eps);
  for (int64_t i = threadIdx.x * 8; i < columns; i += kThreads * 8) {
    Eight a = load8(x + i);
    const Eight w = load8(weight + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) a.v[j] = a.v[j] * scale * w.v[j];
    store8(out + i, a);
  }
}

// The same in place for every run of `columns` elements: a head, or a row; a warp a run.
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_in_place(__nv_bfloat16* x, const float* weight, int64_t runs, int64_t columns, float eps) {
  overlap();
  const int64_t run = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (run >= runs) return;
  x += run * columns;
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
  for (int64_t i = lane * 8; i < columns; i += 32 * 8) {
    const Eight a = load8(x + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += a.v[j] * a.v[j];
  }
  const float scale = rsqrtf(warp_sum(sum) / static_cast<float>(columns) + eps);
  for (int64_t i = lane * 8; i < columns; i += 32 * 8) {
    Eight a = load8(x + i);
    const Eight w = load8(weight + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) a.v[j] = a.v[j] * scale * w.v[j];
    store8(x + i, a);
  }
}
