// Kernels of which the next may begin before the one in front of it has ended (programmatic dependent launch): what it can do without the
// other's results, such as loading weights, costs no time then. Launched otherwise, both functions do nothing. GPUs before Hopper have
// no such thing, and the host does not ask them for it.
#pragma once

// From here on blocks of the next kernel may start, where there is room for them.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the kernel in front has ended and what it wrote can be read. A kernel launched to overlap must call this before it reads or
// writes anything that another one writes or reads: in front of it, kernels have then ended in turn.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Both, for kernels that have nothing to do before.
__device__ __forceinline__ void overlap() {
  let_next_start();
  wait_for_previous();
}
