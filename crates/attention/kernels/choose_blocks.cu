// Chooses the key tiles of every query tile of block-sparse heads: the first and its own, and those of largest pooled score.
//
// A warp has a query tile. Scores that fit its registers it bisects for the smallest that is chosen. Of a longer row it first bisects the
// largest scores of groups: as many groups as scores are wanted hold at least as many scores that are as large as the smallest of theirs,
// so no smaller one is chosen, and the few others are brought together. What fits nowhere a whole block chooses from.
#include "blocks.cuh"
#include "top.cuh"

constexpr int kRoom = 1024;      // scores of a warp
constexpr int kEach = kRoom / 32;  // of a lane
constexpr int kGroups = 512;     // that scores are brought together from

// What a warp has brought together: scores and their blocks, ascending.
struct Shortlist {
  Score scores[kRoom];
  uint16_t blocks[kRoom];
  uint16_t groups[kGroups];
};

// Keys of a row of scores for `top`: block 0, which is chosen anyway, counts as no score.
struct Scores {
  const Score* scores;

  __device__ __forceinline__ uint4 four(int64_t i) const {
    const uint2 x = *reinterpret_cast<const uint2*>(scores + i);
    return make_uint4(i == 0 ? 0 : x.x & 0xffffu, x.x >> 16, x.y & 0xffffu, x.y >> 16);
  }
};

// How many of the keys of a warp are `least` or more; `used` of a lane's, in eights.
__device__ __forceinline__ int count_from(const uint32_t (&keys)[kEach], int used, uint32_t least) {
  int found = 0;
#pragma unroll
  for (int part = 0; part < kEach; part += 8)
    if (part < used) {
#pragma unroll
      for (int i = part; i < part + 8; i++) found += keys[i] >= least;
    }
  return __reduce_add_sync(~0u, found);
}

// The largest number that `count` of a warp's keys are not below, and in `found` how many are not; or a smaller one that at most `more` others
// are not below either. Zero if fewer keys are not zero.
__device__ __forceinline__ uint32_t bisect(const uint32_t (&keys)[kEach], int used, int count, int more, int& found) {
  uint32_t least = 0;
  found = 0;
  for (uint32_t bit = 0x8000; bit != 0; bit >>= 1) {
    const int from = count_from(keys, used, least | bit);
    if (from < count) continue;
    least |= bit;
    found = from;
    if (found <= count + more) break;
  }
  return least;
}

// Fills a warp's keys: number 32 i + lane of `n`.
template <typename Read>
__device__ __forceinline__ int fill(uint32_t (&keys)[kEach], int n, int lane, Read read) {
#pragma unroll
  for (int part = 0; part < kEach; part += 8)
    if (32 * part < n) {
#pragma unroll
      for (int i = part; i < part + 8; i++) keys[i] = 32 * i + lane < n ? read(32 * i + lane) : 0;
    }
  return (n + 31) / 32;
}

// Hands those that are more than `least`, and the first `ties` that are equal to it, to `put(place, number)`, in ascending order. Returns how
// many there are.
template <typename Put>
__device__ __forceinline__ int put_from(const uint32_t (&keys)[kEach], int used, uint32_t least, int ties, int lane, Put put) {
  int place = 0;
  const uint32_t before = (1u << lane) - 1;
#pragma unroll
  for (int part = 0; part < kEach; part += 8)
    if (part < used) {
#pragma unroll
      for (int i = part; i < part + 8; i++) {
        const uint32_t equal = __ballot_sync(~0u, keys[i] == least);
        const bool taken = keys[i] > least || (keys[i] == least && __popc(equal & before) < ties);
        const uint32_t all = __ballot_sync(~0u, taken);
        if (taken) put(place + __popc(all & before), 32 * i + lane);
        place += __popc(all);
        ties -= min(ties, __popc(equal));
      }
    }
  return place;
}

