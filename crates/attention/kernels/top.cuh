// The positions of the largest of many values, ascending, by a thread block: radix selection.
#pragma once
#include <cstdint>

struct TopShared {
  uint32_t histogram[2048];
  uint32_t warps[2][32];
  uint32_t digit, left;
};

// Numbers in the order of non-negative values. Those of values that are no numbers (of inputs that are none) are as infinity's.
__device__ __forceinline__ uint32_t order_of_mass(float value) { return min(__float_as_uint(value) & 0x7fffffffu, 0x7f800000u); }

// Numbers in the order of any values; less than ~0.
__device__ __forceinline__ uint32_t order_of(float value) {
  const uint32_t bits = __float_as_uint(value);
  return min(bits & 0x80000000u ? ~bits : bits | 0x80000000u, ~1u);
}

__device__ __forceinline__ uint32_t sum_of_lanes_before(uint32_t x, int lane) {
  uint32_t upto = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t before = __shfl_up_sync(~0u, upto, step);
    if (lane >= step) upto += before;
  }
  return upto - x;
}

// Keys to choose from: those of the entries of a row in device memory, which must be readable up to the next multiple of four.
template <typename Key>
struct Row {
  const float* values;
  Key key;

  __device__ __forceinline__ uint4 four(int64_t i) const {
    const float4 x = *reinterpret_cast<const float4*>(values + i);
    const int at = static_cast<int>(i);
    return make_uint4(key(at, x.x), key(at + 1, x.y), key(at + 2, x.z), key(at + 3, x.w));
  }
};

// Keys in shared memory.
struct List {
  const uint32_t* keys;

  __device__ __forceinline__ uint4 four(int64_t i) const { return *reinterpret_cast<const uint4*>(keys + i); }
};

// Groups of four keys that a thread loads before it looks at the first of them: one row keeps one SM, and little else, busy.
constexpr int kLoads = 4;

// Hands `use(i, key)` the entries i of begin .. end that fall to worker `worker` of `workers`: groups of four in turn, several loads in
// flight. `begin` must be a multiple of 4.
template <typename Keys, typename Use>
__device__ __forceinline__ void each_key(const Keys& keys, int begin, int end, int worker, int workers, Use use) {
  for (int64_t i = begin + 4 * worker; i < end; i += 4 * kLoads * workers) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; u++)
      if (i + 4 * u * workers < end) loaded[u] = keys.four(i + 4 * u * workers);
#pragma unroll
    for (int u = 0; u < kLoads; u++) {
      const int64_t at = i + 4 * u * workers;
      const uint32_t four[4] = {loaded[u].x, loaded[u].y, loaded[u].z, loaded[u].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (at + j < end) use(static_cast<int>(at) + j, four[j]);
    }
  }
}

// The smallest of the `count` largest of `n` keys, and in `left` how many of that key are among them; 1 <= count <= n.
template <int Threads, typename Keys>
__device__ inline uint32_t least_chosen(TopShared& s, const Keys& keys, int n, int count, uint32_t& left) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // Its bits, 11, 11 and 10 at a time.
  uint32_t least = 0;
  left = count;
#pragma unroll
  for (int pass = 0; pass < 3; pass++) {
    constexpr int kShifts[3] = {21, 10, 0};
    const int shift = kShifts[pass], bins = pass < 2 ? 2048 : 1024, each = bins / Threads;
    for (int i = thread; i < bins; i += Threads) s.histogram[i] = 0;
    __syncthreads();
    each_key(keys, 0, n, thread, Threads, [&](int, uint32_t bits) {
      if (pass == 0 || bits >> shift >> (pass < 2 ? 11 : 10) == least) atomicAdd(&s.histogram[bits >> shift & (bins - 1)], 1u);
    });
    __syncthreads();
    // Thread t has the t-th run of `each` bins from the top.
    int bin = bins - 1 - thread * each;
    uint32_t own = 0;
    for (int i = 0; i < each; i++) own += s.histogram[bin - i];
    uint32_t before = sum_of_lanes_before(own, lane);
    if (lane == 31) s.warps[0][warp] = before + own;
    __syncthreads();
    before += __reduce_add_sync(~0u, lane < warp ? s.warps[0][lane] : 0u);
    if (before < left && left <= before + own) {
      for (; left > before + s.histogram[bin]; bin--) before += s.histogram[bin];
      s.digit = bin;
      s.left = left - before;
    }
    __syncthreads();
    least = least * bins + s.digit;
    left = s.left;
  }
  return least;
}

