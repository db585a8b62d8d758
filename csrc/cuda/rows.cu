#include "rows.h"

#include "launch.h"

namespace townlet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

// Calls body(i) for i in [0, n), a grid at a time.
template <class Body>
__device__ void for_each(int64_t n, Body body) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) body(i);
}
LaunchShape shape_of(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return {dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kThreads)};
}

__global__ void add_bias_kernel(float* x, const float* bias, int64_t P, int64_t N, int64_t C, bool relu) {
  for_each(P * N * C, [=](int64_t i) {
    const float v = x[i] + bias[i / (N * C) * C + i % C];
    x[i] = relu && !(v > 0.0f) ? 0.0f : v;
  });
}

__global__ void dueling_kernel(float* adv, const float* val, int64_t rows, int64_t A) {
  for_each(rows, [=](int64_t row) {
    float* const q = adv + row * A;
    float mean = 0.0f;
    for (int64_t a = 0; a < A; ++a) mean += q[a];
    const float lift = val[row] - mean / float(A);
    for (int64_t a = 0; a < A; ++a) q[a] += lift;
  });
}

__global__ void head_gradient_kernel(float* dx, const float* d_val, const float* w_val, const float* hidden, int64_t P,
                                     int64_t N, int64_t F) {
  for_each(P * N * F, [=](int64_t i) {
    float d = dx[i];
    if (d_val != nullptr) d += d_val[i / F] * w_val[i / (N * F) * F + i % F];
    dx[i] = hidden != nullptr && !(hidden[i] > 0.0f) ? 0.0f : d;
  });
}

__global__ void previous_outputs_kernel(float* before, const float* y, const float* h0, const bool* reset,
                                        int64_t sequences, int64_t T, int64_t H) {
  for_each(sequences * T * H, [=](int64_t i) {
    const int64_t step = i / H, sequence = step / T;
    const bool fresh = reset != nullptr && reset[step];
    before[i] = fresh ? 0.0f : step % T == 0 ? h0[sequence * H + i % H] : y[i - H];
  });
}

}  // namespace

int add_bias(float* x, const float* bias, int64_t P, int64_t N, int64_t C, bool relu, void* stream) {
  return launch(add_bias_kernel, shape_of(P * N * C), stream, x, bias, P, N, C, relu);
}
int dueling(float* adv, const float* val, int64_t rows, int64_t A, void* stream) {
  return launch(dueling_kernel, shape_of(rows), stream, adv, val, rows, A);
}
int head_gradient(float* dx, const float* d_val, const float* w_val, const float* hidden, int64_t P, int64_t N,
                  int64_t F, void* stream) {
  return launch(head_gradient_kernel, shape_of(P * N * F), stream, dx, d_val, w_val, hidden, P, N, F);
}
int previous_outputs(float* before, const float* y, const float* h0, const bool* reset, int64_t sequences, int64_t T,
                     int64_t H, void* stream) {
  return launch(previous_outputs_kernel, shape_of(sequences * T * H), stream, before, y, h0, reset, sequences, T, H);
}

}  // namespace townlet::cuda
