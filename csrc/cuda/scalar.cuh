#pragma once
// Scalars of the kernels: the cell's functions for math/lstm_cell.h, and bfloat16.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace townlet::cuda {

struct Scalar {
  // to about 2 ulp, with no subroutine for the division; exp(-x) = inf gives 0
  __device__ static float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
  __device__ static float tanh(float x) { return tanhf(x); }
};

struct Bf16 {
  uint16_t bits;
};

// to nearest, ties to even; a NaN stays one
__device__ inline Bf16 to_bf16(float v) {
  uint32_t u;
  memcpy(&u, &v, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t(u >> 16 | 0x40u)};
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

// An element of w_hh as the number that products use, and a left operand as they use it.
__device__ inline float value_of(float v) { return v; }
__device__ inline float value_of(Bf16 v) {
  const uint32_t u = uint32_t(v.bits) << 16;
  float out;
  memcpy(&out, &u, sizeof out);
  return out;
}
template <class Element>
__device__ inline float operand(float v);
template <>
__device__ inline float operand<float>(float v) {
  return v;
}
template <>
__device__ inline float operand<Bf16>(float v) {
  return value_of(to_bf16(v));
}

}  // namespace townlet::cuda
