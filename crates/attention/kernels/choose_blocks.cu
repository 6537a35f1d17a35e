// Chooses the key tiles of every query tile of block-sparse heads: those of largest pooled score, and always the first and its own.
//
// Of a long row only the groups are read whose largest scores are among the largest of all: no other group holds a score that can be chosen.
#include "blocks.cuh"
#include "top.cuh"

constexpr int kChoosers = 128;
constexpr int kGroups = 128;  // of a row that shared memory has room for

struct ChosenGroups {
  uint32_t keys[kGroups * kGroup];
  int32_t groups[kGroups];
};

// Grid: (query tiles, slots) of the batch.
extern "C" __global__ void __launch_bounds__(kChoosers, 8) choose_blocks(const __grid_constant__ BlockParams p) {
  __shared__ TopShared s;
  __shared__ __align__(16) ChosenGroups near;
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
  const int64_t in_batch = slot * p.tiles + blockIdx.x;
  const Row<decltype(key)> row{p.scores + in_batch * p.pitch, key};

  const int groups = last / kGroup + 1;
  int chosen = groups;
  if (groups > 2 * count) {
    auto group_key = [own](int group, float largest) { return group == 0 || group >= own / kGroup ? ~0u : order_of(largest); };
    const Row<decltype(group_key)> largest{p.largest + in_batch * (p.pitch / kGroup), group_key};
    uint32_t left;
    const uint32_t least = least_chosen<kChoosers>(s, largest, groups, count, left);
    // All that are as large: of equal scores the first is chosen, and each of them may hold it. There is a number below `least` unless scores
    // are no numbers, and then all are taken.
    chosen = put_chosen<kChoosers>(s, largest, groups, least - (least > 0), least > 0 ? 0 : groups, [&](int place, int group) {
      if (place < kGroups) near.groups[place] = group;
    });
  } else if (groups <= kGroups) {
    for (int group = threadIdx.x; group < groups; group += kChoosers) near.groups[group] = group;
    __syncthreads();
  }
  if (chosen > kGroups) {
    top<kChoosers>(s, row, last + 1, count, true, put);
    return;
  }
  for (int i = threadIdx.x * 4; i < chosen * kGroup; i += kChoosers * 4)
    *reinterpret_cast<uint4*>(near.keys + i) = row.four(near.groups[i / kGroup] * kGroup + i % kGroup);
  __syncthreads();
  // The last group is always there, and perhaps not full.
  const int n = chosen * kGroup - (groups * kGroup - (last + 1));
  top<kChoosers>(s, List{near.keys}, n, count, true, [&](int place, int i) { put(place, near.groups[i / kGroup] * kGroup + i % kGroup); });
}
