// Chooses the key tiles of every query tile of block-sparse heads: those of largest pooled score, and always the first and its own.
#include "blocks.cuh"
#include "top.cuh"

constexpr int kChoosers = 128;

// Grid: (query tiles, slots) of the batch.
extern "C" __global__ void __launch_bounds__(kChoosers) choose_blocks(const __grid_constant__ BlockParams p) {
  __shared__ TopShared s;
  const int64_t slot = blockIdx.y, tile = p.first_tile + blockIdx.x;
  const HeadTask head = p.heads[p.slot_heads[p.first_slot + slot]];
  const int64_t first = p.start + tile * kTileQueries;
  const int own = static_cast<int>(first / kTileKeys), last = static_cast<int>((first + kTileQueries - 1) / kTileKeys);
  const int count = blocks_of(head.slash, first);
  // The block of the first row goes first: every row of the tile sees the first row's key. In ascending order its place would be this.
  const int own_place = count - (last - own + 1);
  int32_t* const list = p.offsets + head.windows + tile * head.window_room;
  auto put = [&](int place, int block) {
    list[block == own ? 0 : place < own_place ? place + 1 : place] = static_cast<int32_t>(first - static_cast<int64_t>(block) * kTileKeys);
  };
  if (count == last + 1) {
    for (int block = threadIdx.x; block < count; block += kChoosers) put(block, block);
    return;
  }
  // Key tiles from its own on have no score.
  auto key = [own](int block, float score) { return block == 0 || block >= own ? ~0u : order_of(score); };
  const Row<decltype(key)> row{p.scores + (slot * p.tiles + blockIdx.x) * p.pitch, key};
  top<kChoosers>(s, row, last + 1, count, true, put);
}
