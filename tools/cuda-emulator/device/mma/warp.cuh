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

}  // namespace mma
