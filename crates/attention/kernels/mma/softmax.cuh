// Online softmax over score accumulators: each thread holds two rows, scores 4 i + 2 r + e are columns 8 i + 2 (lane % 4) + e of its row r.
#pragma once
#include "mma/element.cuh"
#include "ptx/math.cuh"

namespace mma {

template <int Scores>
struct OnlineSoftmax {
  // A row's maximum is raised only when a new one exceeds it by this much (in powers of two): until then weights may reach 2^8, which
  // f32 sums and 16-bit products hold as well, and the output need not be rescaled. Exact otherwise: sums use the same maximum.
  static constexpr float kSlack = 8.f;

  float scale_log2;
  float max[2], sum[2], correction[2];

  // Before a first tile, whose maxima must be finite.
  __device__ __forceinline__ void begin() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
  }
  // Raises the maxima where these scores demand it. Returns whether what has been summed so far must be multiplied by `correction`; the same
  // for all lanes of a warp.
  __device__ __forceinline__ bool raise(const float (&s)[Scores]) {
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      constexpr int kChains = 4;  // of comparisons: in one alone each would wait for the last
      float chain[kChains];
#pragma unroll
      for (int i = 0; i < Scores / 2; i++) {
        const float x = s[i / 2 * 4 + 2 * r + i % 2];
        chain[i % kChains] = i < kChains ? x : fmaxf(chain[i % kChains], x);
      }
      top[r] = fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
    }
    // Each thread judges its own scores: the maximum of a row, which four threads share, is needed only where it is raised.
    const float slack = kSlack / scale_log2;
    if (!__any_sync(~0u, top[0] > max[0] + slack || top[1] > max[1] + slack)) return false;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      top[r] = fmaxf(top[r], max[r]);
      correction[r] = ptx::exp2_approx((max[r] - top[r]) * scale_log2);
      max[r] = top[r];
      sum[r] *= correction[r];
    }
    return true;
  }
  // Scores to weights, packed as operands of the next product, and their sums. Packing goes with the exponentials, whose unit takes eight
  // cycles for each: all else is done in between.
  template <typename Element>
  __device__ __forceinline__ void weigh(const float (&s)[Scores], uint32_t (&weights)[Scores / 8][4]) {
    const float shift[2] = {max[0] * scale_log2, max[1] * scale_log2};
    float odd[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < Scores / 2; i++) {
      const int r = i & 1;
      const float a = ptx::exp2_approx(fmaf(s[2 * i], scale_log2, -shift[r]));
      const float b = ptx::exp2_approx(fmaf(s[2 * i + 1], scale_log2, -shift[r]));
      sum[r] += a;
      odd[r] += b;
      weights[i / 4][i % 4] = mma::pack<Element>(a, b);
    }
    sum[0] += odd[0];
    sum[1] += odd[1];
  }

  // Has every weight computed here, by a use of the sums that the assembler cannot move: it would otherwise put the exponentials behind the
  // next wait, and nothing would run under the product waited for. Sums are never negative.
  __device__ __forceinline__ void complete() const {
    ptx::have_now(fminf(sum[0], sum[1]));
  }

  // Adds up the four threads that share a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
  }
  // Natural log-sum-exp of row r, after `finish`.
  __device__ __forceinline__ float log_sum_exp(int r) const { return (max[r] * scale_log2 + __log2f(sum[r])) * 0.69314718f; }
};

}  // namespace mma
