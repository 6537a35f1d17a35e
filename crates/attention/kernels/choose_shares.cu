// Chooses the key tiles of every query tile of heads that keep a share of the pooled attention: the first and its own, and of the others those of
// largest pooled score, until together they hold the share of the softmax of all scores up to the own tile's.
//
// A warp has a query tile and goes through its row of scores as often as bisecting takes; the row stays in a cache meanwhile.
#include "blocks.cuh"
#include "widen.cuh"

constexpr float kLog2E = 1.4426950408889634f;

// The number that `order_of_pair` has put in order.
__device__ __forceinline__ float number_of(uint32_t score) {
  return F16::widen(score >= 0x8000 ? score ^ 0x8000 : score ^ 0xffff).x;
}

// What a score weighs, where `top` weighs one.
__device__ __forceinline__ float weight_of(uint32_t score, float top) { return exp2f((number_of(score) - top) * kLog2E); }

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Scores of the key tiles `first` .. `end` of a row, of which lanes take pairs in turn.
struct Row {
  const Score* scores;
  int first, end, lane;

  template <typename Each>
  __device__ __forceinline__ void each(Each take) const {
    for (int block = 2 * lane; block < end; block += 64) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(scores + block);
      if (block >= first) take(pair & 0xffffu);
      if (block + 1 >= first && block + 1 < end) take(pair >> 16);
    }
  }

  // How many are `least` or more.
  __device__ __forceinline__ int count(uint32_t least) const {
    int found = 0;
    each([&](uint32_t score) { found += score >= least; });
    return __reduce_add_sync(~0u, found);
  }

  // What those that are `least` or more weigh together.
  __device__ __forceinline__ float weight(uint32_t least, float top) const {
    float found = 0.f;
    each([&](uint32_t score) {
      if (score >= least) found += weight_of(score, top);
    });
    return sum_of_lanes(found);
  }
};

// The largest score of which it holds that those not below it are enough; zero where not even all are.
template <typename Enough>
__device__ __forceinline__ uint32_t bisect(Enough enough) {
  uint32_t least = 0;
  for (uint32_t bit = 0x8000; bit != 0; bit >>= 1)
    if (enough(least | bit)) least |= bit;
  return least;
}

// Grid: (query tiles by fours, slots) of the batch.
extern "C" __global__ void __launch_bounds__(32 * kChoosers) choose_shares(const __grid_constant__ BlockParams p) {
  const int64_t slot = blockIdx.y;
  const int row = blockIdx.x * kChoosers + threadIdx.x / 32, lane = threadIdx.x % 32;
  const HeadTask head = p.heads[p.slot_heads[p.first_slot + slot]];
  if (head.kind != kShares || row >= p.tiles) return;
  const int64_t tile = p.first_tile + row, first = p.start + tile * kTileQueries;
  const int own = static_cast<int>(first / kTileKeys), last = static_cast<int>((first + kTileQueries - 1) / kTileKeys);
  const int kept = last - own + 1 + (own > 0), most = blocks_of(head.slash, first) - kept, least = blocks_of(head.least, first) - kept;

  const Score* const scores = p.scores + (slot * p.tiles + row) * p.pitch;
  const Row all{scores, 0, own + 1, lane}, others{scores, 1, own, lane};
  uint32_t largest = 0;
  all.each([&](uint32_t score) { largest = max(largest, score); });
  const float top = number_of(__reduce_max_sync(~0u, largest));
  const float missing = head.percent / 100.f * all.weight(0, top) - weight_of(scores[own], top) - (own > 0 ? weight_of(scores[0], top) : 0.f);
  // Where the first and the own tile do, none; of the others those of one score are taken together.
  uint32_t threshold = missing > 0.f ? bisect([&](uint32_t from) { return others.weight(from, top) >= missing; }) : 0x10000;
  int count = others.count(threshold), ties = count;
  if (count < least || count > most) {
    count = min(max(count, least), most);
    threshold = bisect([&](uint32_t from) { return others.count(from) >= count; });
    ties = count - others.count(threshold + 1);
  }

  // The own block goes first: every row of the tile sees the first row's key. Then those left of it, ascending, and at last the next one,
  // where the tile reaches into it.
  int32_t* const list = p.offsets + head.windows + tile * head.window_room;
  auto put = [&](int place, int block) { list[place] = static_cast<int32_t>(first - static_cast<int64_t>(block) * kTileKeys); };
  if (lane == 0) {
    put(0, own);
    if (own > 0) put(1, 0);
    if (last > own) put(count + kept - 1, last);
    p.counts[(p.first_slot + slot) * p.query_tiles + tile] = count + kept;
  }
  const uint32_t before = (1u << lane) - 1;
  for (int from = 1, place = 2; from < own && count > 0; from += 32) {
    const int block = from + lane;
    const uint32_t score = block < own ? scores[block] : 0;
    const bool in = block < own;
    const uint32_t equal = __ballot_sync(~0u, in && score == threshold);
    const bool taken = in && (score > threshold || (score == threshold && __popc(equal & before) < ties));
    const uint32_t chosen = __ballot_sync(~0u, taken);
    if (taken) put(place + __popc(chosen & before), block);
    place += __popc(chosen);
    ties -= min(ties, __popc(equal));
  }
}
