// Hopper's warpgroup matrix product, D[64][N] += A[64][16] B[16][N], f32 accumulators; and what surrounds it.
//
// Accumulator layout: thread t of the warpgroup holds in d[4*i + 2*r + c] the element of row 16*(t/32) + (t%32)/4 + 8*r and column
// 8*i + 2*(t%4) + c. Packed in pairs, the accumulators of 16 columns are the A operand of a following product.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mma/operand.cuh"

namespace mma {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `Pending` committed groups are in flight.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across this point: products write them behind its back.
template <int Count>
__device__ __forceinline__ void keep(float (&values)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) asm volatile("" : "+f"(values[i])::"memory");
}

// shared_shared: A and B from shared memory, both with the summed dimension contiguous; D is overwritten unless `accumulate`.
// registers_shared: A from registers, B from shared memory with N contiguous; D accumulates.
template <typename T, int N>
struct Wgmma;

#define D64_NAMES \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define D64_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
  "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
  "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), \
  "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define D96_NAMES \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define D96_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
  "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
  "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), \
  "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), \
  "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
  "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define D128_NAMES \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define D128_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
  "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
  "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), \
  "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), \
  "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
  "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), \
  "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), \
  "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

#define SPEEDREAD_WGMMA(TYPE, NAME, N, A0, A1, A2, A3, A4)                                                                     \
  template <>                                                                                                                  \
  struct Wgmma<TYPE, N> {                                                                                                      \
    static __device__ __forceinline__ void shared_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {          \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " A2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME   \
                   " {" D##N##_NAMES "}, " A0 ", " A1 ", p, 1, 1, 0, 0; }"                                                     \
                   : D##N##_OPERANDS                                                                                           \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                         \
    }                                                                                                                          \
    static __device__ __forceinline__ void registers_shared(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {           \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" D##N##_NAMES "}, {" A0 ", " A1 ", "    \
                   A2 ", " A3 "}, " A4 ", 1, 1, 1, 1;"                                                                         \
                   : D##N##_OPERANDS                                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                      \
    }                                                                                                                          \
  };
#define SPEEDREAD_WGMMA_TYPE(TYPE, NAME)                                     \
  SPEEDREAD_WGMMA(TYPE, NAME, 64, "%32", "%33", "%34", "%35", "%36")         \
  SPEEDREAD_WGMMA(TYPE, NAME, 96, "%48", "%49", "%50", "%51", "%52")         \
  SPEEDREAD_WGMMA(TYPE, NAME, 128, "%64", "%65", "%66", "%67", "%68")

SPEEDREAD_WGMMA_TYPE(__nv_bfloat16, "bf16")
SPEEDREAD_WGMMA_TYPE(__half, "f16")

#undef SPEEDREAD_WGMMA_TYPE
#undef SPEEDREAD_WGMMA
#undef D64_NAMES
#undef D64_OPERANDS
#undef D96_NAMES
#undef D96_OPERANDS
#undef D128_NAMES
#undef D128_OPERANDS

}  // namespace mma
