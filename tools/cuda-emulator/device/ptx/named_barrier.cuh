#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline void barrier_sync(int id, int threads) { emulator::block_barrier(id, threads); }

}  // namespace ptx
