// From accumulators to the output tensor: normalised, 16-bit, through the warp's own rows of the query tile, so that stores are of 16
// bytes and neighbours store neighbouring chunks.
#pragma once
#include "mma/element.cuh"
#include "portable/tiles.cuh"

namespace portable {

// Puts a block of 16 rows, of which this thread holds `row` and the 8th after it, in the tile.
template <typename Element, int Dim>
__device__ __forceinline__ void stage(uint8_t* tile, const float (&out)[Dim / 2], const float (&sum)[2], int row, int lane) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float inverse = 1.f / sum[r];
#pragma unroll
    for (int c = 0; c < Dim / 8; c++) {
      uint8_t* to = tile + Tiles<Dim>::place(row + 8 * r, c) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(to) = mma::pack<Element>(out[4 * c + 2 * r] * inverse, out[4 * c + 2 * r + 1] * inverse);
    }
  }
}

// Stores a warp's rows, `first_row` the tile's place in the tensor, leaving out those past the end.
template <typename Element, int Dim>
__device__ __forceinline__ void store(const uint8_t* tile, Element* to, int64_t row_stride, int warp_row, int first_row, int rows, int lane) {
  constexpr int kChunks = Dim / 8;
#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    const int row = warp_row + (32 * i + lane) / kChunks, chunk = (32 * i + lane) % kChunks;
    const uint4 value = *reinterpret_cast<const uint4*>(tile + Tiles<Dim>::place(row, chunk));
    if (first_row + row < rows) *reinterpret_cast<uint4*>(to + (first_row + row) * row_stride + chunk * 8) = value;
  }
}

}  // namespace portable
