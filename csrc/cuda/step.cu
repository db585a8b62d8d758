// Step one: a launch per time step, for any size.  Both chains of a call advance in the same launch.
//
// A block owns kRows sequences and kUnits hidden units of one member of one chain.  It walks through the inner
// dimension in pieces of kDepth that it stages in shared memory; a thread keeps the sums of kRowsPerThread rows in
// registers, all four gates of a unit, so that the cell is applied where the sums are.  What a step hands to the next
// lies in y and c_final, in the backward pass in gates and dc0: each number is written by the thread that owns it and
// read by the next launch, so that no barrier is needed beside the end of a launch.

#include "../math/lstm_cell.h"
#include "launch.h"
#include "scalar.cuh"
#include "unroll.h"

namespace townlet::cuda {
namespace {

constexpr int kRows = 32, kUnits = 16, kDepth = 32, kRowsPerThread = 4;
constexpr int kThreads = kUnits * kRows / kRowsPerThread;

__device__ bool starts(const bool* reset, int64_t sequence, int64_t T, int64_t t) {
  return reset != nullptr && reset[sequence * T + t];
}

template <class Element>
__global__ void __launch_bounds__(kThreads) forward_step(UnrollForward a, int64_t t) {
  __shared__ float left[kDepth][kRows + 1];  // states, [unit before][row]
  // [unit before][unit] x gates; one more, or the lanes that store a row of w_hh would all meet in one bank
  __shared__ float4 right[kDepth][kUnits + 1];
  const Chain n = blockIdx.z / unsigned(a.P) ? a.chain[1] : a.chain[0];
  const int64_t p = blockIdx.z % unsigned(a.P), H = a.H, T = a.T;
  const int64_t first_row = int64_t(blockIdx.y) * kRows, first_unit = int64_t(blockIdx.x) * kUnits;
  const Element* const w_hh = static_cast<const Element*>(n.w_hh) + p * 4 * H * H;
  const int column = threadIdx.x % kUnits, group = threadIdx.x / kUnits * kRowsPerThread;

  float sum[kRowsPerThread][4] = {};
  for (int64_t k0 = 0; k0 < H; k0 += kDepth) {
    for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
      const int64_t row = first_row + i / kDepth, k = k0 + i % kDepth, sequence = p * a.B + row;
      float h = 0.0f;
      if (row < a.B && k < H && !starts(n.reset, sequence, T, t))
        h = t == 0 ? n.h0[sequence * H + k] : n.y[(sequence * T + t - 1) * H + k];
      left[i % kDepth][i / kDepth] = operand<Element>(h);
    }
    for (int i = threadIdx.x; i < 4 * kUnits * kDepth; i += kThreads) {
      const int64_t k = k0 + i % kDepth;
      const int line = i / kDepth, gate = line / kUnits;  // of w_hh
      const int64_t unit = first_unit + line % kUnits;
      reinterpret_cast<float*>(&right[i % kDepth][line % kUnits])[gate] =
          k < H && unit < H ? value_of(w_hh[(gate * H + unit) * H + k]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const float4 w = right[k][column];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
        const float h = left[k][group + r];
        sum[r][0] += h * w.x;
        sum[r][1] += h * w.y;
        sum[r][2] += h * w.z;
        sum[r][3] += h * w.w;
      }
    }
    __syncthreads();
  }

  const int64_t unit = first_unit + column;
  if (unit >= H) return;
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t row = first_row + group + r, sequence = p * a.B + row, state = sequence * H + unit;
    if (row >= a.B) return;
    const int64_t at = sequence * T + t;
    const float* const gx = n.gx + at * 4 * H + unit;
    const float before = starts(n.reset, sequence, T, t) ? 0.0f : t == 0 ? n.c0[state] : n.c_final[state];
    const CellForward<float> out = lstm_cell_forward<Scalar>(gx[0] + sum[r][0], gx[H] + sum[r][1],
                                                             gx[2 * H] + sum[r][2], gx[3 * H] + sum[r][3], before);
    n.y[at * H + unit] = out.h;
    n.c_final[state] = out.c;
    if (t + 1 == T) n.h_final[state] = out.h;
    if (n.c != nullptr) n.c[at * H + unit] = out.c;
    if (n.gates == nullptr) continue;
    float* const gates = n.gates + at * 4 * H + unit;
    gates[0] = out.i;
    gates[H] = out.f;
    gates[2 * H] = out.g;
    gates[3 * H] = out.o;
  }
}

