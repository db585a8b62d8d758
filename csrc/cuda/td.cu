// TD target, loss and gradient in one kernel: a block per member, which needs the number of its trained transitions
// before the first gradient.  Four passes, a barrier between them: greedy values and that number, a pair of sequence
// and step to a thread; transitions, likewise; sums of a sequence, a sequence to a thread and in the order of time, as
// on the CPU; the member's loss.  Every sum has one order: results repeat bit for bit.

#include "td.h"

#include "launch.h"

namespace townlet::cuda {
namespace {

constexpr int kThreads = 256;

__device__ TDSequence sequence_of(const TDProblem& q, int64_t p, int64_t b) {
  const int64_t at = p * q.B + b, T = q.S + 1;
  TDSequence s{};
  s.q_online = q.q_online + at * T * q.A;
  s.q_target = q.q_target + at * T * q.A;
  s.q_stride = s.q_target_stride = q.A;
  s.action = q.action + at * q.S;
  s.reward = q.reward + at * q.S;
  s.terminated = q.terminated + at * q.S;
  s.reset = q.reset + at * T;
  s.mask = q.mask + at * q.S;
  s.legal = q.legal != nullptr ? q.legal + at * T * q.A : nullptr;
  s.S = int(q.S);
  s.A = int(q.A);
  s.gamma = q.gamma[p];
  return s;
}

// The sum of a number of every thread, in the order of the threads.
template <class T>
__device__ T block_sum(T mine, T* parts) {
  parts[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  __syncthreads();
  const T sum = parts[0];
  __syncthreads();
  return sum;
}

__global__ void __launch_bounds__(kThreads) td_kernel(TDProblem q) {
  __shared__ double sums[kThreads];
  __shared__ int counts[kThreads];
  const int64_t p = blockIdx.x, T = q.S + 1;

  int mine = 0;
  for (int64_t i = threadIdx.x; i < q.B * T; i += kThreads) {
    const TDSequence s = sequence_of(q, p, i / T);
    const int u = int(i % T);
    if (u > 0) q.value[p * q.B * T + i] = td_greedy_value(s, q.td, u);
    mine += u >= q.td.burn_in && u < q.S && td_valid(s, u);
  }
  const int valid = block_sum(mine, counts);  // a barrier: values are there
  const float count = valid > 0 ? float(valid) : 1.0f;

  mine = 0;
  for (int64_t i = threadIdx.x; i < q.B * T; i += kThreads) {
    const int64_t at = p * q.B + i / T;
    const int t = int(i % T);
    const TDSequence s = sequence_of(q, p, i / T);
    TDTransition d{};
    if (t < q.S) {
      d = td_transition(s, q.td, q.value + at * T, t);
      q.td_error[at * q.S + t] = d.error;
      q.q_taken[at * q.S + t] = d.q_taken;
      mine += d.bad_action;
    }
    if (q.d_adv == nullptr) continue;
    const float g = d.error == 0.0f ? 0.0f : -q.weight[at] / count * td_loss_grad(d.error, q.td.huber_delta);
    const float others = q.d_val != nullptr ? -g / float(q.A) : 0.0f;
    for (int64_t a = 0; a < q.A; ++a) q.d_adv[(at * T + t) * q.A + a] = others;
    if (g != 0.0f) q.d_adv[(at * T + t) * q.A + s.action[t]] += g;
    if (q.d_val != nullptr) q.d_val[at * T + t] = g;
  }
  const int bad = block_sum(mine, counts);  // a barrier: errors are there

  double loss = 0.0;
  for (int64_t b = threadIdx.x; b < q.B; b += kThreads) {
    const TDSequence s = sequence_of(q, p, b);
    const int64_t at = p * q.B + b;
    TDSums row;
    for (int t = q.td.burn_in; t < q.S; ++t)
      if (td_valid(s, t)) row.add(q.td_error[at * q.S + t], q.td.huber_delta);
    q.priority[at] = row.priority(q.td.eta);
    loss += double(q.weight[at]) * double(row.loss);
  }
  loss = block_sum(loss, sums);
  if (threadIdx.x == 0) q.loss[p] = bad ? nanf("") : float(loss / double(count));
}

}  // namespace

int td_loss_and_gradient(const TDProblem& q, void* stream) {
  return launch(td_kernel, {dim3(unsigned(q.P)), dim3(kThreads)}, stream, q);
}

}  // namespace townlet::cuda
