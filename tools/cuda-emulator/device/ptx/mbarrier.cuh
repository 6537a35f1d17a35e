// Mbarriers: arrivals and bytes outstanding in the current phase.
#pragma once
#include "cuda_runtime.h"
#include "ptx/shared.cuh"

namespace ptx {

struct alignas(8) Mbarrier {
  uint16_t arrivals, pending;
  int32_t bytes_and_phase;  // bytes times two, and the parity of the phase

  void init(int count) {
    arrivals = pending = static_cast<uint16_t>(count);
    bytes_and_phase = 0;
  }
  void expect(int bytes) {
    bytes_and_phase += 2 * bytes;
    arrive();
  }
  void arrive() {
    if (pending == 0) emulator::fail("an mbarrier got more arrivals than it counts");
    pending--;
    turn();
  }
  // The copy engine has brought bytes.
  void complete(int bytes) {
    bytes_and_phase -= 2 * bytes;
    turn();
  }
  void wait(uint32_t parity) {
    emulator::wait_until([&] { return static_cast<uint32_t>(bytes_and_phase & 1) != parity; }, "an mbarrier");
  }

 private:
  void turn() {
    if (pending != 0 || bytes_and_phase >> 1 != 0) return;
    pending = arrivals;
    bytes_and_phase ^= 1;
  }
};
static_assert(sizeof(Mbarrier) == 8);

inline void fence_mbarrier_init() {}

}  // namespace ptx
