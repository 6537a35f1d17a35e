// The number of a thread in its block, as a value that the compiler takes for a new one each time.
#pragma once

namespace ptx {

__device__ __forceinline__ int thread() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}

}  // namespace ptx
