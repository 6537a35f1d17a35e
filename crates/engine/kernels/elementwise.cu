// Operations without neighbours: embedding rows, SwiGLU, addition, moving heads between paddings. Sizes are multiples of eight elements.
#include "overlap.cuh"
#include "vector.cuh"

// out[i] = table[ids[i]]; a thread block a row.
extern "C" __global__ void __launch_bounds__(256)
embed(const __nv_bfloat16* table, const uint32_t* ids, float* out, int64_t columns) {
  overlap();
  const __nv_bfloat16* from = table + ids[blockIdx.x] * columns;
  float* to = out + blockIdx.x * columns;
  for (int64_t i = threadIdx.x * 8; i < columns; i += blockDim.x * 8) store8(to + i, load8(from + i));
}

// gate = silu(gate) * up
extern "C" __global__ void __launch_bounds__(256) swiglu(__nv_bfloat16* gate, const __nv_bfloat16* up, int64_t count) {
  overlap();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * 8;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8; i < count; i += step) {
    Eight g = load8(gate + i);
    const Eight u = load8(up + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) g.v[j] = g.v[j] / (1.0f + __expf(-g.v[j])) * u.v[j];
    store8(gate + i, g);
  }
}

// x += y
extern "C" __global__ void __launch_bounds__(256) add(float* x, const __nv_bfloat16* y, int64_t count) {
  overlap();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * 8;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8; i < count; i += step) {
    Eight sum = load8(x + i);
    const Eight more = load8(y + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.v[j] += more.v[j];
    store8(x + i, sum);
  }
}

// Runs of `from_dim` elements to runs of `to_dim`: cut, or filled up with zeros.
extern "C" __global__ void __launch_bounds__(256)
repack(const __nv_bfloat16* from, __nv_bfloat16* to, int64_t runs, int32_t from_dim, int32_t to_dim) {
  overlap();
  const int64_t chunks = to_dim / 8, count = runs * chunks, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t run = i / chunks, at = i % chunks * 8;
    const uint4* source = reinterpret_cast<const uint4*>(from + run * from_dim + at);
    *reinterpret_cast<uint4*>(to + run * to_dim + at) = at < from_dim ? *source : make_uint4(0, 0, 0, 0);
  }
}
