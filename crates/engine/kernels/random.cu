// Weights of models that are only timed: each element is a hash of its number, so that any part of it can be made anywhere.
#include "vector.cuh"

// The mirror of `synthetic::value` on the host, bit for bit.
extern "C" __global__ void __launch_bounds__(256) random_weights(__nv_bfloat16* out, int64_t count, uint64_t seed, float range) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    // SplitMix64.
    uint64_t x = (static_cast<uint64_t>(i) + seed) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    // 24 bits to -1 .. 1: exact in a float.
    const float unit = static_cast<float>(static_cast<uint32_t>(x >> 40)) * 0x1p-23f - 1.0f;
    out[i] = __float2bfloat16_rn(unit * range);
  }
}
