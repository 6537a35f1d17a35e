// What the host (or an index kernel) tells the attention kernel: the mirror of `src/cuda/plan.rs`.
#pragma once
#include <cstdint>

constexpr int kTileQueries = 128;
constexpr int kTileKeys = 128;

// One query tile of one query head. Its key tiles are first `spans` runs of contiguous keys, run i starting at key
// `position of the tile's first row - offsets[list + i]`; then the `column_tiles` tiles of gathered columns, from tile `tile` on, whose
// masks, from entry `columns` on, are not empty. Bit j of a mask says whether column j of its tile counts.
// An item without spans is an empty place of the queue.
// The first run starts with a key that every row of the tile sees (key 0 or later, and none after the tile's first row), so that no row's
// maximum is ever minus infinity, even if a kernel takes the run in parts. Only the first run and the last can hold keys that a row of the tile
// does not see (after its position, or before key 0).
struct WorkItem {
  int32_t head;
  int32_t row;
  int32_t spans;
  int32_t column_tiles;
  int64_t list;
  int64_t columns;
  int32_t tile;
  int32_t reserved;
};
static_assert(sizeof(WorkItem) == 40, "the host's size");

struct AttentionParams {
  const WorkItem* items;
  const int32_t* offsets;
  const uint4* columns;
  float* lse;        // [heads][rows], or null
  int32_t* counter;  // starts at zero
  int32_t item_count;
  int32_t rows;      // query rows
  int32_t start;     // position of the first query row
  int32_t group;     // query heads of a key head
  float scale_log2;  // softmax scale times log2(e)
};
