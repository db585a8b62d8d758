#pragma once
// TD target, loss and its gradient on the GPU (td.cu); math/td_target.h has the mathematics.

#include <cstdint>

#include "../math/td_target.h"

namespace townlet::cuda {

struct TDProblem {
  int64_t P, B, S, A;
  TDSettings td;
  const float *q_online, *q_target;  // [P][B][S+1][A]; the same where there is no target network
  const int64_t* action;             // [P][B][S]
  const float* reward;
  const bool *terminated, *reset, *mask, *legal;  // legal [P][B][S+1][A] or null
  const float *weight, *gamma;                    // [P][B], [P]
  float* value;                                   // [P][B][S+1], working memory
  float *loss, *td_error, *priority, *q_taken;    // [P], [P][B][S], [P][B], [P][B][S]
  float *d_adv, *d_val;  // [P][B][S+1][A], [P][B][S+1] of the loss, or null; d_val where the head is dueling
};

// An action out of range at a valid position makes its member's loss NaN.  cudaError_t as int
int td_loss_and_gradient(const TDProblem&, void* stream);

}  // namespace townlet::cuda
