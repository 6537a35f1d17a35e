// mma.m16n8k16 by PTX's figures: with g = lane / 4 and t = lane % 4, a lane holds A[g][2t], A[g+8][2t], A[g][2t+8], A[g+8][2t+8] and the next
// of each, B[2t][g], B[2t+8][g] and the next of each, and D[g][2t], D[g+8][2t] and the next of each.
#pragma once
#include "mma/element.cuh"

namespace mma {

template <typename Element>
inline void multiply(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Part { uint32_t words[6]; };
  exchange(~0u, Part{{a[0], a[1], a[2], a[3], b0, b1}}, [&](auto of) {
    const int g = emulator::lane() / 4, t = emulator::lane() % 4;
    for (int i = 0; i < 4; i++) {
      const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
      for (int k = 0; k < 16; k++) {
        const float left = unpack<Element>(of(row % 8 * 4 + k % 8 / 2).words[row / 8 + 2 * (k / 8)], k % 2);
        const float right = unpack<Element>(of(column * 4 + k % 8 / 2).words[4 + k / 8], k % 2);
        d[i] += left * right;
      }
    }
    return 0;
  });
}

// ldmatrix: lane l gives the address of row l % 8 of matrix l / 8, and gets elements 2 (l % 4) and the next of row l / 4 of each; transposed,
// of column l / 4.
template <bool Transposed>
inline void load_four(uint32_t (&m)[4], uint32_t address) {
  if (address % 16 != 0) emulator::fail("a row of a matrix that is not aligned to its 16 bytes");
  exchange(~0u, address, [&](auto of) {
    const int g = emulator::lane() / 4, t = emulator::lane() % 4 * 2;
    for (int i = 0; i < 4; i++) {
      uint32_t banks = 0;
      for (int row = 0; row < 8; row++) banks |= 1u << (of(8 * i + row) / 16 % 8);
      if (banks != 0xff) emulator::fail("rows of a matrix in the same banks of shared memory");
      auto element = [&](int row, int column) {
        uint16_t x;
        memcpy(&x, static_cast<char*>(emulator::shared_pointer(of(8 * i + row))) + 2 * column, 2);
        return static_cast<uint32_t>(x);
      };
      m[i] = Transposed ? element(t, g) | element(t + 1, g) << 16 : element(g, t) | element(g, t + 1) << 16;
    }
    return 0;
  });
}
inline void load_matrices(uint32_t (&m)[4], uint32_t address) { load_four<false>(m, address); }
inline void load_matrices_transposed(uint32_t (&m)[4], uint32_t address) { load_four<true>(m, address); }

}  // namespace mma
