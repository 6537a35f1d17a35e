// Which scores of a key tile count.
#pragma once
#include "sm90/tiles.cuh"

namespace sm90 {

// Sets scores that do not count to minus infinity. `position` is that of the thread's first row; its second is 8 further on.
template <int Scores>
__device__ __forceinline__ void mask(float (&s)[Scores], const TileNote& note, MaskKind kind, int position, int lane) {
  const int column = lane % 4 * 2;
  if (kind == MaskKind::kCausal) {
    // A window can begin before the first key.
    const int first = note.first_key + column;
#pragma unroll
    for (int i = 0; i < Scores; i++) {
      const int key = first + (i / 4) * 8 + (i & 1);
      if (key > position + ((i >> 1) & 1) * 8 || key < 0) s[i] = -INFINITY;
    }
  } else if (kind == MaskKind::kColumns) {
    const uint32_t live[4] = {note.columns.x >> column, note.columns.y >> column, note.columns.z >> column, note.columns.w >> column};
#pragma unroll
    for (int i = 0; i < Scores; i++) {
      const int bit = (i / 4) * 8 + (i & 1);
      if (!(live[bit / 32] >> (bit % 32) & 1)) s[i] = -INFINITY;
    }
  }
}

}  // namespace sm90
