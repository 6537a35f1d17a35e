// Asynchronous copies arrive as late as they may: when their group is waited for. Until then their place holds no numbers.
#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline void copy_async(uint32_t to, const void* from, bool valid) {
  if (to % 16 != 0 || (valid && reinterpret_cast<uint64_t>(from) % 16 != 0)) emulator::fail("an asynchronous copy that is not aligned to its 16 bytes");
  memset(emulator::shared_pointer(to), 0xff, 16);
  emulator::copies().add(to, valid ? from : nullptr);
}
inline void copy_async_commit() { emulator::copies().commit(); }
template <int Pending>
inline void copy_async_wait() {
  emulator::copies().wait(Pending);
}

}  // namespace ptx