// Gradients of the pre-activations of step t, from those of step t + 1; with t = burn_in - 1 only dh0 is left to
// compute.
template <class Element>
__global__ void __launch_bounds__(kThreads) backward_step(UnrollBackward a, int64_t t) {
  __shared__ float left[kDepth][kRows + 1];  // gradients of gates, [gate of a unit][row]
  __shared__ float right[kDepth][kUnits];    // [gate of a unit][unit before]
  const int64_t p = blockIdx.z, H = a.H, T = a.T;
  const int64_t first_row = int64_t(blockIdx.y) * kRows, first_unit = int64_t(blockIdx.x) * kUnits;
  const Element* const w_hh = static_cast<const Element*>(a.w_hh) + p * 4 * H * H;
  const int column = threadIdx.x % kUnits, group = threadIdx.x / kUnits * kRowsPerThread;

  float dh[kRowsPerThread] = {};
  for (int64_t k0 = 0; t + 1 < T && k0 < 4 * H; k0 += kDepth) {
    for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
      const int64_t row = first_row + i / kDepth, k = k0 + i % kDepth, sequence = p * a.B + row;
      const bool there = row < a.B && k < 4 * H && !starts(a.reset, sequence, T, t + 1);
      left[i % kDepth][i / kDepth] = operand<Element>(there ? a.gates[(sequence * T + t + 1) * 4 * H + k] : 0.0f);
    }
    for (int i = threadIdx.x; i < kUnits * kDepth; i += kThreads) {
      const int64_t k = k0 + i / kUnits, unit = first_unit + i % kUnits;
      right[i / kUnits][i % kUnits] = k < 4 * H && unit < H ? value_of(w_hh[k * H + unit]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const float w = right[k][column];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) dh[r] += left[k][group + r] * w;
    }
    __syncthreads();
  }

  const int64_t unit = first_unit + column;
  if (unit >= H) return;
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t row = first_row + group + r, sequence = p * a.B + row, state = sequence * H + unit;
    if (row >= a.B) return;
    if (t < a.burn_in) {
      a.dh0[state] = t < 0 ? dh[r] : 0.0f;
      if (t >= 0) a.dc0[state] = 0.0f;
      continue;
    }
    const int64_t at = sequence * T + t;
    float* const gates = a.gates + at * 4 * H + unit;
    const bool fresh = starts(a.reset, sequence, T, t), last = t + 1 == T;
    const float before = fresh ? 0.0f : t == 0 ? a.c0[state] : a.c[(at - 1) * H + unit];
    if (last && a.dh != nullptr) dh[r] += a.dh[state];
    const float dc = !last ? a.dc0[state] : a.dc != nullptr ? a.dc[state] : 0.0f;
    const CellBackward<float> d = lstm_cell_backward<Scalar>(gates[0], gates[H], gates[2 * H], gates[3 * H], before,
                                                             a.c[at * H + unit], a.dy[at * H + unit] + dh[r], dc);
    gates[0] = d.di;
    gates[H] = d.df;
    gates[2 * H] = d.dg;
    gates[3 * H] = d.d_o;
    a.dc0[state] = fresh ? 0.0f : d.dc_prev;
  }
}

// Steps before burn-in's end: no gradient.
__global__ void clear_burn_in(UnrollBackward a) {
  const int64_t count = a.P * a.B * a.burn_in * 4 * a.H, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t steps = a.burn_in * 4 * a.H;
    a.gates[i / steps * a.T * 4 * a.H + i % steps] = 0.0f;
  }
}

dim3 grid_of(int64_t B, int64_t H, int64_t z) {
  return {unsigned((H + kUnits - 1) / kUnits), unsigned((B + kRows - 1) / kRows), unsigned(z)};
}

}  // namespace

int step_forward(const UnrollForward& a, void* stream) {
  const LaunchShape shape{grid_of(a.B, a.H, a.chains * a.P), kThreads};
  cudaError_t error = cudaSuccess;
  for (int64_t t = 0; t < a.T && error == cudaSuccess; ++t)
    error = a.bf16 ? launch(forward_step<Bf16>, shape, stream, a, t) : launch(forward_step<float>, shape, stream, a, t);
  return error;
}

int step_backward(const UnrollBackward& a, void* stream) {
  const LaunchShape shape{grid_of(a.B, a.H, a.P), kThreads};
  cudaError_t error = cudaSuccess;
  for (int64_t t = a.T - 1; t >= a.burn_in - 1 && error == cudaSuccess; --t)
    error =
        a.bf16 ? launch(backward_step<Bf16>, shape, stream, a, t) : launch(backward_step<float>, shape, stream, a, t);
  if (a.burn_in > 0 && error == cudaSuccess) error = launch(clear_burn_in, {dim3(256), dim3(256)}, stream, a);
  return error;
}

}  // namespace townlet::cuda
