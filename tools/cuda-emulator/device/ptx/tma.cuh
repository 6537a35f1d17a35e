// The bulk tensor copy engine, done at once. 128-byte swizzle: the 16-byte chunks of each 128 bytes are exchanged by bits 7 to 9 of the address.
#pragma once
#include <cuda.h>

#include "ptx/mbarrier.cuh"

namespace ptx {

inline void tma_prefetch(const CUtensorMap*) {}

inline void* swizzled(void* base, uint32_t offset) {
  const uint32_t address = shared_address(base) + offset;
  return static_cast<char*>(emulator::shared_pointer(address ^ (address >> 7 & 7) << 4));
}

// Hands `use` every 16-byte chunk of a box: where it is in the tensor (null outside), and its offset in the box.
template <class Use>
inline void each_chunk(const CUtensorMap* map, int column, int row, int head, Use use) {
  if (map->box[0] * map->element != 128) emulator::fail("a box is not 128 bytes wide");
  const int chunk_elements = static_cast<int>(16 / map->element);
  for (uint64_t r = 0; r < map->box[1]; r++)
    for (int c = 0; c < 8; c++) {
      const int64_t at_row = row + static_cast<int64_t>(r), at_column = column + c * chunk_elements;
      const bool inside = at_row >= 0 && at_row < static_cast<int64_t>(map->dims[1]) && at_column >= 0 &&
                          at_column + chunk_elements <= static_cast<int64_t>(map->dims[0]) && head >= 0 && head < static_cast<int64_t>(map->dims[2]);
      const uint64_t at = map->address + at_row * map->strides[0] + head * map->strides[1] + at_column * map->element;
      use(inside ? reinterpret_cast<char*>(at) : nullptr, static_cast<uint32_t>(r * 128 + c * 16));
    }
}

inline void tma_load(void* to, const CUtensorMap* map, Mbarrier* full, int column, int row, int head) {
  if (shared_address(to) % 128 != 0) emulator::fail("the copy engine writes to places aligned to 128 bytes");
  each_chunk(map, column, row, head, [&](const char* from, uint32_t offset) {
    void* const place = swizzled(to, offset);
    if (from) memcpy(place, from, 16);
    else memset(place, 0, 16);
  });
  full->complete(static_cast<int>(map->box[1] * 128));
}

inline void tma_store(const CUtensorMap* map, const void* from, int column, int row, int head) {
  each_chunk(map, column, row, head, [&](char* to, uint32_t offset) {
    if (to) memcpy(to, swizzled(const_cast<void*>(from), offset), 16);
  });
}
inline void tma_store_commit() {}
inline void tma_store_wait_read() {}
inline void tma_store_wait() {}
inline void fence_async_proxy() {}

}  // namespace ptx
