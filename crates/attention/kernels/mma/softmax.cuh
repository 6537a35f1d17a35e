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

  // For a first tile that is weighed like the others: its maximum must be finite.
  __device__ __forceinline__ void begin() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
  }
  // Turns scores into weights. Returns whether what has been summed so far must be multiplied by `correction`; the same for all
  // lanes of a warp.
  template <bool First>
  __device__ __forceinline__ bool weigh(float (&s)[Scores]) {
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float even = s[2 * r], odd = s[2 * r + 1];  // two chains of comparisons instead of one
#pragma unroll
      for (int i = 1; i < Scores / 4; i++) {
        even = fmaxf(even, s[4 * i + 2 * r]);
        odd = fmaxf(odd, s[4 * i + 2 * r + 1]);
      }
      top[r] = fmaxf(even, odd);
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    }
    bool raised = false;
    if (First) {
      max[0] = top[0];
      max[1] = top[1];
      sum[0] = sum[1] = 0.f;
    } else {
      const float slack = kSlack / scale_log2;
      raised = __any_sync(~0u, top[0] > max[0] + slack || top[1] > max[1] + slack);
      if (raised) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          top[r] = fmaxf(top[r], max[r]);
          correction[r] = ptx::exp2_approx((max[r] - top[r]) * scale_log2);
          max[r] = top[r];
          sum[r] *= correction[r];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float shift = max[r] * scale_log2;
      float even = sum[r], odd = 0.f;
#pragma unroll
      for (int i = 0; i < Scores / 4; i++) {
        float &a = s[4 * i + 2 * r], &b = s[4 * i + 2 * r + 1];
        a = ptx::exp2_approx(fmaf(a, scale_log2, -shift));
        b = ptx::exp2_approx(fmaf(b, scale_log2, -shift));
        even += a;
        odd += b;
      }
      sum[r] = even + odd;
    }
    return raised;
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
