// Causal attention of a prompt over a sparse index, for Hopper.
//
// A thread block takes query tiles (128 rows of one head) from a queue until it is empty. One producer thread walks the tile's list of
// key tiles and has the copy engine bring K and V into two rings; two warpgroups of 64 rows each consume them. In a step a warpgroup
// issues S = Q K^T of this key tile and O += P V of the one before, and computes the softmax of S while the second product runs
// (FlashAttention-3, arXiv 2407.08608). The warpgroups are left to themselves: with turns in issuing, as there, dense attention is slower by
// 1 % at head dim 128 and by 3 % at 64.
#pragma once
#include <cuda.h>

#include <cstddef>

#include "key_tiles.cuh"
#include "mma/element.cuh"
#include "mma/mask.cuh"
#include "mma/softmax.cuh"
#include "mma/wgmma.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/registers.cuh"
#include "ptx/store_matrix.cuh"
#include "ptx/tma.cuh"
#include "sm90/tiles.cuh"
#include "work.cuh"

namespace sm90 {

struct Maps {
  const CUtensorMap *q, *k, *v, *columns_k, *columns_v, *o;
};

template <int Panels>
__device__ __forceinline__ void load(uint8_t* to, int panel_bytes, const CUtensorMap* map, ptx::Mbarrier* full, int row, int head) {
  full->expect(Panels * panel_bytes);
#pragma unroll
  for (int p = 0; p < Panels; p++) ptx::tma_load(to + p * panel_bytes, map, full, 64 * p, row, head);
}

// One thread: takes work, and keeps the rings full.
template <int Dim>
__device__ __forceinline__ void produce(Shared<Dim>& s, const Maps& maps, const AttentionParams& p) {
  using T = Tiles<Dim>;
  Ring<T::kStages> k, v;
  Ring<2> work, q;
  for (int w = blockIdx.x;; w = gridDim.x + atomicAdd(p.counter, 1)) {
    s.work_empty[work.stage].wait(work.parity ^ 1);
    if (w >= p.item_count) {
      s.work[work.stage].tiles = 0;
      s.work_full[work.stage].arrive();
      return;
    }
    const WorkItem* item = p.items + w;
    const int head = __ldg(&item->head), row = __ldg(&item->row), spans = __ldg(&item->spans);
    if (spans == 0) continue;  // an empty place of the queue
    const int tiles = spans + __ldg(&item->column_tiles), kv_head = head / p.group;
    s.work[work.stage] = {head, row, spans, tiles};
    s.work_full[work.stage].arrive();
    work.advance();

    s.q_empty[q.stage].wait(q.parity ^ 1);
    load<T::kPanels>(s.q[q.stage], T::kPanelBytesQ, maps.q, &s.q_full[q.stage], row, head);
    q.advance();

    const KeyTiles list = key_tiles(p, item, row, spans);
    int at = 0;
    int key = 0, value_key = 0;  // first keys of the tiles whose K and V are loaded next; V follows one tile behind
    for (int t = 0; t <= tiles; t++) {
      if (t < tiles) {
        const bool span = t < spans;
        const KeyTile tile = list.next(at);
        key = tile.first_key;
        s.k_empty[k.stage].wait(k.parity ^ 1);
        s.notes[k.stage] = {{tile.mask[0], tile.mask[1], tile.mask[2], tile.mask[3]}, key};
        load<T::kPanels>(s.k[k.stage], T::kPanelBytesK, span ? maps.k : maps.columns_k, &s.k_full[k.stage], key, span ? kv_head : 0);
        k.advance();
      }
      if (t > 0) {
        const bool span = t - 1 < spans;
        s.v_empty[v.stage].wait(v.parity ^ 1);
        load<T::kPanels>(s.v[v.stage], T::kPanelBytesK, span ? maps.v : maps.columns_v, &s.v_full[v.stage], value_key, span ? kv_head : 0);
        v.advance();
      }
      value_key = key;
    }
  }
}

// What the producer wrote is read by the lane that will hand the buffer back, and goes from there to the warp: the barrier orders that lane's
// own reads, with no help from how a warp's other lanes are ordered before it.
template <typename Word>
__device__ __forceinline__ Word read(const Word& x, int lane) {
  return __shfl_sync(~0u, lane == 0 ? *const_cast<const volatile Word*>(&x) : Word{}, 0);
}

// Sets the scores that do not count to minus infinity: those of a run's keys that a row does not see. The query tile's first row is at `first`.
template <int Scores>
__device__ __forceinline__ void mask_run(float (&s)[Scores], const TileNote& note, int first, int position, int lane) {
  const int key = read(note.first_key, lane);
  if (key + kTileKeys - 1 > first || key < 0) mma::mask_causal(s, key, position, lane);
}

// The same for gathered columns that do not count.
template <int Scores>
__device__ __forceinline__ void mask_columns(float (&s)[Scores], const TileNote& note, int lane) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) words[i] = read(note.columns[i], lane);
  if ((words[0] & words[1] & words[2] & words[3]) != ~0u) mma::mask_columns(s, words, lane);
}

