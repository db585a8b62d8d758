#pragma once
// A warp's matrix product of the resident kernels: acc[16 M rows][32 columns] += a[rows][K] w[K][columns].
//
// Both operands lie in shared memory.  K is cut into chunks of kChunk values that a lane reads with one 16-byte load:
//   a  [row][K], rows `stride` values apart
//   w  [chunk][column][kChunk]
// A lane ends up with 4 M cells of each of four groups of 8 columns, at the same rows and columns in every group: with
// a gate to each group it holds all four gates of its cells, so that the product never leaves the registers.
//
// Fma keeps floats and uses fused multiply-adds.  Mma keeps bfloat16 and uses tensor cores, sums in float.

#include <cuda_runtime.h>

#include <cstdint>

#include "scalar.cuh"

namespace townlet::cuda {

__device__ inline uint32_t to_bf16x2(float low, float high) {
  return uint32_t(to_bf16(low).bits) | uint32_t(to_bf16(high).bits) << 16;
}

// d (16x8) += a (16x16) b (16x8), operands bfloat16, by all lanes of a warp
__device__ inline void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1) {
#if defined(TOWNLET_EMU)
  const uint32_t a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
  emu::mma_bf16(d, a, b);
#elif defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

struct Fma {
  using Element = float;
  static constexpr int kChunk = 4;
  __device__ static float element(float v) { return v; }
  __device__ static int row(int lane, int j) { return lane / 8 + 4 * j; }
  __device__ static int column(int lane, int) { return lane % 8; }

  template <int M, int kAhead>  // kAhead: chunks whose loads may be under way together
  __device__ static void product(const float* a, int stride, const float* w, int chunks, int lane,
                                 float (&acc)[4][4 * M]) {
    a += row(lane, 0) * stride;
    w += column(lane, 0) * kChunk;
#pragma unroll kAhead
    for (int k = 0; k < chunks; ++k) {
      float4 x[4 * M];
#pragma unroll
      for (int j = 0; j < 4 * M; ++j) x[j] = *reinterpret_cast<const float4*>(a + 4 * j * stride + k * kChunk);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float4 v = *reinterpret_cast<const float4*>(w + (k * 32 + n * 8) * kChunk);
#pragma unroll
        for (int j = 0; j < 4 * M; ++j) {
          acc[n][j] += x[j].x * v.x;
          acc[n][j] += x[j].y * v.y;
          acc[n][j] += x[j].z * v.z;
          acc[n][j] += x[j].w * v.w;
        }
      }
    }
  }

  // a lane's cells of 8 columns into rows `stride` values apart
  template <int M>
  __device__ static void put(float* to, int stride, int lane, const float (&v)[4 * M]) {
#pragma unroll
    for (int j = 0; j < 4 * M; ++j) to[row(lane, j) * stride + column(lane, j)] = v[j];
  }
  template <int M>
  __device__ static void put_floats(float* to, int stride, int lane, const float (&v)[4 * M]) {
    put<M>(to, stride, lane, v);
  }
};

struct Mma {
  using Element = Bf16;
  static constexpr int kChunk = 32;  // the K of two mma: a lane's 8 values of them are neighbours in memory, in a and w
  __device__ static Bf16 element(float v) { return to_bf16(v); }
  __device__ static int row(int lane, int j) { return lane / 4 + 8 * (j / 2); }
  __device__ static int column(int lane, int j) { return 2 * (lane % 4) + j % 2; }

  template <int M, int kAhead>
  __device__ static void product(const Bf16* a, int stride, const Bf16* w, int chunks, int lane,
                                 float (&acc)[4][4 * M]) {
    a += row(lane, 0) * stride + 8 * (lane % 4);
    w += 8 * lane;
#pragma unroll kAhead
    for (int k = 0; k < chunks; ++k) {
      uint4 x[2 * M];
#pragma unroll
      for (int m = 0; m < 2 * M; ++m) x[m] = *reinterpret_cast<const uint4*>(a + 8 * m * stride + k * kChunk);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint4 v = *reinterpret_cast<const uint4*>(w + (k * 32 + n * 8) * kChunk);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const uint4 top = x[2 * m], low = x[2 * m + 1];
          mma_bf16(acc[n] + 4 * m, top.x, low.x, top.y, low.y, v.x, v.y);
          mma_bf16(acc[n] + 4 * m, top.z, low.z, top.w, low.w, v.z, v.w);
        }
      }
    }
  }

  template <int M>
  __device__ static void put(Bf16* to, int stride, int lane, const float (&v)[4 * M]) {
#pragma unroll
    for (int j = 0; j < 4 * M; j += 2)
      *reinterpret_cast<uint32_t*>(to + row(lane, j) * stride + column(lane, j)) = to_bf16x2(v[j], v[j + 1]);
  }
  template <int M>
  __device__ static void put_floats(float* to, int stride, int lane, const float (&v)[4 * M]) {
#pragma unroll
    for (int j = 0; j < 4 * M; j += 2)
      *reinterpret_cast<float2*>(to + row(lane, j) * stride + column(lane, j)) = float2{v[j], v[j + 1]};
  }
};

}  // namespace townlet::cuda
