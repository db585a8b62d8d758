// TD target, loss and gradient in one kernel: a block per member, which needs the number of its trained transitions
// before the first gradient.  Four passes, a barrier between them: greedy values and that number, a pair of sequence
// and step to a thread; transitions, likewise; sums of a sequence, a sequence to a thread and in the order of time, as
// on the CPU; the member's loss.  Every sum has one order: results repeat bit for bit.

#include "td.h"

#include "launch.h"

namespace townlet::cuda {
namespace {

constexpr int kThreads = 256;

__device__ TDSequence sequence_of(const TDProblem& problem, int64_t p, int64_t b) {
  const int64_t at = p * problem.B + b, T = problem.S + 1;
  TDSequence s{};
  s.q_online = problem.q_online + at * T * problem.A;
  s.q_target = problem.q_target + at * T * problem.A;
  s.q_stride = s.q_target_stride = problem.A;
  s.action = problem.action + at * problem.S;
  s.reward = problem.reward + at * problem.S;
  s.terminated = problem.terminated + at * problem.S;
  s.reset = problem.reset + at * T;
  s.mask = problem.mask + at * problem.S;
  s.legal = problem.legal != nullptr ? problem.legal + at * T * problem.A : nullptr;
  s.S = int(problem.S);
  s.A = int(problem.A);
  s.gamma = problem.gamma[p];
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

__global__ void __launch_bounds__(kThreads) td_kernel(TDProblem problem) {
  __shared__ double sums[kThreads];
  __shared__ int counts[kThreads];
  const int64_t p = blockIdx.x, T = problem.S + 1;

  int mine = 0;
  for (int64_t i = threadIdx.x; i < problem.B * T; i += kThreads) {
    const TDSequence s = sequence_of(problem, p, i / T);
    const int u = int(i % T);
    if (u > 0) problem.value[p * problem.B * T + i] = td_greedy_value(s, problem.td, u);
    mine += u >= problem.td.burn_in && u < problem.S && td_valid(s, u);
  }
  const int valid = block_sum(mine, counts);  // a barrier: values are there
  const float count = valid > 0 ? float(valid) : 1.0f;

  mine = 0;
  for (int64_t i = threadIdx.x; i < problem.B * T; i += kThreads) {
    const int64_t at = p * problem.B + i / T;
    const int t = int(i % T);
    const TDSequence s = sequence_of(problem, p, i / T);
    TDTransition d{};
    if (t < problem.S) {
      d = td_transition(s, problem.td, problem.value + at * T, t);
      problem.td_error[at * problem.S + t] = d.error;
      problem.q_taken[at * problem.S + t] = d.q_taken;
      mine += d.bad_action;
    }
    if (problem.d_adv == nullptr) continue;
    const float g =
        d.error == 0.0f ? 0.0f : -problem.weight[at] / count * td_loss_grad(d.error, problem.td.huber_delta);
    const float others = problem.d_val != nullptr ? -g / float(problem.A) : 0.0f;
    for (int64_t a = 0; a < problem.A; ++a) problem.d_adv[(at * T + t) * problem.A + a] = others;
    if (g != 0.0f) problem.d_adv[(at * T + t) * problem.A + s.action[t]] += g;
    if (problem.d_val != nullptr) problem.d_val[at * T + t] = g;
  }
  const int bad = block_sum(mine, counts);  // a barrier: errors are there

  double loss = 0.0;
  for (int64_t b = threadIdx.x; b < problem.B; b += kThreads) {
    const TDSequence s = sequence_of(problem, p, b);
    const int64_t at = p * problem.B + b;
    TDSums row;
    for (int t = problem.td.burn_in; t < problem.S; ++t)
      if (td_valid(s, t)) row.add(problem.td_error[at * problem.S + t], problem.td.huber_delta);
    problem.priority[at] = row.priority(problem.td.eta);
    loss += double(problem.weight[at]) * double(row.loss);
  }
  loss = block_sum(loss, sums);
  if (threadIdx.x == 0) problem.loss[p] = bad ? nanf("") : float(loss / double(count));
}

}  // namespace

int td_loss_and_gradient(const TDProblem& problem, void* stream) {
  return launch(td_kernel, {dim3(unsigned(problem.P)), dim3(kThreads)}, stream, problem);
}

}  // namespace townlet::cuda