// A warpgroup: 64 rows of every query tile.
template <typename Element, int Dim>
__device__ __forceinline__ void consume(Shared<Dim>& s, const Maps& maps, const AttentionParams& p, int consumer) {
  using T = Tiles<Dim>;
  using ProductQK = mma::Wgmma<Element, T::kKeys>;
  using ProductPV = mma::Wgmma<Element, Dim>;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
  const int thread_row = consumer * 64 + warp * 16 + lane / 4;  // and 8 rows below
  // Descriptors hold addresses in units of 16 bytes in their low bits, and no tile crosses the range: steps are plain additions.
  const mma::Operand q{ptx::shared_address(s.q[0]) + consumer * 64 * 128, 16, 1024};
  const mma::Operand k{ptx::shared_address(s.k[0]), 16, 1024};
  // V follows K: from one base, there are fewer descriptors to make.
  static_assert(offsetof(Shared<Dim>, v) == offsetof(Shared<Dim>, k) + sizeof(Shared<Dim>::k));
  const mma::Operand v{ptx::shared_address(s.k[0]) + T::kStages * T::kBytesK, T::kPanelBytesK, 1024};

  float scores[T::kKeys / 2], out[Dim / 2];
  // The weights of a tile, while the product with those of the tile before still reads the other array.
  uint32_t even[T::kKeys / 16][4], odd[T::kKeys / 16][4];
  mma::OnlineSoftmax<T::kKeys / 2> softmax;
  softmax.scale_log2 = p.scale_log2;

  Ring<T::kStages> kr, vr;
  Ring<2> work, qr;

  auto score = [&](int stage) {
    const mma::Operand rows = q + qr.stage * T::kBytesQ, tile = k + stage * T::kBytesK;
    mma::keep(scores);
    mma::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Dim / 16; i++) {
      const int a = (i / 4) * T::kPanelBytesQ + (i % 4) * 32, b = (i / 4) * T::kPanelBytesK + (i % 4) * 32;
      ProductQK::shared_shared(scores, (rows + a).descriptor(), (tile + b).descriptor(), i != 0);
    }
    mma::wgmma_commit();
    mma::keep(scores);
  };
  auto accumulate = [&](const uint32_t (&weights)[T::kKeys / 16][4], int stage) {
    const mma::Operand tile = v + stage * T::kBytesK;
    mma::keep(out);
    mma::wgmma_fence();
#pragma unroll
    for (int i = 0; i < T::kKeys / 16; i++) ProductPV::registers_shared(out, weights[i], (tile + i * 16 * 128).descriptor());
    mma::wgmma_commit();
    mma::keep(out);
  };
  // Hands a buffer back for the warp, which has to be done with it.
  auto release = [&](ptx::Mbarrier& barrier) {
    __syncwarp();
    if (lane == 0) barrier.arrive();
  };

  while (true) {
    s.work_full[work.stage].wait(work.parity);
    const WorkNote& note = s.work[work.stage];
    const WorkNote item{read(note.head, lane), read(note.row, lane), read(note.spans, lane), read(note.tiles, lane)};
    release(s.work_empty[work.stage]);
    work.advance();
    if (item.tiles == 0) break;
    const int first = p.start + item.row, position = first + thread_row, columns = item.tiles - item.spans;

    s.q_full[qr.stage].wait(qr.parity);
    s.k_full[kr.stage].wait(kr.parity);
    score(kr.stage);
    mma::wgmma_wait<0>();
    mma::keep(scores);
    mask_run(scores, s.notes[kr.stage], first, position, lane);
    release(s.k_empty[kr.stage]);
    kr.advance();
    softmax.begin();
    softmax.raise(scores);
    softmax.template weigh<Element>(scores, even);
#pragma unroll
    for (int i = 0; i < Dim / 2; i++) out[i] = 0.f;

    auto finish = [&](const auto& weights) {
      release(s.q_empty[qr.stage]);
      qr.advance();
      s.v_full[vr.stage].wait(vr.parity);
      accumulate(weights, vr.stage);
      mma::wgmma_wait<0>();
      mma::keep(out);
      release(s.v_empty[vr.stage]);
      vr.advance();
    };
    auto step = [&](int left, const auto& before, auto& weights) {
      s.k_full[kr.stage].wait(kr.parity);
      score(kr.stage);
      s.v_full[vr.stage].wait(vr.parity);
      accumulate(before, vr.stage);
      mma::wgmma_wait<1>();
      mma::keep(scores);
      // Of a query tile's runs only the first and the last can hold keys that a row does not see.
      if (left == columns + 1) mask_run(scores, s.notes[kr.stage], first, position, lane);
      if (left <= columns) mask_columns(scores, s.notes[kr.stage], lane);
      release(s.k_empty[kr.stage]);
      kr.advance();
      const bool raised = softmax.raise(scores);
      softmax.template weigh<Element>(scores, weights);
      softmax.complete();
      mma::wgmma_wait<0>();
      mma::keep(out);
      release(s.v_empty[vr.stage]);
      vr.advance();
      if (raised) {
#pragma unroll
        for (int i = 0; i < Dim / 2; i++) out[i] *= softmax.correction[(i >> 1) & 1];
      }
    };
    for (int left = item.tiles - 1;; left -= 2) {
      if (left == 0) {
        finish(even);
        break;
      }
      step(left, even, odd);
      if (left == 1) {
        finish(odd);
        break;
      }
      step(left - 1, odd, even);
    }

    // Output: normalise, 16-bit, into this warpgroup's swizzled panels, and out by the copy engine, which leaves out rows past the end.
    softmax.finish();
    const float inverse[2] = {1.f / softmax.sum[0], 1.f / softmax.sum[1]};
    if (p.lse != nullptr && lane % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int row = item.row + thread_row + 8 * r;
        if (row < p.rows) p.lse[static_cast<int64_t>(item.head) * p.rows + row] = softmax.log_sum_exp(r);
      }
    }
    uint8_t* o = s.o + consumer * T::kPanels * 64 * 128;
    if (thread == 0) ptx::tma_store_wait_read();
    ptx::barrier_sync(1 + consumer, 128);
    const int matrix_row = warp * 16 + lane % 8 + 8 * ((lane / 8) & 1);
