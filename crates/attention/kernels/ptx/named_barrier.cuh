// The sixteen hardware barriers of a thread block. Barrier 0 is __syncthreads.
#pragma once

namespace ptx {

__device__ __forceinline__ void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

}  // namespace ptx
