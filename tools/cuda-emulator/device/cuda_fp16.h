#pragma once
#include "cuda_runtime.h"

struct __half_raw { uint16_t x; };
struct __half2_raw { uint16_t x, y; };
struct __half {
  _Float16 value;
  __half() = default;
  explicit __half(float x) : value(static_cast<_Float16>(x)) {}
  __half(__half_raw raw) : value(bits_as<_Float16>(raw.x)) {}
  operator float() const { return static_cast<float>(value); }
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half2_raw raw) : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
};
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
