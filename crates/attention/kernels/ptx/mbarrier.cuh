// Barriers in shared memory that count arrivals and bytes: how the copy engine and the warpgroups hand tiles to each other.
#pragma once
#include <cstdint>

#include "ptx/shared.cuh"

namespace ptx {

struct Mbarrier {
  uint64_t state;

  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals));
  }
  // Arrives, and announces bytes that the copy engine will bring.
  __device__ __forceinline__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes) : "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory");
  }
  // Waits until the phase of this parity has ended. A fresh barrier counts as having ended parity 1.
  __device__ __forceinline__ void wait(uint32_t parity) {
    asm volatile(
        "{\n .reg .pred done;\n again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @done bra.uni over;\n"
        " bra.uni again;\n over:\n }" ::"r"(shared_address(&state)),
        "r"(parity)
        : "memory");
  }
};

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

}  // namespace ptx
