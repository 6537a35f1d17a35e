// Tile sizes of the Hopper attention kernel, by head dim, and the shared memory they fill.
#pragma once
#include "ptx/mbarrier.cuh"
#include "work.cuh"

namespace sm90 {

template <int Dim>
struct Tiles {
  static constexpr int kConsumers = 2;                      // warpgroups of 64 query rows; a third has no registers left at dim 128
  static constexpr int kQueries = 64 * kConsumers;
  static constexpr int kKeys = kTileKeys;                   // 128 keys: 64 score registers a thread, and 128 FLOP per byte of K and V
  static constexpr int kPanels = (Dim + 63) / 64;           // panels of 64 elements (128 bytes, the swizzle's width); the last may be half used
  static constexpr int kStages = Dim == 64 ? 4 : 2;         // 2 fill 225 KB at dim 128; at dim 64 there is room for 4
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kProducerRegisters = 40;             // 24 spill
  static constexpr int kConsumerRegisters = 232;            // (65536 - 128*40) / 256
  static constexpr int kPanelBytesQ = kQueries * 128;
  static constexpr int kPanelBytesK = kKeys * 128;
  static constexpr int kBytesQ = kPanels * kPanelBytesQ;
  static constexpr int kBytesK = kPanels * kPanelBytesK;
};

// What consumers must know of a key tile besides its bytes.
struct TileNote {
  uint32_t columns[4];  // the mask of gathered columns
  int first_key;        // of a run
};

// A work item handed from the producer to the consumers: `spans` runs of keys, gathered columns in the other tiles; no tiles = no more work.
struct WorkNote {
  int head, row, spans, tiles;
};

template <int Dim>
struct __align__(1024) Shared {
  using T = Tiles<Dim>;
  alignas(1024) uint8_t q[2][T::kBytesQ];  // the next query tile's come while this one's are in use
  alignas(1024) uint8_t k[T::kStages][T::kBytesK];
  alignas(1024) uint8_t v[T::kStages][T::kBytesK];
  alignas(1024) uint8_t o[T::kBytesQ];
  TileNote notes[T::kStages];  // of the keys in the stage of the same number
  WorkNote work[2];
  ptx::Mbarrier q_full[2], q_empty[2];
  ptx::Mbarrier k_full[T::kStages], k_empty[T::kStages], v_full[T::kStages], v_empty[T::kStages];
  ptx::Mbarrier work_full[2], work_empty[2];
};

// A place in a ring of `Stages` buffers, and the parity of the current round.
template <int Stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace sm90
