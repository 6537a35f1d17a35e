// The positions of the largest of many values, ascending, by a thread block of 1024: radix selection.
#pragma once
#include <cstdint>

constexpr int kChoosers = 1024;

struct TopShared {
  uint32_t histogram[2048];
  uint32_t warps[2][32];
  uint32_t digit, left;
};

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

// Writes the positions of the `count` largest of `n` values (none negative), ascending, to `to`, and returns how many there are. The first
// `forced` positions come before all others; of equal values those at lower positions. Without `keep_zero` zeros are not chosen.
__device__ inline int top(TopShared& s, const float* values, int n, int count, int forced, bool keep_zero, int32_t* to) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  count = min(count, n);
  if (count <= 0) return 0;
  // Infinity for the forced ones. Values that are no numbers (of inputs that are none) count as infinite too, so that the count stays a bound.
  auto key = [forced](int i, float value) { return i < forced ? 0x7f800000u : min(__float_as_uint(value) & 0x7fffffffu, 0x7f800000u); };

  // The bits of the smallest value chosen, 11, 10 and 10 at a time, and how many of that value are.
  uint32_t least = 0, left = count;
#pragma unroll 1
  for (int shift = 20; shift >= 0; shift -= 10) {
    const uint32_t bins = shift == 20 ? 2048 : 1024;
    for (int i = thread; i < 2048; i += kChoosers) s.histogram[i] = 0;
    __syncthreads();
    each_value(values, 0, n, thread, kChoosers, [&](int i, float value) {
      const uint32_t bits = key(i, value);
      if (bits / bins >> shift == least) atomicAdd(&s.histogram[bits >> shift & (bins - 1)], 1);
    });
    __syncthreads();
    // Thread t has the t-th pair of bins from the top.
    const bool has = 2 * thread < bins;
    const int high = bins - 1 - 2 * thread;
    const uint32_t in_high = has ? s.histogram[high] : 0, in_pair = has ? in_high + s.histogram[high - 1] : 0;
    uint32_t before = sum_of_lanes_before(in_pair, lane);
    if (lane == 31) s.warps[0][warp] = before + in_pair;
    __syncthreads();
    before += __reduce_add_sync(~0u, lane < warp ? s.warps[0][lane] : 0);
    if (before < left && left <= before + in_pair) {
      const bool is_high = left <= before + in_high;
      s.digit = is_high ? high : high - 1;
      s.left = left - before - (is_high ? 0 : in_high);
    }
    __syncthreads();
    least = least * bins + s.digit;
    left = s.left;
  }
  if (least == 0 && !keep_zero) left = 0;

  // A warp has a run of positions; runs before it say where it writes.
  const int run = (n + 32 * 128 - 1) / (32 * 128) * 128;
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
  uint32_t equal_seen = __reduce_add_sync(~0u, lane < warp ? s.warps[1][lane] : 0);
  uint32_t at = __reduce_add_sync(~0u, lane < warp ? s.warps[0][lane] : 0) + min(equal_seen, left);
  const int total = __reduce_add_sync(~0u, s.warps[0][lane]) + min(__reduce_add_sync(~0u, s.warps[1][lane]), left);
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
      if (taken >> j & 1) to[place++] = i + j;
  }
  __syncthreads();
  return total;
}
