// Means of tiles of 128 rows of Q or K, in f32: what block-sparse heads are scored by.
#include "blocks.cuh"
#include "widen.cuh"

static_assert(kTileQueries == kTileKeys, "tiles of queries and of keys are pooled alike");

// Grid: (tiles, slots). Block: a thread for two elements of a row.
template <typename Element>
__device__ __forceinline__ void pool(const PoolParams& p) {
  const int64_t tile = blockIdx.x, slot = blockIdx.y;
  const uint32_t* const row = p.data + p.heads[slot] * p.head_stride + tile * kTileKeys * p.row_stride + threadIdx.x;
  float2 sum = make_float2(0.f, 0.f);
#pragma unroll 16
  for (int r = 0; r < kTileKeys; r++) {
    const float2 x = Element::widen(__ldg(row + r * p.row_stride));
    sum.x += x.x;
    sum.y += x.y;
  }
  reinterpret_cast<float2*>(p.means)[(slot * gridDim.x + tile) * blockDim.x + threadIdx.x] =
      make_float2(sum.x / kTileKeys, sum.y / kTileKeys);
}

extern "C" __global__ void __launch_bounds__(64) pool_rows_bf16(const __grid_constant__ PoolParams p) { pool<Bf16>(p); }
extern "C" __global__ void __launch_bounds__(64) pool_rows_f16(const __grid_constant__ PoolParams p) { pool<F16>(p); }
