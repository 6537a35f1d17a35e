// The queue of work that the attention kernel takes: an item a query tile and head, and the masks of its gathered columns. A warp an item.
#include "index.cuh"

constexpr int kWarps = 8;

// How many of an ascending list are below `limit`.
__device__ __forceinline__ int count_below(const int32_t* list, int count, int64_t limit) {
  int low = 0;
  while (count > 0) {
    const int half = count / 2;
    if (list[low + half] < limit) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

// Bits begin .. end of a word whose first bit is bit `base`.
__device__ __forceinline__ uint32_t bits(int begin, int end, int base) {
  const int from = max(begin - base, 0), to = min(end - base, 32);
  return from < to ? ~0u >> (32 - (to - from)) << from : 0;
}

// Writes the masks of the head's columns left of position `first` that none of `spans` windows holds; returns how many are not empty.
__device__ int write_masks(const IndexParams& p, const HeadTask& head, const HeadState& state, int tile, int64_t first, int spans, int lane) {
  const int32_t* const windows = p.offsets + head.windows;
  const int32_t* const columns = p.positions + static_cast<int64_t>(head.column_tile) * kTileKeys;
  uint4* const masks = p.masks + head.masks + static_cast<int64_t>(tile) * head.column_tiles;
  const int live = count_below(columns, state.columns, first), tiles = (live + kTileKeys - 1) / kTileKeys;
  int used = 0;
  for (int batch = 0; batch < tiles; batch += 32) {
    const int base = (batch + lane) * kTileKeys;  // first column of this lane's tile
    uint32_t mask[4];
#pragma unroll
    for (int w = 0; w < 4; w++) mask[w] = bits(0, live, base + 32 * w);
    for (int i = 0; i < spans; i += 32) {
      // A lane a window: the columns in it are neighbours in the list.
      int begin = 0, end = 0;
      if (i + lane < spans) {
        const int64_t key = first - windows[i + lane];
        begin = count_below(columns, live, key);
        end = begin + count_below(columns + begin, min(live - begin, kTileKeys), key + kTileKeys);
      }
      for (uint32_t holding = __ballot_sync(~0u, begin < end); holding != 0; holding &= holding - 1) {
        const int from = __ffs(holding) - 1, held = __shfl_sync(~0u, begin, from), held_end = __shfl_sync(~0u, end, from);
#pragma unroll
        for (int w = 0; w < 4; w++) mask[w] &= ~bits(held, held_end, base + 32 * w);
      }
    }
    const bool in_list = batch + lane < tiles;
    if (in_list) masks[batch + lane] = make_uint4(mask[0], mask[1], mask[2], mask[3]);
    used += __popc(__ballot_sync(~0u, in_list && (mask[0] | mask[1] | mask[2] | mask[3]) != 0));
  }
  return used;
}

extern "C" __global__ void __launch_bounds__(32 * kWarps) work_list(const __grid_constant__ IndexParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, tile = static_cast<int>(index / p.head_count), number = static_cast<int>(index % p.head_count);
  if (tile >= p.query_tiles) return;
  const HeadTask head = p.heads[number];
  const HeadState state = p.states[number];
  const int64_t first = static_cast<int64_t>(p.start) + static_cast<int64_t>(tile) * kTileQueries;
  WorkItem item = {number, tile * kTileQueries, 0, 0, head.windows, head.masks + static_cast<int64_t>(tile) * head.column_tiles, head.column_tile, 0};
  if (state.dense || tile >= head.dense_from) {
    item.list = 0;
    item.spans = static_cast<int>(1 + (first + kTileKeys - 1) / kTileKeys);
  } else if (head.kind == kBlocks) {
    item.list = head.windows + tile * head.window_room;
    item.spans = blocks_of(head.slash, first);
  } else if (head.kind == kShares) {
    item.list = head.windows + tile * head.window_room;
    item.spans = p.block_counts[static_cast<int64_t>(head.slot) * p.block_tiles + tile];
  } else {
    item.spans = count_below(p.offsets + head.windows, state.windows, first + kTileKeys);
    // Where the windows hold every key there are no columns to look for.
    const bool all = item.spans <= state.contiguous && item.spans * static_cast<int64_t>(kTileKeys) >= first + kTileKeys;
    if (!all) item.column_tiles = write_masks(p, head, state, tile, first, item.spans, lane);
  }
  if (lane == 0) {
    const int64_t from_last = p.query_tiles - 1 - tile;
    WorkItem* const place = p.items + head.order + from_last * head.order_stride;
    if (tile < head.dense_from) {
      *place = item;
    } else {
      *place = WorkItem{};
      p.items[head.tail_order + from_last] = item;
    }
    atomicAdd(reinterpret_cast<unsigned long long*>(&p.states[number].tiles), static_cast<unsigned long long>(item.spans + item.column_tiles));
  }
}
