// Arithmetic that the language has no exact word for.
#pragma once

namespace ptx {

// Two to the power of x, to about 22 bits.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ptx
