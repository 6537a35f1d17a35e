// Which scores of a tile of keys count: the others become minus infinity. Scores are laid out as for the softmax (mma/softmax.cuh).
#pragma once
#include <cstdint>

namespace mma {

// Keys after a row's position do not, and a window can begin before the first key. `position` is that of the thread's first row; its
// second is 8 further on.
template <int Scores>
__device__ __forceinline__ void mask_causal(float (&s)[Scores], int first_key, int position, int lane) {
  const int first = first_key + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Scores; i++) {
    const int key = first + (i / 4) * 8 + (i & 1);
    if (key > position + ((i >> 1) & 1) * 8 || key < 0) s[i] = -INFINITY;
  }
}

// Bit j % 32 of word j / 32 says whether column j counts.
template <int Scores>
__device__ __forceinline__ void mask_columns(float (&s)[Scores], const uint32_t (&words)[Scores / 16], int lane) {
  const int column = lane % 4 * 2;
  uint32_t live[Scores / 16];
#pragma unroll
  for (int i = 0; i < Scores / 16; i++) live[i] = words[i] >> column;
#pragma unroll
  for (int i = 0; i < Scores; i++) {
    const int bit = (i / 4) * 8 + (i & 1);
    if (!(live[bit / 32] >> (bit % 32) & 1)) s[i] = -INFINITY;
  }
}

}  // namespace mma
