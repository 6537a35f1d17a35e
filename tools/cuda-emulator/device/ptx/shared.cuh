#pragma once
#include "cuda_runtime.h"

namespace ptx {

// Shared memory lies at addresses of 18 bits, which is what a matrix descriptor holds.
inline uint32_t shared_address(const void* p) { return emulator::shared_address(p); }

}  // namespace ptx
