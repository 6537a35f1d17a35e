// What the host tells the kernels of block-sparse heads: the mirror of `src/cuda/index/blocks.rs`.
//
// Query tiles here are those before the dense ones at the end, so all their rows exist; and only key tiles up to the own one of a query tile's
// first row are scored, so all their keys exist too.
#pragma once
#include <cuda_fp16.h>

#include "index.cuh"

// Key tiles of which the largest score is kept beside the scores: a row's groups say where its largest scores can be.
constexpr int kGroup = 16;
// Warps of a block that chooses, a query tile each.
constexpr int kChoosers = 4;

// Scores are kept in f16, as numbers in the same order.
using Score = uint16_t;
// Of a pair in one word. Zero only of what is no number.
__device__ __forceinline__ uint32_t order_of_pair(uint32_t x) { return x ^ ((x >> 15 & 0x00010001u) * 0xffffu | 0x80008000u); }

struct PoolParams {
  const uint32_t* data;  // [rows][heads][dim], two elements a word
  const int32_t* heads;  // head of a slot
  __half* means;         // [slots][tiles][dim]
  int64_t row_stride;    // in words
  int64_t head_stride;
  float scale;           // of the means
  int32_t tiles;
};

struct BlockParams {
  const HeadTask* heads;
  const int32_t* slot_heads;  // query head of a slot
  const int32_t* key_slots;   // pooled key head of a slot
  const __half* pooled_q;     // [slots][query_tiles][dim]
  const __half* pooled_k;     // [key slots][key_tiles][dim]
  Score* scores;              // [slots of this batch][tiles][pitch]
  Score* largest;             // [slots of this batch][tiles][pitch / kGroup], of each group
  int32_t* offsets;
  int32_t* counts;            // [slots][query_tiles], see `IndexParams`
  int64_t pitch;
  int32_t query_tiles;        // pooled ones
  int32_t key_tiles;
  int32_t dim;
  int32_t start;              // position of the first query row
  int32_t first_slot;         // of this batch
  int32_t first_tile;         // query tile
  int32_t tiles;              // query tiles
};
static_assert(sizeof(PoolParams) == 48 && sizeof(BlockParams) == 112, "the host's sizes");
