// The driver's tensor map, as the emulator's `cuTensorMapEncodeTiled` fills it.
#pragma once
#include <cstdint>

struct CUtensorMap {
  uint64_t address;
  uint64_t dims[3];     // elements of dim, rows, heads
  uint64_t strides[2];  // bytes from a row to the next, and from a head to the next
  uint64_t box[3];      // elements
  uint64_t element;     // bytes
  uint64_t unused[6];
};
static_assert(sizeof(CUtensorMap) == 128);
