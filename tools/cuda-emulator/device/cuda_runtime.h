// CUDA C++ for the host: what the project's kernels use of it. Included before every kernel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
// One thread block runs at a time, so a block's variables can be everybody's.
#define __shared__ static

struct uint2 { uint32_t x, y; };
struct int2 { int32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) int4 { int32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class A, class B>
inline auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) < C(b) ? C(a) : C(b);
}
template <class A, class B>
inline auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) > C(b) ? C(a) : C(b);
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(uint32_t x) { return bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return bits_as<uint32_t>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) result |= static_cast<uint32_t>(both >> (8 * ((selector >> (4 * i)) & 7)) & 0xff) << (8 * i);
  return result;
}
template <class T>
inline T __ldg(const T* from) {
  return *from;
}

// The threads of a block take turns, so that reading and writing are one step anyway.
template <class T>
inline T atomicAdd(T* to, std::common_type_t<T> x) {
  const T before = *to;
  *to = before + x;
  return before;
}
template <class T>
inline T atomicMin(T* to, std::common_type_t<T> x) {
  const T before = *to;
  if (x < before) *to = x;
  return before;
}
template <class T>
inline T atomicMax(T* to, std::common_type_t<T> x) {
  const T before = *to;
  if (x > before) *to = x;
  return before;
}

inline void __syncthreads() { emulator::block_barrier(0, emulator::block_threads()); }
inline void __syncwarp(uint32_t mask = ~0u) { emulator::warp_barrier(mask); }

// Every lane of `mask` lays down a value; `use` sees those of all lanes.
template <class T, class Use>
inline auto exchange(uint32_t mask, T value, Use use) {
  static_assert(sizeof(T) <= emulator::kSlotBytes);
  memcpy(emulator::warp_slot(emulator::lane()), &value, sizeof value);
  emulator::warp_barrier(mask);
  auto of = [](int lane) {
    T x;
    memcpy(&x, emulator::warp_slot(lane), sizeof x);
    return x;
  };
  auto result = use(of);
  emulator::warp_barrier(mask);
  return result;
}
template <class T>
inline T __shfl_sync(uint32_t mask, T x, int from) {
  return exchange(mask, x, [&](auto of) { return of(from & 31); });
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T x, int step) {
  return exchange(mask, x, [&](auto of) { return of(emulator::lane() ^ step); });
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T x, int step) {
  return exchange(mask, x, [&](auto of) { return emulator::lane() >= step ? of(emulator::lane() - step) : x; });
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T x, int step) {
  return exchange(mask, x, [&](auto of) { return emulator::lane() + step < 32 ? of(emulator::lane() + step) : x; });
}
template <class T, class Fold>
inline T fold_lanes(uint32_t mask, T x, Fold fold) {
  return exchange(mask, x, [&](auto of) {
    bool first = true;
    T all{};
    for (int i = 0; i < 32; i++) {
      if (!(mask >> i & 1)) continue;
      all = first ? of(i) : fold(all, of(i));
      first = false;
    }
    return all;
  });
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t x) {
  return fold_lanes(mask, x, [](uint32_t a, uint32_t b) { return a + b; });
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t x) {
  return fold_lanes(mask, x, [](uint32_t a, uint32_t b) { return std::max(a, b); });
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t x) {
  return fold_lanes(mask, x, [](uint32_t a, uint32_t b) { return std::min(a, b); });
}
inline uint32_t __ballot_sync(uint32_t mask, bool x) {
  return exchange(mask, x, [&](auto of) {
    uint32_t all = 0;
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1 && of(i)) all |= 1u << i;
    return all;
  });
}
inline bool __any_sync(uint32_t mask, bool x) { return __ballot_sync(mask, x) != 0; }
inline bool __all_sync(uint32_t mask, bool x) { return __ballot_sync(mask, x) == mask; }
