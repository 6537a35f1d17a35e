// Causal attention of a prompt over a sparse index, for every chip from compute capability 8.0 on.
//
// A thread block takes query tiles (128 rows of one head) from a queue until it is empty; each of its 4 warps has 32 rows. A key tile is
// taken in two steps of 64 keys: S = Q K^T, softmax, O += P V, with all accumulators in registers. K and V go through a ring of three
// slots in shared memory: while a step computes on one, the copies of the next two are under way. Blocks share a multiprocessor, so that
// one's softmax runs under the other's products (FlashAttention-2, arXiv 2307.08691).
#pragma once
#include "key_tiles.cuh"
#include "mma/mask.cuh"
#include "mma/softmax.cuh"
#include "mma/warp.cuh"
#include "portable/output.cuh"
#include "portable/tensor.cuh"
#include "portable/tiles.cuh"
#include "ptx/shared.cuh"
#include "ptx/thread.cuh"
#include "work.cuh"

namespace portable {

// The mirror of `Tensors` in `src/cuda/kernels.rs`.
template <typename Element>
struct Tensors {
  Tensor<const Element> q, k, v;
  const Element *columns_k, *columns_v;  // [tiles][128][dim]
  Tensor<Element> out;
};

// Each thread block starts with the item of its own number; the counter says how many more were taken.
__device__ __forceinline__ int next_number(const AttentionParams& p) { return gridDim.x + atomicAdd(p.counter, 1); }

// Takes work from item `number` on; empty places of the queue are passed over.
__device__ __forceinline__ void take(Item& to, const AttentionParams& p, int number) {
  to.steps = 0;
  for (; number < p.item_count; number = next_number(p)) {
    const WorkItem* item = p.items + number;
    const int head = __ldg(&item->head), row = __ldg(&item->row), spans = __ldg(&item->spans);
    if (spans == 0) continue;
    to = {key_tiles(p, item, row, spans), 0, head, head / p.group, row, 2 * (spans + __ldg(&item->column_tiles))};
    return;
  }
}

// Starts the copy of half a key tile of K or V.
template <typename Element, int Dim>
__device__ __forceinline__ void load_keys(uint32_t to, const Tensor<const Element>& x, const Element* columns, const KeyTile& tile, int half,
                                          int kv_head, int keys) {
  const bool gathered = tile.gathered;
  const Element* from = gathered ? columns : x.data + kv_head * x.head_stride;
  Tiles<Dim>::template load<Tiles<Dim>::kKeys>(to, from, gathered ? Dim : x.row_stride, tile.first_key + half * Tiles<Dim>::kKeys,
                                               gathered ? INT32_MAX : keys, threadIdx.x);
}

// S = Q K^T of a warp's rows. `q` and `k` are where this lane's row of the first matrices begins.
template <typename Element, int Dim>
__device__ __forceinline__ void score(float (&scores)[Tiles<Dim>::kBlocks][Tiles<Dim>::kKeys / 2], uint32_t q, uint32_t k) {
  using T = Tiles<Dim>;
#pragma unroll
  for (int b = 0; b < T::kBlocks; b++)
#pragma unroll
    for (int i = 0; i < T::kKeys / 2; i++) scores[b][i] = 0.f;
#pragma unroll
  for (int d = 0; d < Dim / 16; d++) {
    uint32_t queries[T::kBlocks][4];
#pragma unroll
    for (int b = 0; b < T::kBlocks; b++) mma::load_matrices(queries[b], T::along(q, 2 * d) + b * 16 * T::kRowBytes);
#pragma unroll
    for (int n = 0; n < T::kKeys / 16; n++) {
      uint32_t keys[4];
      mma::load_matrices(keys, T::along(k, 2 * d) + n * 16 * T::kRowBytes);
#pragma unroll
      for (int b = 0; b < T::kBlocks; b++) {
        mma::multiply<Element>(scores[b] + 8 * n, queries[b], keys[0], keys[1]);
        mma::multiply<Element>(scores[b] + 8 * n + 4, queries[b], keys[2], keys[3]);
      }
    }
  }
}

// O += P V of a warp's rows.
template <typename Element, int Dim>
__device__ __forceinline__ void accumulate(float (&out)[Tiles<Dim>::kBlocks][Dim / 2],
                                           const uint32_t (&weights)[Tiles<Dim>::kBlocks][Tiles<Dim>::kKeys / 16][4], uint32_t v) {
  using T = Tiles<Dim>;
#pragma unroll
  for (int n = 0; n < T::kKeys / 16; n++)
#pragma unroll
    for (int d = 0; d < Dim / 16; d++) {
      uint32_t values[4];
      mma::load_matrices_transposed(values, T::along(v, 2 * d) + n * 16 * T::kRowBytes);
#pragma unroll
      for (int b = 0; b < T::kBlocks; b++) {
        mma::multiply<Element>(out[b] + 8 * d, weights[b][n], values[0], values[1]);
        mma::multiply<Element>(out[b] + 8 * d + 4, weights[b][n], values[2], values[3]);
      }
    }
}

template <typename Element, int Dim>
__device__ __forceinline__ void attention(const Tensors<Element>& x, const AttentionParams& p) {
  using T = Tiles<Dim>;
  constexpr int kScores = T::kKeys / 2;  // a thread and block of rows
  extern __shared__ __align__(128) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared<Dim>*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t q_tile = ptx::shared_address(s.q), ring = ptx::shared_address(s.ring);
  // Where this lane's row of the first matrices begins: of Q, of K by rows, and of V, which is transposed on the way.
  const uint32_t q_lane = q_tile + T::place(warp * T::kWarpRows + lane % 16, lane / 16);
  const uint32_t k_lane = ring + T::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const uint32_t v_lane = ring + T::place(lane % 16, lane / 16);
  const int keys = p.start + p.rows;
  auto after = [](uint32_t slot) { return slot == T::kRing - T::kBytesK ? 0 : slot + T::kBytesK; };
  auto load_k = [&](uint32_t slot, const KeyTile& tile, int half) {
    load_keys<Element, Dim>(ring + slot, x.k, x.columns_k, tile, half, s.item.kv_head, keys);
  };
  auto load_v = [&](uint32_t slot, const KeyTile& tile, int half) {
    load_keys<Element, Dim>(ring + slot, x.v, x.columns_v, tile, half, s.item.kv_head, keys);
  };

  for (int number = blockIdx.x;; number = threadIdx.x == 0 ? next_number(p) : 0) {
    __syncthreads();  // what the last item left in shared memory is no longer needed
    if (threadIdx.x == 0) {
      take(s.item, p, number);
      if (s.item.steps != 0) s.tiles[0] = s.item.list.next(s.item.at);
    }
    __syncthreads();
    const int row = s.item.row;
    if (s.item.steps == 0) return;

    uint32_t slot = 0;  // of K; V is in the slot after
    T::template load<T::kQueries>(q_tile, x.q.data + s.item.head * x.q.head_stride, x.q.row_stride, row, p.rows, threadIdx.x);
    load_k(slot, s.tiles[0], 0);
    ptx::copy_async_commit();
    load_v(after(slot), s.tiles[0], 0);
    ptx::copy_async_commit();

    float out[T::kBlocks][Dim / 2];
    mma::OnlineSoftmax<kScores> softmax[T::kBlocks];
#pragma unroll
    for (int b = 0; b < T::kBlocks; b++) {
      softmax[b].scale_log2 = p.scale_log2;
      softmax[b].begin();
#pragma unroll
      for (int i = 0; i < Dim / 2; i++) out[b][i] = 0.f;
    }

#pragma unroll 1
    for (int i = 0; i < s.item.steps; i++) {
      const uint32_t v_slot = after(slot), free_slot = after(v_slot);
      ptx::copy_async_wait<1>();
      __syncthreads();  // everybody's part of K has come, and the last step's V is no longer needed
      if (i + 1 < s.item.steps) load_k(free_slot, s.tiles[(i + 1) / 2 % 2], (i + 1) % 2);
      ptx::copy_async_commit();
      // The next tile, for the step after this one. Of the tile whose place it takes the last step is over.
      if (threadIdx.x == 0 && i % 2 == 0 && i + 2 < s.item.steps) s.tiles[(i / 2 + 1) % 2] = s.item.list.next(s.item.at);

      float scores[T::kBlocks][kScores];
      score<Element, Dim>(scores, q_lane, k_lane + slot);

      const KeyTile& tile = s.tiles[i / 2 % 2];
      const int first_key = tile.first_key + i % 2 * T::kKeys, position = p.start + row + warp * T::kWarpRows;
      uint32_t weights[T::kBlocks][T::kKeys / 16][4];
#pragma unroll
      for (int b = 0; b < T::kBlocks; b++) {
        if (tile.gathered) {
          const uint32_t live[2] = {tile.mask[i % 2 * 2], tile.mask[i % 2 * 2 + 1]};
          if ((live[0] & live[1]) != ~0u) mma::mask_columns(scores[b], live, lane);
        } else if (first_key + T::kKeys - 1 > position + 16 * b || first_key < 0) {
          mma::mask_causal(scores[b], first_key, position + 16 * b + lane / 4, lane);
        }
        if (softmax[b].raise(scores[b])) {
#pragma unroll
          for (int e = 0; e < Dim / 2; e++) out[b][e] *= softmax[b].correction[e >> 1 & 1];
        }
        softmax[b].template weigh<Element>(scores[b], weights[b]);
      }

      ptx::copy_async_wait<1>();
      __syncthreads();  // everybody's part of V has come, this step's K is no longer needed, and the next tile is known
      if (i + 1 < s.item.steps) load_v(slot, s.tiles[(i + 1) / 2 % 2], (i + 1) % 2);
      ptx::copy_async_commit();
      accumulate<Element, Dim>(out, weights, v_lane + v_slot);
      slot = free_slot;
    }

    // Asked for again, so that no address is computed before the loops and kept through them: the accumulators need the registers.
    const int thread = ptx::thread(), last_lane = thread % 32, warp_row = thread / 32 * T::kWarpRows;
#pragma unroll
    for (int b = 0; b < T::kBlocks; b++) {
      softmax[b].finish();
      const int thread_row = warp_row + 16 * b + last_lane / 4;
      if (p.lse != nullptr && last_lane % 4 == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int at = row + thread_row + 8 * r;
          if (at < p.rows) p.lse[static_cast<int64_t>(s.item.head) * p.rows + at] = softmax[b].log_sum_exp(r);
        }
      }
      stage<Element, Dim>(s.q, out[b], softmax[b].sum, thread_row, last_lane);
    }
    __syncwarp();
    store<Element, Dim>(s.q, x.out.data + s.item.head * x.out.head_stride, x.out.row_stride, warp_row, row, p.rows, last_lane);
  }
}

}  // namespace portable

// A kernel of one element type and head dim.
#define SPEEDREAD_ATTENTION(NAME, ELEMENT, DIM)                                                                                   \
  extern "C" __global__ void __launch_bounds__(portable::Tiles<DIM>::kThreads, portable::Tiles<DIM>::kMinBlocks)                  \
      NAME##_d##DIM(const __grid_constant__ portable::Tensors<ELEMENT> tensors, const __grid_constant__ AttentionParams params) { \
    portable::attention<ELEMENT, DIM>(tensors, params);                                                                           \
  }                                                                                                                               \
  static_assert(sizeof(portable::Shared<DIM>) == 640 * DIM + 128, "the host's size");
