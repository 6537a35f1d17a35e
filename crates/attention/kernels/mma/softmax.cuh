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
  float max[2], sum[2];
  float correction[2];  // a member, not a result: ptxas needs fewer registers so

  // Before a first tile, whose maxima must be finite.
  __device__ __forceinline__ void begin() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
  }
  // The largest of the scores that this thread holds of its row r, in four chains of comparisons: in one each would wait for the last.
  __device__ __forceinline__ float largest(const float (&s)[Scores], int r) const {
    float chain[4];
#pragma unroll
    for (int i = 0; i < Scores / 2; i++) {
      const float x = s[i / 2 * 4 + 2 * r + i % 2];
      chain[i % 4] = i < 4 ? x : fmaxf(chain[i % 4], x);
    }
    return fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
  }
  // Whether they ask for row r's maximum to be raised; a warp raises together. Each thread judges its own scores: the maximum of a row, which
  // four threads share, is needed only then.
  __device__ __forceinline__ bool outgrown(float largest, int r) const { return largest > max[r] + kSlack / scale_log2; }
  // Raises it. Returns what the output of row r summed so far must be multiplied by.
  __device__ __forceinline__ float raise(float largest, int r) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    largest = fmaxf(largest, max[r]);
    const float factor = ptx::exp2_approx((max[r] - largest) * scale_log2);
    max[r] = largest;
    sum[r] *= factor;
    return factor;
  }
  // Both rows. Returns whether the output must be multiplied by `correction`.
  __device__ __forceinline__ bool raise(const float (&s)[Scores]) {
    const float top[2] = {largest(s, 0), largest(s, 1)};
    if (!__any_sync(~0u, outgrown(top[0], 0) || outgrown(top[1], 1))) return false;
    correction[0] = raise(top[0], 0);
    correction[1] = raise(top[1], 1);
    return true;
  }
  // Scores to weights, packed as operands of the next product, and their sums. Packing goes with the exponentials, whose unit takes eight
  // cycles for each: all else is done in between.
  template <typename Element>
  __device__ __forceinline__ void weigh(const float (&s)[Scores], uint32_t (&weights)[Scores / 8][4]) {
    float odd[2] = {0.f, 0.f};  // two chains of sums
#pragma unroll
    for (int i = 0; i < Scores / 2; i++) weigh_pair<Element>(s, i, odd[i & 1], weights);
    sum[0] += odd[0];
    sum[1] += odd[1];
  }
  // Those of row r alone.
  template <typename Element>
  __device__ __forceinline__ void weigh_row(const float (&s)[Scores], int r, uint32_t (&weights)[Scores / 8][4]) {
    float odd = 0.f;
#pragma unroll
    for (int i = r; i < Scores / 2; i += 2) weigh_pair<Element>(s, i, odd, weights);
    sum[r] += odd;
  }
  // The pair of scores i, of row i % 2.
  template <typename Element>
  __device__ __forceinline__ void weigh_pair(const float (&s)[Scores], int i, float& odd, uint32_t (&weights)[Scores / 8][4]) {
    const float shift = max[i & 1] * scale_log2;
    const float a = ptx::exp2_approx(fmaf(s[2 * i], scale_log2, -shift));
    const float b = ptx::exp2_approx(fmaf(s[2 * i + 1], scale_log2, -shift));
    sum[i & 1] += a;
    odd += b;
    weights[i / 4][i % 4] = mma::pack<Element>(a, b);
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