// Hands `put(place, i)` the entries of keys above `least` and the first `left` of those that are equal to it, places ascending with entries;
// returns how many there are.
template <int Threads, typename Keys, typename Put>
__device__ inline int put_chosen(TopShared& s, const Keys& keys, int n, uint32_t least, uint32_t left, Put put) {
  constexpr int kWarps = Threads / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // A warp has a run of entries; runs before it say where it writes.
  const int run = (n + kWarps * 128 - 1) / (kWarps * 128) * 128;
  const int begin = warp * run, end = min(begin + run, n);
  uint32_t larger = 0, equal = 0;
  each_key(keys, begin, end, lane, 32, [&](int, uint32_t bits) {
    larger += bits > least;
    equal += bits == least;
  });
  larger = __reduce_add_sync(~0u, larger);
  equal = __reduce_add_sync(~0u, equal);
  if (lane == 0) {
    s.warps[0][warp] = larger;
    s.warps[1][warp] = equal;
  }
  __syncthreads();
  uint32_t equal_seen = __reduce_add_sync(~0u, lane < warp ? s.warps[1][lane] : 0u);
  uint32_t at = __reduce_add_sync(~0u, lane < warp ? s.warps[0][lane] : 0u) + min(equal_seen, left);
  const uint32_t all_larger = __reduce_add_sync(~0u, lane < kWarps ? s.warps[0][lane] : 0u);
  const int total = all_larger + min(__reduce_add_sync(~0u, lane < kWarps ? s.warps[1][lane] : 0u), left);
  for (int64_t base = begin; base < end; base += 128 * kLoads) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; u++) {
      const int64_t i = base + 128 * u + 4 * lane;
      loaded[u] = i < end ? keys.four(i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kLoads; u++) {
      const int64_t i = base + 128 * u + 4 * lane;
      const uint32_t four[4] = {loaded[u].x, loaded[u].y, loaded[u].z, loaded[u].w};
      uint32_t taken = 0, tied = 0;  // bit masks
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (i + j >= end) continue;
        taken |= (four[j] > least) << j;
        tied |= (four[j] == least) << j;
      }
      if (!__any_sync(~0u, taken | tied)) continue;
      const uint32_t ties = __popc(tied);
      uint32_t rank = equal_seen + sum_of_lanes_before(ties, lane);
      equal_seen += __reduce_add_sync(~0u, ties);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (tied >> j & 1) taken |= (rank++ < left) << j;
      const uint32_t own = __popc(taken);
      uint32_t place = at + sum_of_lanes_before(own, lane);
      at += __reduce_add_sync(~0u, own);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (taken >> j & 1) put(static_cast<int>(place++), static_cast<int>(i) + j);
    }
  }
  __syncthreads();
  return total;
}

// Hands the entries of the `count` largest of `n` keys to `put(place, i)`, places ascending with entries, and returns how many there are. Of
// equal keys those of lower entries are chosen, and without `keep_zero` none that is zero.
template <int Threads, typename Keys, typename Put>
__device__ inline int top(TopShared& s, const Keys& keys, int n, int count, bool keep_zero, Put put) {
  count = min(count, n);
  if (count <= 0) return 0;
  uint32_t left;
  const uint32_t least = least_chosen<Threads>(s, keys, n, count, left);
  if (least == 0 && !keep_zero) left = 0;
  return put_chosen<Threads>(s, keys, n, least, left, put);
}

// Room in shared memory for a sample of a long row's keys, and then for the largest ones.
union Candidates {
  static constexpr int kRoom = 10 * 1024;  // what chips of 100 KB of shared memory have room for
  uint32_t sample[2 * kRoom];
  struct {
    uint32_t keys[kRoom];
    int32_t entries[kRoom];
  };
};

// As `top`, of a long row: a sample of it says about how large the chosen keys are; those as large, a few more than are wanted, are brought
// to shared memory, and chosen from there. The row is read twice, and not once for every step of the selection. Where the sample says wrong,
// or nothing, the whole row is chosen from.
template <int Threads, typename Key, typename Put>
__device__ inline int top_of_many(TopShared& s, Candidates& candidates, const Row<Key>& row, int n, int count, bool keep_zero, Put put) {
  constexpr int kLeast = 8192;
  const int stride = max((n + 2 * Candidates::kRoom - 1) / (2 * Candidates::kRoom), 4), samples = n / stride;
  const float expected = static_cast<float>(count) / stride;
  // Four deviations of a count of independent events more, or half way to what there is room for.
  const int enough = static_cast<int>(expected + 4.f * sqrtf(expected)) + 4;
  const int rank = min(enough, static_cast<int>((expected + static_cast<float>(Candidates::kRoom) / stride) / 2.f));
  if (n >= kLeast && count > 0 && rank < samples && static_cast<float>(rank) > expected) {
    for (int i = threadIdx.x; i < samples; i += Threads) {
      // Not at even distances: what repeats in a prompt could repeat with them.
      const int at = i * stride + static_cast<int>((static_cast<uint32_t>(i) * 2654435769u >> 8) % static_cast<uint32_t>(stride));
      candidates.sample[i] = row.key(at, row.values[at]);
    }
    __syncthreads();
    uint32_t left;
    const uint32_t pivot = least_chosen<Threads>(s, List{candidates.sample}, samples, rank, left);
    __syncthreads();
    if (pivot > 0) {
      const int found = put_chosen<Threads>(s, row, n, pivot - 1, 0, [&](int place, int i) {
        if (place >= Candidates::kRoom) return;
        candidates.keys[place] = row.key(i, row.values[i]);
        candidates.entries[place] = i;
      });
      if (found >= count && found <= Candidates::kRoom)
        return top<Threads>(s, List{candidates.keys}, found, count, keep_zero, [&](int place, int i) { put(place, candidates.entries[i]); });
    }
  }
  return top<Threads>(s, row, n, count, keep_zero, put);
}
