// Copies the K and V rows of the heads' chosen columns into dense tiles of 128 rows, which the attention kernel loads like any others.
#include <cstdint>

#include "work.cuh"

struct GatherParams {
  const uint4 *k, *v;                  // 16-byte chunks
  uint4 *to_k, *to_v;                  // [tiles][128][chunks]
  const int32_t* positions;            // [tiles][128]; negative: no column, the row becomes zero
  const int32_t* heads;                // [tiles]: key head
  int64_t k_row_stride, k_head_stride; // in chunks
  int64_t v_row_stride, v_head_stride;
  int32_t chunks;                      // of a row
};

// A thread block a tile; neighbouring threads copy neighbouring chunks of a row.
extern "C" __global__ void __launch_bounds__(256) gather_columns(const __grid_constant__ GatherParams p) {
  const int64_t tile = blockIdx.x;
  const int head = p.heads[tile];
  if (p.positions[tile * kTileKeys] < 0) return;  // room that the choice left: no query tile reads it
  for (int i = threadIdx.x; i < kTileKeys * p.chunks; i += blockDim.x) {
    const int row = i / p.chunks, chunk = i % p.chunks;
    const int64_t position = p.positions[tile * kTileKeys + row];
    uint4 k = make_uint4(0, 0, 0, 0), v = k;
    if (position >= 0) {
      k = p.k[head * p.k_head_stride + position * p.k_row_stride + chunk];
      v = p.v[head * p.v_head_stride + position * p.v_row_stride + chunk];
    }
    const int64_t to = (tile * kTileKeys + row) * p.chunks + chunk;
    p.to_k[to] = k;
    p.to_v[to] = v;
  }
}
