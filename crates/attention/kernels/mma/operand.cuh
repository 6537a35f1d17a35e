// Operands of the warpgroup product in shared memory.
#pragma once
#include <cstdint>

namespace mma {

// An operand in shared memory, 128-byte swizzle. Strides in bytes: `stride` from 8 rows of 128 bytes to the next 8, `leading` from a panel of
// 64 columns to the next (used when the operand is wider than a panel along the swizzled dimension). A descriptor holds the address in units
// of 16 bytes in its low half, and no operand crosses the range: steps are additions of 32 bits.
struct Operand {
  uint32_t low, high;

  __device__ __forceinline__ Operand(uint32_t address, uint32_t leading, uint32_t stride)
      : low((address & 0x3FFFF) >> 4 | leading >> 4 << 16), high(stride >> 4 | 1u << 30) {}
  __device__ __forceinline__ Operand operator+(int bytes) const {
    Operand moved = *this;
    moved.low += bytes / 16;
    return moved;
  }
  __device__ __forceinline__ uint64_t descriptor() const { return static_cast<uint64_t>(high) << 32 | low; }
};

}  // namespace mma
