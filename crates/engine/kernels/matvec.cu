// Products of one row, which only read weights: a decode step. A library made for tiles reads them no faster than this.
#include "vector.cuh"

struct MatvecParams {
  const __nv_bfloat16* x;       // [inputs], a multiple of eight
  const __nv_bfloat16* weight;  // [outputs][inputs]
  const float* bias;            // [outputs], or null
  void* out;                    // [outputs]
  int64_t inputs, outputs;
  int32_t accumulate;
};

constexpr int kThreads = 256;
// Outputs of a warp: each piece of x is used that often, and as many loads are on their way.
constexpr int kOutputs = 2;

__device__ __forceinline__ float read(const float* x) { return *x; }
__device__ __forceinline__ float read(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ __forceinline__ void write(float* to, float x) { *to = x; }
__device__ __forceinline__ void write(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

template <typename Out>
__device__ __forceinline__ void matvec(const MatvecParams& p) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kOutputs;
  if (first >= p.outputs) return;
  const int lane = threadIdx.x % 32;
  const __nv_bfloat16* rows[kOutputs];
  float sums[kOutputs] = {};
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) rows[j] = p.weight + min(first + j, p.outputs - 1) * p.inputs;
#pragma unroll 4
  for (int64_t i = lane * 8; i < p.inputs; i += 32 * 8) {
    const Eight x = load8(p.x + i);
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const Eight w = load8(rows[j] + i);
#pragma unroll
      for (int n = 0; n < 8; ++n) sums[j] += w.v[n] * x.v[n];
    }
  }
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    float sum = warp_sum(sums[j]);
    const int64_t row = first + j;
    if (lane == 0 && row < p.outputs) {
      Out* out = static_cast<Out*>(p.out) + row;
      if (p.bias != nullptr) sum += p.bias[row];
      if (p.accumulate) sum += read(out);
      write(out, sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) matvec_bf16(const __grid_constant__ MatvecParams p) { matvec<__nv_bfloat16>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) matvec_f32(const __grid_constant__ MatvecParams p) { matvec<float>(p); }
