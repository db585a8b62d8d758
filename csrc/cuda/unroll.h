#pragma once
// The recurrent part of the LSTM on the GPU: input projections go in, states, gates and their gradients come out.  Two
// implementations: step.cu, a launch per time step for any size, and resident.cuh, one launch with w_hh kept on the
// chip for all of time.  No CUDA and no torch headers: this is what the torch side (ops.inl) sees.
//
// All arrays are contiguous and batch-first, gates in the order i f g o.  w_hh holds floats, or bfloat16 where `bf16`;
// then h and the gradients of the gates are rounded to it before they are multiplied.  `stream` is a cudaStream_t.

#include <cstdint>

namespace townlet::cuda {

// What lstm_unroll keeps for its backward pass, in rows of H floats for each sequence: at each step the four gates, the
// cell state and the output before the step, and beside those c0.
constexpr int64_t kSavedPerStep = 6, kSavedBeside = 1;

// One network's chain over all of time; P members, B sequences, T steps.
struct Chain {
  const float* gx;           // [P][B][T][4H] input projections with the bias
  const void* w_hh;          // [P][4H][H]
  const float *h0, *c0;      // [P][B][H]
  const bool* reset;         // [P][B][T] or null
  float* y;                  // [P][B][T][H]
  float* gates;              // [P][B][T][4H] activated gates for the backward pass, or null; may be gx
  float* c;                  // [P][B][T][H] cell states for the backward pass, or null
  float *h_final, *c_final;  // [P][B][H]
};

struct UnrollForward {
  int64_t P, B, T, H;
  bool bf16;
  int chains;  // 2: online and target, side by side
  Chain chain[2];
};

struct UnrollBackward {
  int64_t P, B, T, H;
  bool bf16;
  int64_t burn_in;  // steps before it get no gradient, and the state that enters it is a constant
  float* gates;     // in: activated; out: gradients of the pre-activations, 0 before burn_in
  const float *c, *c0;
  const void* w_hh;
  const bool* reset;
  const float* dy;       // [P][B][T][H]
  const float *dh, *dc;  // [P][B][H] or null
  float *dh0, *dc0;      // [P][B][H]; 0 where burn_in > 0
};

// cudaError_t as int
int step_forward(const UnrollForward&, void* stream);
int step_backward(const UnrollBackward&, void* stream);

}  // namespace townlet::cuda
