// Matrix i of the four is made of register i of every lane: lane l holds elements 2 (l % 4) and the next of row l / 4. Row r of it goes to the
// address that lane 8 i + r gives.
#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  struct Part { uint32_t to, words[4]; };
  exchange(~0u, Part{to, {a, b, c, d}}, [&](auto of) {
    for (int i = 0; i < 4; i++) {
      char* const row = static_cast<char*>(emulator::shared_pointer(of(8 * i + emulator::lane() / 4).to));
      const Part own = of(emulator::lane());
      memcpy(row + emulator::lane() % 4 * 4, &own.words[i], 4);
    }
    return 0;
  });
}

}  // namespace ptx
