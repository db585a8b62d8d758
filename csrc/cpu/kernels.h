#pragma once
// The contract between the operators (ops/) and the CPU kernels of this folder.  Plain structs of sizes and contiguous
// arrays cross the boundary, neither torch nor std containers, so that one source can be compiled for several ISAs.

#include <stddef.h>
#include <stdint.h>

#include "../math/td_target.h"

namespace townlet {

// Weights of P members, members outermost; pointers may be null where the network lacks the part.
struct NetView {
  const float *w_ih, *w_hh, *bias, *w_fc, *b_fc, *w_adv, *b_adv, *w_val, *b_val;
};
// Gradients of P members, `stride` floats from one member to the next; rows of a member are contiguous.
struct GradRows {
  float* data;
  int64_t stride;
  float* of(int64_t p) const { return data + p * stride; }
};
struct NetGrad {
  GradRows w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val;
};

struct NetSizes {
  int64_t P, D, H, F, A;  // F = H where there is no hidden head layer
  bool fc, dueling;
};

// The caller's thread pool: runs body(context, i) for i in [0, n), in any order and at any concurrency.
struct Parallel {
  void (*run)(int64_t n, void* context, void (*body)(void* context, int64_t i));
};

struct TDProblem {
  NetSizes net;
  int64_t B, S;
  TDSettings td;
  bool bf16;  // round the operands of matrix products to bfloat16

  NetView online;
  const float* target;  // [P][packed size], or null: the online network's own values, detached
  const float *features_online, *features_target, *h0, *c0;
  const int64_t* action;
  const float* reward;
  const bool *terminated, *reset, *mask, *legal;  // legal may be null
  const float *weight, *gamma;                    // [P][B], [P]

  float *loss, *td_error, *priority, *q_taken, *h_final, *c_final;
  bool param_grads;     // fill grad
  NetGrad grad;         // of sum_p loss[p]
  float* feature_grad;  // or null
  bool* bad_action;     // one flag
};

struct UnrollProblem {
  int64_t P, B, T, D, H;
  const float *x, *h0, *c0, *w_ih, *w_hh, *bias;
  const bool* reset;  // [P][B][T] or null
  float *y, *h_final, *c_final;
  float* saved;  // [lstm_saved's size] for the backward pass, or null
};

struct UnrollGradProblem {
  int64_t P, B, T, D, H;
  const float *w_ih, *w_hh;
  const bool* reset;
  float* saved;  // from the forward pass; overwritten
  const float *dy, *dh, *dc;
  float *dx, *dh0, *dc0, *dw_ih, *dw_hh, *dbias;
};

// Floats that lstm_unroll keeps for its backward pass, for each sequence of a member.
struct SavedSize {
  int64_t step, rest;  // for each time step, and beside those
  int64_t of(int64_t P, int64_t B, int64_t T) const { return P * B * (T * step + rest); }
};

// Dense layers before the LSTM, each with a ReLU behind it.
struct EncoderSizes {
  int64_t P, layers;
  const int64_t* widths;  // layers + 1: what comes in, what each layer puts out
};

// One acting step of E rows per member.  Without layers x holds the LSTM's own inputs; without q there is no head.
struct StepProblem {
  int64_t E;
  NetSizes net;
  const float* packed;  // [P][packed_stride], the LSTM's part first
  int64_t packed_stride;
  EncoderSizes encoder;
  const float* encoder_packed;
  const float *x, *h, *c;
  const bool* reset;     // [P][E] or null
  float *h_out, *c_out;  // not h and c themselves
  float* q = nullptr;    // [P][E][A]
  void* context = nullptr;
  // the thread that has written the values of a run of rows calls this
  void (*done)(void* context, int64_t first_row, int64_t rows) = nullptr;
};

struct AdamProblem {
  int64_t P, N;
  float *weights, *m, *v;                     // [P][N], overwritten
  const float *grad, *lr, *clip_norm;         // [P][N], [P], [P] or null
  float decay1, decay2, eps;                  // decay = 1 - beta: its digits are lost in a float beta
  float first_correction, second_correction;  // 1 / (1 - beta^step)
  float* norm;                                // [P], of the gradient before clipping
};

struct SpatialSizes {
  int64_t P, N, planes, height, width, C0, C1, M;  // images, maps of an image, channels, units over the window
  int64_t in[3], out[3];                           // layers of position, meters, affordance
};

struct SpatialProblem {
  SpatialSizes n;
  const float *obs, *conv0_w, *conv0_b, *conv1_w, *conv1_b, *window_w, *window_b;
  const float *small_w[3], *small_b[3];
  float *features, *saved;  // saved: [P][spatial_saved] for the backward pass, or null
};

struct SpatialGradProblem {
  SpatialSizes n;
  const float *grad, *features, *saved, *obs, *conv1_w, *window_w;
  float *dconv0_w, *dconv0_b, *dconv1_w, *dconv1_b, *dwindow_w, *dwindow_b;
  float *dsmall_w[3], *dsmall_b[3];
};

// One instruction set's build of the kernels.
struct Kernels {
  const char* name;
  int bit;                                           // of this set among all
  int lanes;                                         // floats in a vector
  int64_t (*pack_size)(const NetSizes&, bool bf16);  // floats per member; where A is 0, of the LSTM's part alone
  void (*pack)(const NetSizes&, const NetView&, bool bf16, float* out, Parallel);
  void (*td_unroll)(const TDProblem&, Parallel);
  int64_t (*td_unroll_scratch)(const TDProblem&);  // bytes
  SavedSize (*lstm_saved)(int64_t D, int64_t H);
  void (*lstm_unroll)(const UnrollProblem&, Parallel);
  void (*lstm_unroll_backward)(const UnrollGradProblem&, Parallel);
  int64_t (*encoder_size)(const EncoderSizes&);  // floats per member
  void (*pack_encoder)(const EncoderSizes&, const float* const* weights, const float* const* biases, float* out,
                       Parallel);
  void (*step)(const StepProblem&, Parallel);
  void (*adam_step)(const AdamProblem&, Parallel);
  int64_t (*spatial_saved)(const SpatialSizes&);  // floats per member
  void (*spatial_encode)(const SpatialProblem&, Parallel);
  void (*spatial_encode_backward)(const SpatialGradProblem&, Parallel);
};

// The best kernels that this CPU runs, or those that the environment variable TOWNLET_ISA names.  They are picked once,
// at load.
const Kernels& kernels();
// The bits of all sets that were built and that this CPU runs.
int runnable();
// Bytes that the last call took from the scratch pool, whatever the buffer it got.
int64_t last_arena_bytes();

}  // namespace townlet
