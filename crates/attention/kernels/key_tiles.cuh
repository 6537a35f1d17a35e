// Reading a work item's list of key tiles.
#pragma once
#include "work.cuh"

struct KeyTile {
  int first_key;  // of gathered columns: the first row among the gathered ones
  bool gathered;  // otherwise contiguous keys, and no mask
  uint32_t mask[4];
};

// The key tiles of one work item.
struct KeyTiles {
  const int32_t* offsets;
  const uint4* masks;
  int first;  // position of the item's first row
  int spans;
  int tile;   // first one of gathered columns

  // One after the other; `at`, zero before the first, is the place in the list. Tiles of columns of which none counts are passed over.
  __device__ __forceinline__ KeyTile next(int& at) const {
    if (at < spans) return {first - __ldg(offsets + at++), false, {}};
    uint4 mask;
    do {
      mask = __ldg(masks + (at++ - spans));
    } while ((mask.x | mask.y | mask.z | mask.w) == 0);
    return {(tile + at - 1 - spans) * kTileKeys, true, {mask.x, mask.y, mask.z, mask.w}};
  }
};

__device__ __forceinline__ KeyTiles key_tiles(const AttentionParams& p, const WorkItem* item, int row, int spans) {
  return {p.offsets + __ldg(&item->list), p.columns + __ldg(&item->columns), p.start + row, spans, __ldg(&item->tile)};
}
