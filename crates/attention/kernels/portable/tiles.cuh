// Tile sizes of the portable attention kernel, by head dim, and how tiles lie in shared memory.
#pragma once
#include "key_tiles.cuh"
#include "ptx/async_copy.cuh"

namespace portable {

template <int Dim>
struct Tiles {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 32;  // 16 would read K and V from shared memory twice as often: slower than the products
  static constexpr int kBlocks = kWarpRows / 16;  // of rows, as the products take them
  static constexpr int kQueries = kWarpRows * kWarps;
  static_assert(kQueries == kTileQueries, "the work list's tiles");
  static constexpr int kKeys = kTileKeys / 2;  // a key tile takes two steps: the scores of 128 keys do not fit the registers
  static constexpr int kRowBytes = 2 * Dim;
  static constexpr int kBytesQ = kQueries * kRowBytes;
  static constexpr int kBytesK = kKeys * kRowBytes;
  static constexpr int kSlots = 3;  // K, V and the next K; two blocks of 80 KB at dim 128 share the 164 KB of an Ampere multiprocessor
  static constexpr int kRing = kSlots * kBytesK;
  static constexpr int kMinBlocks = Dim == 64 ? 3 : 2;  // of a multiprocessor: as many as registers allow without spills

  // A row is a run of 16-byte chunks. Within groups of 8 (4 where 8 do not divide the row) chunks change places by row, so that a
  // chunk of 8 successive rows lies in 8 different bank groups.
  static constexpr int kGroup = Dim % 64 == 0 ? 8 : 4;
  static __device__ __forceinline__ uint32_t place(int row, int chunk) {
    const int swap = kGroup == 8 ? row % 8 : row / 2 % 4;
    return row * kRowBytes + ((chunk ^ swap) << 4);
  }
  // From the place of chunk 0 or 1 of a row to that of the chunk `further` (even) on.
  static __device__ __forceinline__ uint32_t along(uint32_t place, int further) {
    return (place ^ (further % kGroup << 4)) + (further / kGroup * kGroup << 4);
  }

  // Starts the copy of `Rows` rows from row `first` on, those outside 0..limit as zeros; by threads 0 .. kThreads, neighbours copying
  // neighbouring chunks.
  template <int Rows, typename Element>
  static __device__ __forceinline__ void load(uint32_t to, const Element* from, int64_t row_stride, int first, int limit, uint32_t thread) {
    constexpr int kStep = kThreads / kGroup;  // rows at a time
    const int row = thread / kGroup, chunk = thread % kGroup;
    to += place(row, chunk);
    from += (first + row) * row_stride + chunk * 8;
#pragma unroll
    for (int r = 0; r < Rows; r += kStep) {
      const bool valid = static_cast<uint32_t>(first + row + r) < static_cast<uint32_t>(limit);
#pragma unroll
      for (int c = 0; c < Dim / 8; c += kGroup) ptx::copy_async(to + r * kRowBytes + c * 16, from + c * 8, valid);
      from += kStep * row_stride;
    }
  }
};

// The work item under way. The first thread walks its list; in shared memory that takes no registers.
struct Item {
  KeyTiles list;
  int at;  // place in the list
  int head, kv_head, row;
  int steps;  // two a key tile; none: no more work
};

template <int Dim>
struct __align__(128) Shared {
  using T = Tiles<Dim>;
  alignas(128) uint8_t q[T::kBytesQ];  // the output, in the end
  alignas(128) uint8_t ring[T::kRing];
  Item item;
  KeyTile tiles[2];  // this one and the next
};

}  // namespace portable
