#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline void barrier_sync(int id, int threads) { emulator::block_barrier(id, threads, true); }
inline void barrier_arrive(int id, int threads) { emulator::block_barrier(id, threads, false); }

}  // namespace ptx