// Chooses `count` of blocks 1 .. own by their scores; false where a warp's room does not do.
template <typename Put>
__device__ __forceinline__ bool choose(Shortlist& shortlist, const Score* scores, const Score* largest, int own, int count, int lane, Put put) {
  uint32_t keys[kEach];
  int found, used;
  const bool brought = own > kRoom;
  if (brought) {
    // Block 0 may be the largest of its group, whose others then do not count for the bound: one group more makes up for it.
    const int groups = (own + kGroup - 1) / kGroup, wanted = count + 1;
    if (groups > kRoom || own > 0xffff || wanted > groups) return false;
    // The last group may hold scores of blocks from the own one on: it is looked through whatever they are, and makes up for nothing.
    const int whole = own / kGroup;
    used = fill(keys, groups, lane, [&](int group) -> uint32_t { return group < whole ? largest[group] : 0; });
    const uint32_t bound = bisect(keys, used, wanted, wanted / 16, found);
    if (bound == 0 || found + 1 > kGroups) return false;
    int chosen = put_from(keys, used, bound - 1, 0, lane, [&](int place, int group) { shortlist.groups[place] = static_cast<uint16_t>(group); });
    if (whole < groups) {
      if (lane == 0) shortlist.groups[chosen] = static_cast<uint16_t>(whole);
      chosen++;
    }
    __syncwarp();
    int n = 0;
    constexpr int kAtOnce = 4;  // steps of four groups, two scores a lane, whose loads are in flight together
    const uint32_t before = (1u << lane) - 1;
    for (int i = 0; i < chosen; i += 4 * kAtOnce) {
      uint32_t loaded[kAtOnce];
      int block[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; u++) {
        const int from = i + 4 * u + lane / 8;
        block[u] = from < chosen ? shortlist.groups[from] * kGroup + lane % 8 * 2 : own;
        loaded[u] = block[u] < own ? *reinterpret_cast<const uint32_t*>(scores + block[u]) : 0;
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; u++) {
        const uint32_t low = loaded[u] & 0xffffu, high = loaded[u] >> 16;
        const bool low_in = low >= bound && block[u] > 0, high_in = high >= bound && block[u] + 1 < own;
        const uint32_t lows = __ballot_sync(~0u, low_in), highs = __ballot_sync(~0u, high_in);
        int place = n + __popc(lows & before) + __popc(highs & before);
        auto add = [&](uint32_t score, int number) {
          if (place < kRoom) {
            shortlist.scores[place] = static_cast<Score>(score);
            shortlist.blocks[place] = static_cast<uint16_t>(number);
          }
          place++;
        };
        if (low_in) add(low, block[u]);
        if (high_in) add(high, block[u] + 1);
        n += __popc(lows) + __popc(highs);
      }
    }
    if (n > kRoom) return false;
    __syncwarp();
    used = fill(keys, n, lane, [&](int i) -> uint32_t { return shortlist.scores[i]; });
  } else {
    used = fill(keys, own, lane, [&](int block) -> uint32_t { return block > 0 ? scores[block] : 0; });
  }
  const uint32_t least = bisect(keys, used, count, 0, found);
  if (found < count) return false;
  const int ties = found == count ? found : count - count_from(keys, used, least + 1);
  put_from(keys, used, least, ties, lane, [&](int place, int i) { put(place, brought ? shortlist.blocks[i] : i); });
  return true;
}

// Grid: (query tiles by fours, slots) of the batch.
extern "C" __global__ void __launch_bounds__(32 * kChoosers, 6) choose_blocks(const __grid_constant__ BlockParams p) {
  __shared__ union {
    Shortlist shortlists[kChoosers];
    TopShared top;
  } s;
  const int64_t slot = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const HeadTask head = p.heads[p.slot_heads[p.first_slot + slot]];
  if (head.kind != kBlocks) return;

  // The query tile at `row` of the batch, by a warp or, as the warp could not, by the block. Returns whether it is done.
  auto choose_row = [&](int row, bool by_warp) {
    const int64_t tile = p.first_tile + row, first = p.start + tile * kTileQueries;
    const int own = static_cast<int>(first / kTileKeys), last = static_cast<int>((first + kTileQueries - 1) / kTileKeys);
    const int count = blocks_of(head.slash, first);
    int32_t* const list = p.offsets + head.windows + tile * head.window_room;
    auto put = [&](int place, int block) { list[place] = static_cast<int32_t>(first - static_cast<int64_t>(block) * kTileKeys); };
    // The own block goes first: every row of the tile sees the first row's key. Then those left of it, ascending, and at last the next one,
    // where the tile reaches into it.
    if (by_warp && lane == 0) {
      put(0, own);
      if (own > 0) put(1, 0);
      if (last > own) put(count - 1, last);
    }
    const int others = count - (last - own + 1) - (own > 0);
    if (others == 0) return true;
    auto put_other = [&](int place, int block) { put(2 + place, block); };
    if (others == own - 1) {
      for (int block = 1 + lane; block < own; block += 32) put_other(block - 1, block);
      return true;
    }
    const int64_t in_batch = slot * p.tiles + row;
    const Score* const scores = p.scores + in_batch * p.pitch;
    if (by_warp) return choose(s.shortlists[warp], scores, p.largest + in_batch * (p.pitch / kGroup), own, others, lane, put_other);
    top<32 * kChoosers>(s.top, Scores{scores}, own, others, true, put_other);
    return true;
  };
  const int row = blockIdx.x * kChoosers + warp;
  __shared__ bool left[kChoosers];
  const bool done = row >= p.tiles || choose_row(row, true);
  if (lane == 0) left[warp] = !done;
  __syncthreads();
  for (int w = 0; w < kChoosers; w++)
    if (left[w]) choose_row(blockIdx.x * kChoosers + w, false);
}
