// Products of one row, which only read weights: a decode step. A library made for tiles reads them no faster than this.
#include "overlap.cuh"
#include "vector.cuh"

constexpr int kMatrices = 3;

struct Matrix {
  const __nv_bfloat16* weight;  // [outputs][inputs]
  const float* bias;            // [outputs], or null
  void* out;                    // [outputs]
  int64_t outputs;
};

// Up to three matrices, the others without outputs.
struct MatvecParams {
  const __nv_bfloat16* x;  // [inputs], a multiple of eight
  Matrix matrices[kMatrices];
  int64_t inputs;
  int32_t accumulate;
};

constexpr int kThreads = 256;
// Outputs of a warp: each piece of x is used that often, and as many loads are on their way.
constexpr int kOutputs = 2;
constexpr int kBlockOutputs = kThreads / 32 * kOutputs;
// Elements that a warp takes of a row at a time, and how many times ahead it loads.
constexpr int kStep = 32 * 8;
constexpr int kAhead = 4;

__device__ __forceinline__ float read(const float* x) { return *x; }
__device__ __forceinline__ float read(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ __forceinline__ void write(float* to, float x) { *to = x; }
__device__ __forceinline__ void write(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// The matrix of the thread block, and in `block` its place among the blocks of that.
__device__ __forceinline__ Matrix matrix_of(const MatvecParams& p, int64_t& block) {
  Matrix m = p.matrices[0];
#pragma unroll
  for (int i = 1; i < kMatrices; ++i) {
    const int64_t blocks = (m.outputs + kBlockOutputs - 1) / kBlockOutputs;
    if (block < blocks) break;
    block -= blocks;
    m = p.matrices[i];
  }
  return m;
}

template <typename Out>
__device__ __forceinline__ void matvec(const MatvecParams& p) {
  let_next_start();
  int64_t block = blockIdx.x;
  const Matrix m = matrix_of(p, block);
  const int64_t first = block * kBlockOutputs + threadIdx.x / 32 * kOutputs;
  if (first >= m.outputs) return;
  const int lane = threadIdx.x % 32;
  const __nv_bfloat16* rows[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) rows[j] = m.weight + min(first + j, m.outputs - 1) * p.inputs + lane * 8;
  const int64_t inputs = p.inputs - lane * 8;  // from this lane's first on

  uint4 ahead[kAhead][kOutputs];
  const auto load = [&](int slot, int64_t i) {
    if (i >= inputs) return;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) ahead[slot][j] = *reinterpret_cast<const uint4*>(rows[j] + i);
  };
#pragma unroll
  for (int u = 0; u < kAhead; ++u) load(u, u * kStep);
  wait_for_previous();

  float sums[kOutputs] = {};
  for (int64_t i = 0; i < inputs; i += kAhead * kStep) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t at = i + u * kStep;
      if (at >= inputs) break;
      const Eight x = load8(p.x + lane * 8 + at);
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        const Eight w = widen(ahead[u][j]);
#pragma unroll
        for (int n = 0; n < 8; ++n) sums[j] += w.v[n] * x.v[n];
      }
      load(u, at + kAhead * kStep);
    }
  }
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    float sum = warp_sum(sums[j]);
    const int64_t row = first + j;
    if (lane == 0 && row < m.outputs) {
      Out* out = static_cast<Out*>(m.out) + row;
      if (m.bias != nullptr) sum += m.bias[row];
      if (p.accumulate) sum += read(out);
      write(out, sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) matvec_bf16(const __grid_constant__ MatvecParams p) { matvec<__nv_bfloat16>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) matvec_f32(const __grid_constant__ MatvecParams p) { matvec<float>(p); }
