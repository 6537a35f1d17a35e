// What the host (or an index kernel) tells the attention kernel: the mirror of `src/cuda/work.rs`.
#pragma once
#include <cstdint>

constexpr int kTileKeys = 128;

// One query tile of one query head. Its key tiles are first `spans` runs of contiguous keys, run i starting at key
// `position of the tile's first row - offsets[list + i]`; then `column_tiles` tiles of gathered columns.
// The first run holds a key that every row of the tile sees, so that no row's maximum is ever minus infinity.
struct WorkItem {
  int32_t head;
  int32_t row;
  int32_t spans;
  int32_t column_tiles;
  int64_t list;
  int64_t columns;
};

// A tile of gathered columns as one query tile sees it: bit j of the mask says whether its column j counts.
struct ColumnTile {
  uint32_t mask[4];
  int32_t tile;
  int32_t reserved[3];
};

struct AttentionParams {
  const WorkItem* items;
  const int32_t* offsets;
  const ColumnTile* columns;
  float* lse;        // [heads][rows], or null
  int32_t* counter;  // starts at zero
  int32_t item_count;
  int32_t rows;      // query rows
  int32_t start;     // position of the first query row
  int32_t group;     // query heads of a key head
  float scale_log2;  // softmax scale times log2(e)
};
