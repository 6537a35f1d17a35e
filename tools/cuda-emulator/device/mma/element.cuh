#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace mma {

template <typename T>
inline uint32_t pack(float low, float high) {
  return bits_as<uint16_t>(T(low)) | static_cast<uint32_t>(bits_as<uint16_t>(T(high))) << 16;
}

// Half of a packed pair.
template <typename T>
inline float unpack(uint32_t both, int half) {
  return bits_as<T>(static_cast<uint16_t>(both >> (16 * half)));
}

}  // namespace mma
