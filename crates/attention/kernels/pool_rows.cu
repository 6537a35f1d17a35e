// Means of tiles of 128 rows of Q or K, in 16 bits: what block-sparse heads are scored by.
#include "blocks.cuh"
#include "mma/element.cuh"
#include "widen.cuh"

static_assert(kTileQueries == kTileKeys, "tiles of queries and of keys are pooled alike");

// Grid: (blocks that take tiles in turn, slots). Block: a thread for two elements of a row.
template <typename Element>
__device__ __forceinline__ void pool(const PoolParams& p) {
  const int64_t slot = blockIdx.y;
  const uint32_t* const rows = p.data + p.heads[slot] * p.head_stride + threadIdx.x;
  // Of bf16 a mean may be too large for f16, which tells means of like size apart better: it then counts as the largest there is.
  auto mean = [&](float sum) { return fminf(fmaxf(sum * (p.scale / kTileKeys), -65504.f), 65504.f); };
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const uint32_t* const row = rows + tile * kTileKeys * p.row_stride;
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll 16
    for (int r = 0; r < kTileKeys; r++) {
      const float2 x = Element::widen(__ldg(row + r * p.row_stride));
      sum.x += x.x;
      sum.y += x.y;
    }
    reinterpret_cast<uint32_t*>(p.means)[(slot * p.tiles + tile) * blockDim.x + threadIdx.x] = mma::pack<__half>(mean(sum.x), mean(sum.y));
  }
}

extern "C" __global__ void __launch_bounds__(64) pool_rows_bf16(const __grid_constant__ PoolParams p) { pool<Bf16>(p); }
extern "C" __global__ void __launch_bounds__(64) pool_rows_f16(const __grid_constant__ PoolParams p) { pool<F16>(p); }
