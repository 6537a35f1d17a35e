// The 8-bit floats of CUDA's header, e4m3 alone: four bits of exponent with bias 7, three of mantissa, no infinity, one NaN, largest 448.
#pragma once
#include "cuda_fp16.h"

using __nv_fp8_storage_t = uint8_t;
using __nv_fp8x2_storage_t = uint16_t;
enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t, __nv_fp8_interpretation_t) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;
  const float size = std::min(std::fabs(x), 448.0f);
  // Below 2^-6 numbers are multiples of 2^-9, as those of the lowest exponent are.
  int exponent = size == 0.0f ? -6 : std::max(std::ilogb(size), -6);
  int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  if (mantissa == 16) mantissa = 8, exponent++;
  return sign | (mantissa < 8 ? mantissa : (exponent + 7) << 3 | (mantissa - 8));
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t saturation, __nv_fp8_interpretation_t type) {
  return __nv_cvt_float_to_fp8(x.x, saturation, type) | __nv_cvt_float_to_fp8(x.y, saturation, type) << 8;
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t) {
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  const float size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  const float value = (x & 0x7f) == 0x7f ? NAN : size;
  return {bits_as<uint16_t>(__half(x & 0x80 ? -value : value))};
}
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t x, __nv_fp8_interpretation_t type) {
  return {__nv_cvt_fp8_to_halfraw(x & 0xff, type).x, __nv_cvt_fp8_to_halfraw(x >> 8, type).x};
}
