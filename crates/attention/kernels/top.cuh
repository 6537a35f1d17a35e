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

// Hands `use(i, value)` the entries i of begin .. end that fall to worker `worker` of `workers`: groups of four in turn, several loads in
// flight. `begin` must be a multiple of 4, and the row be readable up to the next one.
template <typename Use>
__device__ __forceinline__ void each_value(const float* values, int begin, int end, int worker, int workers, Use use) {
  constexpr int kLoads = 4;
  for (int64_t i = begin + 4 * worker; i < end; i += 4 * kLoads * workers) {
    float4 loaded[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; u++)
      if (i + 4 * u * workers < end) loaded[u] = *reinterpret_cast<const float4*>(values + i + 4 * u * workers);
#pragma unroll
    for (int u = 0; u < kLoads; u++) {
      const int64_t at = i + 4 * u * workers;
      const float four[4] = {loaded[u].x, loaded[u].y, loaded[u].z, loaded[u].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (at + j < end) use(static_cast<int>(at) + j, four[j]);
    }
  }
}

// Hands the positions of the `count` largest of `n` values to `put(place, position)`, places ascending with positions, and returns how many
// there are. `key(position, value)` says what is compared; of equal keys those at lower positions are chosen, and without `keep_zero` none
// that is zero.
template <int Threads, typename Key, typename Put>
__device__ inline int top(TopShared& s, const float* values, int n, int count, bool keep_zero, Key key, Put put) {
  constexpr int kWarps = Threads / 32;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  count = min(count, n);
  if (count <= 0) return 0;

  // The bits of the smallest key chosen, 11, 11 and 10 at a time, and how many of that key are.
  uint32_t least = 0, left = count;
#pragma unroll
  for (int pass = 0; pass < 3; pass++) {
    constexpr int kShifts[3] = {21, 10, 0};
    const int shift = kShifts[pass], bins = pass < 2 ? 2048 : 1024, each = bins / Threads;
    for (int i = thread; i < bins; i += Threads) s.histogram[i] = 0;
    __syncthreads();
    each_value(values, 0, n, thread, Threads, [&](int i, float value) {
      const uint32_t bits = key(i, value);
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
  if (least == 0 && !keep_zero) left = 0;

  // A warp has a run of positions; runs before it say where it writes.
  const int run = (n + kWarps * 128 - 1) / (kWarps * 128) * 128;
  const int begin = warp * run, end = min(begin + run, n);
  uint32_t larger = 0, equal = 0;
  each_value(values, begin, end, lane, 32, [&](int i, float value) {
    larger += key(i, value) > least;
    equal += key(i, value) == least;
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
  for (int i = begin + 4 * lane; i - 4 * lane < end; i += 128) {
    const float4 loaded = i < end ? *reinterpret_cast<const float4*>(values + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    const float four[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    uint32_t taken = 0, tied = 0;  // bit masks
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j >= end) continue;
      taken |= (key(i + j, four[j]) > least) << j;
      tied |= (key(i + j, four[j]) == least) << j;
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
      if (taken >> j & 1) put(static_cast<int>(place++), i + j);
  }
  __syncthreads();
  return total;
}
