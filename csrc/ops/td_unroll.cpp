// The fused update as an operator over cpu/td_unroll.h: loss, TD errors and gradients of P recurrent Q-networks.

#include <algorithm>
#include <tuple>

#include "net.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // loss, td_error, priority, q_taken, h_final, c_final; then the gradients of sum(loss) with respect to
  // features_online and the nine online weights (empty where not asked for)
  m.def(
      "td_unroll(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, Tensor? target, Tensor features_online, Tensor? features_target, Tensor h0, "
      "Tensor c0, Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask, Tensor weight, "
      "Tensor? legal, Tensor gamma, int n_step, int burn_in, bool double_q, float rescale_eps, float huber_delta, "
      "float eta, bool bf16, bool param_grads, bool feature_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // the same, but the weights' gradients are written into `grads`, which holds a tensor for each online weight that
  // there is, in their order and shapes; members may lie any distance apart.  Returns the first seven.
  m.def(
      "td_unroll_into(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, Tensor? target, Tensor features_online, Tensor? features_target, Tensor h0, "
      "Tensor c0, Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask, Tensor weight, "
      "Tensor? legal, Tensor gamma, int n_step, int burn_in, bool double_q, float rescale_eps, float huber_delta, "
      "float eta, bool bf16, bool feature_grads, Tensor(a!)[] grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
  // bytes of scratch that a call of td_unroll takes; head is F, or 0 without the head's hidden layer
  m.def(
      "td_unroll_scratch(int P, int B, int S, int D, int H, int head, int A, bool dueling, int burn_in, bool bf16, "
      "bool param_grads, bool feature_grads) -> int");
}

namespace townlet {
namespace {

// Names the first action out of range at a valid position, of which the kernels have said that there is one.
[[noreturn]] void refuse_action(const TDProblem& problem, const Tensor& action) {
  const int64_t S = problem.S, A = problem.net.A;
  int64_t i = 0;
  const auto bad = [&](int64_t b, int64_t t) {
    TDSequence s{};
    s.terminated = problem.terminated + b * S;
    s.reset = problem.reset + b * (S + 1);
    s.mask = problem.mask + b * S;
    return td_valid(s, static_cast<int>(t)) && (problem.action[i] < 0 || problem.action[i] >= A);
  };
  while (i + 1 < action.numel() && !bad(i / S, i % S)) ++i;
  refuse("batch.action is ", problem.action[i], " at ", position(action, i),
         ", a valid position; expected 0 <= action < A = ", A);
}

using TDValues = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // the gradient of features last

// Both forms of the operator run this; `grad` says where the weights' gradients go.
TDValues run_td(const Net& net, Optional target, Tensor features_online, Optional features_target, Tensor h0, Tensor c0,
                Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask, Tensor weight,
                Optional legal, Tensor gamma, const TDSettings& td, bool bf16, bool feature_grads,
                const NetGrad* grad) {
  const NetSizes& n = net.n;
  STD_TORCH_CHECK(features_online.dim() == 4, "features_online: expected [P, B, S+1, D]");
  const int64_t P = n.P, B = features_online.size(1), T = features_online.size(2), S = T - 1;
  STD_TORCH_CHECK(B > 0 && S > 0 && td.burn_in >= 0 && td.burn_in < S && td.n_step >= 1,
                  "B, S, burn_in or n_step out of range");
  STD_TORCH_CHECK(target.has_value() == features_target.has_value(), "target and features_target come together");
  features_online = need(features_online, "features_online", {P, B, T, n.D}, kFloat);
  features_target = need(features_target, "features_target", {P, B, T, n.D}, kFloat);
  target = need(target, "target", {P, kernels().pack_size(net.n, bf16)}, kFloat);
  h0 = need(h0, "h0", {P, B, n.H}, kFloat);
  c0 = need(c0, "c0", {P, B, n.H}, kFloat);
  action = need(action, "action", {P, B, S}, kLong);
  reward = need(reward, "reward", {P, B, S}, kFloat);
  terminated = need(terminated, "terminated", {P, B, S}, kBool);
  reset = need(reset, "reset", {P, B, T}, kBool);
  mask = need(mask, "mask", {P, B, S}, kBool);
  weight = need(weight, "weight", {P, B}, kFloat);
  legal = need(legal, "legal", {P, B, T, n.A}, kBool);
  gamma = need(gamma, "gamma", {P}, kFloat);

  const Tensor& x = features_online;
  Tensor loss = empty(x, {P}), td_error = empty(x, {P, B, S}), priority = empty(x, {P, B}),
         q_taken = empty(x, {P, B, S}), h_final = empty(x, {P, B, n.H}), c_final = empty(x, {P, B, n.H});
  Tensor d_x = feature_grads ? empty(x, {P, B, T, n.D}) : empty(x, {0});

  TDProblem problem{};
  problem.net = n;
  problem.B = B;
  problem.S = S;
  problem.td = td;
  problem.bf16 = bf16;
  problem.online = net.view();
  problem.target = fp(target);
  problem.features_online = fp(features_online);
  problem.features_target = fp(features_target);
  problem.h0 = fp(h0);
  problem.c0 = fp(c0);
  problem.action = ip(action);
  problem.reward = fp(reward);
  problem.terminated = bp(terminated);
  problem.reset = bp(reset);
  problem.mask = bp(mask);
  problem.legal = bp(legal);
  problem.weight = fp(weight);
  problem.gamma = fp(gamma);
  problem.loss = loss.mutable_data_ptr<float>();
  problem.td_error = td_error.mutable_data_ptr<float>();
  problem.priority = priority.mutable_data_ptr<float>();
  problem.q_taken = q_taken.mutable_data_ptr<float>();
  problem.h_final = h_final.mutable_data_ptr<float>();
  problem.c_final = c_final.mutable_data_ptr<float>();
  problem.param_grads = grad != nullptr;
  if (grad) problem.grad = *grad;
  problem.feature_grad = feature_grads ? d_x.mutable_data_ptr<float>() : nullptr;
  bool bad_action = false;
  problem.bad_action = &bad_action;
  kernels().td_unroll(problem, kParallel);
  if (bad_action) refuse_action(problem, action);
  return {loss, td_error, priority, q_taken, h_final, c_final, d_x};
}

TDSettings settings(int64_t n_step, int64_t burn_in, bool double_q, double rescale_eps, double huber_delta,
                    double eta) {
  const auto number = [](int64_t n) { return static_cast<int>(std::clamp<int64_t>(n, -1, 1 << 30)); };
  return {number(n_step),
          number(burn_in),
          double_q,
          static_cast<float>(rescale_eps),
          static_cast<float>(huber_delta),
          static_cast<float>(eta)};
}

// Where the kernels are told of the gradient of each weight, in the weights' order.
constexpr int kParts = 9;
GradRows NetGrad::* const kGradParts[kParts] = {&NetGrad::w_ih,  &NetGrad::w_hh,  &NetGrad::bias,
                                                &NetGrad::w_fc,  &NetGrad::b_fc,  &NetGrad::w_adv,
                                                &NetGrad::b_adv, &NetGrad::w_val, &NetGrad::b_val};

using TDResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor, Tensor>;

TDResults td_unroll_cpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc,
                        const Optional& b_fc, const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val,
                        const Optional& b_val, const Optional& target, const Tensor& features_online,
                        const Optional& features_target, const Tensor& h0, const Tensor& c0, const Tensor& action,
                        const Tensor& reward, const Tensor& terminated, const Tensor& reset, const Tensor& mask,
                        const Tensor& weight, const Optional& legal, const Tensor& gamma, int64_t n_step,
                        int64_t burn_in, bool double_q, double rescale_eps, double huber_delta, double eta, bool bf16,
                        bool param_grads, bool feature_grads) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  const auto parts = net.parts();
  NetGrad grad{};
  Tensor grads[kParts];
  for (int i = 0; i < kParts; ++i) {
    const bool wanted = param_grads && parts[i];
    grads[i] = wanted ? torch::stable::empty_like(*parts[i]) : empty(w_ih, {0});
    if (wanted) grad.*kGradParts[i] = {grads[i].mutable_data_ptr<float>(), parts[i]->numel() / net.n.P};
  }
  const TDValues values =
      run_td(net, target, features_online, features_target, h0, c0, action, reward, terminated, reset, mask, weight,
             legal, gamma, settings(n_step, burn_in, double_q, rescale_eps, huber_delta, eta), bf16, feature_grads,
             param_grads ? &grad : nullptr);
  return std::tuple_cat(
      values, std::tuple(grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6], grads[7], grads[8]));
}

