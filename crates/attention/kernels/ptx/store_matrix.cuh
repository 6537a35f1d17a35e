// Storing four 8 x 8 matrices of 16-bit elements to shared memory.
#pragma once
#include <cstdint>

namespace ptx {

// Register i of all lanes is matrix i: lane l holds elements 2 (l % 4) and the next of row l / 4. Row r of it goes to the address that lane
// 8 i + r gives.
__device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

}  // namespace ptx
