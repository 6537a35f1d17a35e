// Hopper's warpgroup product, done when it is issued. Operands come through their descriptors: address, strides and the 128-byte swizzle are
// taken apart as the PTX manual says, so that a wrong descriptor gives wrong products here too.
#pragma once
#include "mma/element.cuh"
#include "mma/operand.cuh"

namespace mma {

// The lanes of a warp go through these together (`.sync.aligned`): none is still waiting for a tile that another has released.
inline void wgmma_fence() { emulator::warp_barrier(~0u); }
inline void wgmma_commit() { emulator::warp_barrier(~0u); }
template <int Pending>
inline void wgmma_wait() {
  emulator::warp_barrier(~0u);
}
template <int Count>
inline void keep(float (&)[Count]) {}

// An operand as its descriptor names it.
struct Named {
  uint32_t address, leading, stride;

  explicit Named(uint64_t descriptor)
      : address((descriptor & 0x3FFF) << 4), leading((descriptor >> 16 & 0x3FFF) << 4), stride((descriptor >> 32 & 0x3FFF) << 4) {
    if (descriptor >> 62 != 1) emulator::fail("a matrix descriptor without the 128-byte swizzle");
  }
  // `count` elements that lie within 16 bytes.
  template <typename T>
  void read(uint32_t offset, int count, float* to) const {
    const uint32_t place = address + offset;
    const auto* from = static_cast<const T*>(emulator::shared_pointer(place ^ (place >> 7 & 7) << 4));
    for (int i = 0; i < count; i++) to[i] = from[i];
  }
  // The summed dimension contiguous: rows of 128 bytes, `stride` from 8 rows to the next 8. The 16 elements of a row.
  template <typename T>
  void summed(int row, float (&to)[16]) const {
    for (int half = 0; half < 2; half++) read<T>(row / 8 * stride + row % 8 * 128 + half * 16, 8, to + 8 * half);
  }
  // The other dimension contiguous: 64 of it in 128 bytes, `leading` from 64 to the next 64; `stride` from 8 of the summed to the next 8.
  // The elements n and n + 1 of summed place k.
  template <typename T>
  void transposed(int n, int k, float (&to)[2]) const {
    read<T>(n / 64 * leading + n % 64 * sizeof(T) + k / 8 * stride + k % 8 * 128, 2, to);
  }
};

template <typename T, int N>
struct Wgmma {
  static int row(int r) { return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + emulator::lane() / 4 + 8 * r; }

  static void shared_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    const Named left(a), right(b);
    float of_a[2][16], of_b[16];
    for (int r = 0; r < 2; r++) left.summed<T>(row(r), of_a[r]);
    for (int i = 0; i < N / 8; i++)
      for (int c = 0; c < 2; c++) {
        right.summed<T>(8 * i + emulator::lane() % 4 * 2 + c, of_b);
        for (int r = 0; r < 2; r++) {
          float& sum = d[4 * i + 2 * r + c];
          if (!accumulate) sum = 0;
          for (int k = 0; k < 16; k++) sum += of_a[r][k] * of_b[k];
        }
      }
  }

  static void registers_shared(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    const Named right(b);
    struct Part { uint32_t words[4]; };
    exchange(~0u, Part{{a[0], a[1], a[2], a[3]}}, [&](auto of) {
      float of_a[2][16], of_b[2];
      for (int r = 0; r < 2; r++)
        for (int k = 0; k < 16; k++) of_a[r][k] = unpack<T>(of(emulator::lane() / 4 * 4 + k % 8 / 2).words[r + 2 * (k / 8)], k % 2);
      for (int i = 0; i < N / 8; i++)
        for (int k = 0; k < 16; k++) {
          right.transposed<T>(8 * i + emulator::lane() % 4 * 2, k, of_b);
          for (int r = 0; r < 2; r++)
            for (int c = 0; c < 2; c++) d[4 * i + 2 * r + c] += of_a[r][k] * of_b[c];
        }
      return 0;
    });
  }
};

}  // namespace mma