TDValues td_unroll_into_cpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc,
                            const Optional& b_fc, const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val,
                            const Optional& b_val, const Optional& target, const Tensor& features_online,
                            const Optional& features_target, const Tensor& h0, const Tensor& c0, const Tensor& action,
                            const Tensor& reward, const Tensor& terminated, const Tensor& reset, const Tensor& mask,
                            const Tensor& weight, const Optional& legal, const Tensor& gamma, int64_t n_step,
                            int64_t burn_in, bool double_q, double rescale_eps, double huber_delta, double eta,
                            bool bf16, bool feature_grads, std::vector<Tensor> grads) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  const auto parts = net.parts();
  NetGrad grad{};
  std::size_t used = 0;
  for (int i = 0; i < kParts; ++i) {
    if (!parts[i]) continue;
    STD_TORCH_CHECK(used < grads.size(), "grads: expected one for each weight");
    Tensor& g = grads[used++];
    bool fits = g.scalar_type() == kFloat && g.dim() == parts[i]->dim() && g.size(0) == net.n.P;
    int64_t inner = 1;  // floats behind an axis
    for (int64_t d = g.dim() - 1; fits && d > 0; inner *= g.size(d--))
      fits = g.size(d) == parts[i]->size(d) && (g.size(d) == 1 || g.stride(d) == inner);
    fits = fits && (net.n.P == 1 || g.stride(0) >= inner);
    STD_TORCH_CHECK(fits, "grads: expected the weights' shapes, each member's rows contiguous");
    grad.*kGradParts[i] = {g.mutable_data_ptr<float>(), g.stride(0)};
  }
  STD_TORCH_CHECK(used == grads.size(), "grads: expected one for each weight");
  return run_td(net, target, features_online, features_target, h0, c0, action, reward, terminated, reset, mask, weight,
                legal, gamma, settings(n_step, burn_in, double_q, rescale_eps, huber_delta, eta), bf16, feature_grads,
                &grad);
}

int64_t td_unroll_scratch(int64_t P, int64_t B, int64_t S, int64_t D, int64_t H, int64_t head, int64_t A, bool dueling,
                          int64_t burn_in, bool bf16, bool param_grads, bool feature_grads) {
  float wanted = 0.0f;
  TDProblem problem{};
  problem.net = {P, D, H, head ? head : H, A, head > 0, dueling};
  problem.B = B;
  problem.S = S;
  problem.td.burn_in = static_cast<int>(burn_in);
  problem.bf16 = bf16;
  problem.param_grads = param_grads;
  problem.feature_grad = feature_grads ? &wanted : nullptr;
  return kernels().td_unroll_scratch(problem);
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("td_unroll_scratch", TORCH_BOX(&townlet::td_unroll_scratch));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("td_unroll", TORCH_BOX(&townlet::td_unroll_cpu));
  m.impl("td_unroll_into", TORCH_BOX(&townlet::td_unroll_into_cpu));
}
