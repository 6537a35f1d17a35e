// Running thread blocks.
#pragma once
#include <cstddef>

#include "device/threads.h"

namespace emulator {

// A kernel with its parameters unpacked.
using Thunk = void (*)(void** parameters);

// Runs one thread block of `blockDim.x` threads at `blockIdx`.
void run_block(Thunk kernel, void** parameters, size_t shared_bytes);

}  // namespace emulator
