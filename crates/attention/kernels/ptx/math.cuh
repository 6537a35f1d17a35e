// Arithmetic that the language has no exact word for.
#pragma once

namespace ptx {

// Two to the power of x, to about 22 bits.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Has `x`, which is not negative, computed here: a use of it that the assembler cannot move.
__device__ __forceinline__ void have_now(float x) {
  asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p trap; }" ::"f"(x) : "memory");
}

}  // namespace ptx