#pragma unroll
    for (int j = 0; j < Dim / 16; j++) {
      const int chunk = (2 * j + lane / 16) % 8;
      const uint32_t to = ptx::shared_address(o) + (j / 4) * 64 * 128 + matrix_row * 128 + ((chunk ^ (matrix_row % 8)) << 4);
      const float* x = out + 8 * j;
      ptx::store_matrices(to, mma::pack<Element>(x[0] * inverse[0], x[1] * inverse[0]), mma::pack<Element>(x[2] * inverse[1], x[3] * inverse[1]),
                          mma::pack<Element>(x[4] * inverse[0], x[5] * inverse[0]), mma::pack<Element>(x[6] * inverse[1], x[7] * inverse[1]));
    }
    ptx::fence_async_proxy();
    ptx::barrier_sync(1 + consumer, 128);
    if (thread == 0) {
#pragma unroll
      for (int panel = 0; panel < T::kPanels; panel++)
        ptx::tma_store(maps.o, o + panel * 64 * 128, 64 * panel, item.row + consumer * 64, item.head);
      ptx::tma_store_commit();
    }
  }
  if (thread == 0) ptx::tma_store_wait();
}

template <typename Element, int Dim>
__device__ __forceinline__ void attention(const Maps& maps, const AttentionParams& p) {
  using T = Tiles<Dim>;
  extern __shared__ uint8_t raw[];
  // An offset from `raw`, not a rounded address: the compiler must see that it is shared memory.
  auto& s = *reinterpret_cast<Shared<Dim>*>(raw + (-ptx::shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * T::kConsumers;  // one arrival a consumer warp
    for (int i = 0; i < T::kStages; i++) {
      s.k_full[i].init(1);
      s.v_full[i].init(1);
      s.k_empty[i].init(kWarps);
      s.v_empty[i].init(kWarps);
    }
    for (int i = 0; i < 2; i++) {
      s.q_full[i].init(1);
      s.q_empty[i].init(kWarps);
      s.work_full[i].init(1);
      s.work_empty[i].init(kWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  // The same for all threads of a warp, and the compiler has to know.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    ptx::registers_give<T::kProducerRegisters>();
    if (threadIdx.x == 0) produce<Dim>(s, maps, p);
  } else {
    ptx::registers_take<T::kConsumerRegisters>();
    consume<Element, Dim>(s, maps, p, warpgroup - 1);
  }
}

}  // namespace sm90

// A kernel of one element type and head dim, and how much shared memory it takes.
#define SPEEDREAD_ATTENTION(NAME, ELEMENT, DIM)                                                                                       \
  extern "C" __global__ void __launch_bounds__(sm90::Tiles<DIM>::kThreads, 1)                                                         \
      NAME##_d##DIM(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v, \
                    const __grid_constant__ CUtensorMap columns_k, const __grid_constant__ CUtensorMap columns_v,                     \
                    const __grid_constant__ CUtensorMap o, const __grid_constant__ AttentionParams params) {                          \
    sm90::attention<ELEMENT, DIM>({&q, &k, &v, &columns_k, &columns_v, &o}, params);                                                  \
  }                                                                                                                                   \
  static_assert(sizeof(sm90::Shared<DIM>) + 1024 <= 227 * 1024, "shared memory of a thread block");
