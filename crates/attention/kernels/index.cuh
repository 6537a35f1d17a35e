// What the host tells the kernels that build indexes, and what these tell each other: the mirror of `src/cuda/index/layout.rs`.
#pragma once
#include <cstdint>

#include "work.cuh"

// Query heads of one key head whose last queries are looked at together: slots `slot .. slot + count`.
struct ScoreTask {
  int32_t kv_head;
  int32_t slot;
  int32_t count;
};

struct LastQueriesParams {
  const ScoreTask* tasks;
  const int32_t* heads;  // query head of a slot
  float2* partials;      // [slots][runs of keys][64]: largest score and sum, in powers of two
  float* columns;        // [slots][pitch]
  float* diagonals;      // [slots][pitch], by distance; zero at first
  int64_t pitch;
  int32_t rows;          // query rows
  int32_t len;           // keys
  int32_t chunk_tiles;   // tiles of a run of keys
  int32_t stages;        // of the Hopper kernels' ring of key tiles
  float scale_log2;      // softmax scale times log2(e)
};

enum HeadKind : int32_t {
  kDense = 0,   // every key
  kLocal = 1,   // `vertical` first keys and `slash` nearest ones
  kLines = 2,   // `vertical` columns and `slash` diagonals of most mass
  kTiles = 3,   // `slash` windows and `vertical` columns of most mass
  kBlocks = 4,  // `slash` key tiles of largest pooled score for each query tile
  kShares = 5,  // as many of them as hold `percent` of the pooled attention, `least` to `slash`
};

// What is asked of a query head, and where its lists go.
struct HeadTask {
  int32_t kind;
  int32_t slot;           // of its masses; of a kBlocks or kShares head, among these
  int32_t vertical;       // columns
  int32_t slash;          // see the kind
  int32_t dense_from;     // first query tile that visits every key
  int32_t column_tile;    // its first tile of gathered columns
  int32_t column_tiles;   // room, in tiles
  int32_t order_stride;   // see `order`
  int32_t least;          // see kShares
  int32_t percent;
  int64_t order;          // its item of query tile t goes to place `order + (query tiles - 1 - t) * order_stride` of the queue,
  int64_t tail_order;     // but from `dense_from` on to `tail_order + query tiles - 1 - t`, with an empty item in the other place
  int64_t windows;        // its first entry among the offsets
  int64_t window_room;    // entries there; of a kTiles head twice as many, the second half to sort from; of a kBlocks or kShares head for each query tile
  int64_t masks;          // its first mask: [query tiles][column_tiles]
  int64_t dense_tiles;    // key tiles that dense attention would visit in the query tiles before `dense_from`
};

// What was chosen for a query head.
struct HeadState {
  int32_t windows;
  int32_t columns;
  int32_t contiguous;     // windows i at offset 128 * i, counted from the first
  int32_t dense;          // sparse would not cost less
  uint64_t tiles;         // key tiles visited
};

struct IndexParams {
  const HeadTask* heads;
  const int32_t* slot_heads;  // query head of a slot
  HeadState* states;
  float* columns;         // [slots][pitch]: mass
  float* diagonals;       // [slots][pitch]: mass
  float* gains;           // [slots][pitch]: mass that a window at this offset brings; zero where it would overlap a chosen one
  uint64_t* best;         // [slots][runs]: the largest gain of each run of 128 offsets, and where
  int32_t* offsets;       // the list of all windows, then those of the heads
  int32_t* positions;     // [column tiles][128]
  uint4* masks;
  WorkItem* items;
  const int32_t* block_counts;  // [slots of blocks][block_tiles]: key tiles of a kShares head
  int64_t pitch;
  int64_t runs;
  int32_t head_count;
  int32_t rows;           // query rows
  int32_t start;          // position of the first
  int32_t len;            // keys
  int32_t query_tiles;
  int32_t dense_list;     // entries of the list of all windows; zero when no head needs it
  int32_t fallback;       // whether heads may turn dense
  int32_t block_tiles;    // query tiles of kBlocks and kShares heads before the dense ones
};
static_assert(sizeof(ScoreTask) == 12 && sizeof(HeadTask) == 88 && sizeof(HeadState) == 24, "the host's sizes");
static_assert(sizeof(LastQueriesParams) == 72 && sizeof(IndexParams) == 144, "the host's sizes");

// How many key tiles a budget of blocks comes to in a query tile (of all its rows) whose first stands at `first`: those of its own positions
// and the first of all are kept whatever the budget.
__device__ __forceinline__ int blocks_of(int budget, int64_t first) {
  const int own = static_cast<int>(first / kTileKeys), last = static_cast<int>((first + kTileQueries - 1) / kTileKeys);
  return min(max(budget, last - own + 1 + (own > 0)), last + 1);
}

// A gain and its offset in one number: the larger gain is the larger, and of equal ones that at the lower offset. Zero for no gain.
__device__ __forceinline__ uint64_t gain_at(float gain, int offset) {
  return gain > 0.f ? static_cast<uint64_t>(__float_as_uint(gain)) << 32 | ~static_cast<uint32_t>(offset) : 0;
}
__device__ __forceinline__ int offset_of(uint64_t gain) { return static_cast<int>(~static_cast<uint32_t>(gain)); }

__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  return x;
}
