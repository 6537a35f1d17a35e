// Hopper's warpgroup product, done when it is issued. Operands come through their descriptors: address, strides and the 128-byte swizzle are
// taken apart as the PTX manual says, so that a wrong descriptor gives wrong products here too.
#pragma once
#include "mma/element.cuh"

namespace mma {

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int Pending>
inline void wgmma_wait() {}
template <int Count>
inline void keep(float (&)[Count]) {}

inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         1ull << 62;
}

struct Operand {
  uint32_t address, leading, stride;

  explicit Operand(uint64_t descriptor)
      : address((descriptor & 0x3FFF) << 4), leading((descriptor >> 16 & 0x3FFF) << 4), stride((descriptor >> 32 & 0x3FFF) << 4) {
    if (descriptor >> 62 != 1) emulator::fail("a matrix descriptor without the 128-byte swizzle");
  }
  template <typename T>
  float at(uint32_t offset) const {
    const uint32_t place = address + offset;
    T x;
    memcpy(&x, emulator::shared_pointer(place ^ (place >> 7 & 7) << 4), sizeof x);
    return x;
  }
  // The summed dimension contiguous: rows of 128 bytes, `stride` from 8 rows to the next 8.
  template <typename T>
  float summed(int row, int k) const {
    return at<T>(row / 8 * stride + row % 8 * 128 + k * sizeof(T));
  }
  // The other dimension contiguous: 64 of it in 128 bytes, `leading` from 64 to the next 64; `stride` from 8 of the summed to the next 8.
  template <typename T>
  float transposed(int n, int k) const {
    return at<T>(n / 64 * leading + n % 64 * sizeof(T) + k / 8 * stride + k % 8 * 128);
  }
};

template <typename T, int N>
struct Wgmma {
  static int row(int r) { return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + emulator::lane() / 4 + 8 * r; }

  static void shared_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    const Operand left(a), right(b);
    for (int r = 0; r < 2; r++) {
      float of_a[16];
      for (int k = 0; k < 16; k++) of_a[k] = left.summed<T>(row(r), k);
      for (int i = 0; i < N / 8; i++)
        for (int c = 0; c < 2; c++) {
          float& sum = d[4 * i + 2 * r + c];
          if (!accumulate) sum = 0;
          const int column = 8 * i + emulator::lane() % 4 * 2 + c;
          for (int k = 0; k < 16; k++) sum += of_a[k] * right.summed<T>(column, k);
        }
    }
  }

  static void registers_shared(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    const Operand right(b);
    struct Part { uint32_t words[4]; };
    exchange(~0u, Part{{a[0], a[1], a[2], a[3]}}, [&](auto of) {
      for (int r = 0; r < 2; r++) {
        float of_a[16];
        for (int k = 0; k < 16; k++)
          of_a[k] = unpack<T>(of(emulator::lane() / 4 * 4 + k % 8 / 2).words[r + 2 * (k / 8)], k % 2);
        for (int i = 0; i < N / 8; i++)
          for (int c = 0; c < 2; c++) {
            const int column = 8 * i + emulator::lane() % 4 * 2 + c;
            for (int k = 0; k < 16; k++) d[4 * i + 2 * r + c] += of_a[k] * right.transposed<T>(column, k);
          }
      }
      return 0;
    });
  }
};

}  // namespace mma
