// The operators' schemas (the table of contents of this library), their checks, and their CPU implementations over
// the kernels of cpu/.  Shapes are checked for people in townlet/ops.py; here only so that no call can read out of
// bounds.  Stable ABI only: one build loads in every torch from 2.11 on.

#include <algorithm>
#include <tuple>

#include "net.h"

// P members, B sequences, S transitions, T steps, E rows, D features, H hidden, F head hidden, A actions.
STABLE_TORCH_LIBRARY(townlet, m) {
  // vector lanes of the kernels in use: 16 avx512, 8 avx2, 4 portable
  m.def("lanes() -> int");
  // bfloat16 values in a 32-bit word of their panels
  m.def("bf16_pack() -> int");
  // the instruction set in use, and all that were built and that this CPU runs: 1 portable, 2 avx2, 4 avx512, 8
  // avx512_bf16
  m.def("isa() -> int");
  m.def("isa_levels() -> int");
  // panels of one network: [P, packed size]
  m.def(
      "pack(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, bool bf16) -> Tensor");
  // loss, td_error, priority, q_taken, h_final, c_final; then the gradients of sum(loss) with respect to
  // features_online and the nine online weights (empty where not asked for)
  m.def(
      "td_unroll(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, Tensor? target, Tensor features_online, Tensor? features_target, Tensor h0, "
      "Tensor c0, Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask, Tensor weight, "
      "Tensor? legal, Tensor gamma, int n_step, int burn_in, bool double_q, float rescale_eps, float huber_delta, "
      "float eta, bool bf16, bool param_grads, bool feature_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // the same with the weights' gradients written into `grads`: the online weights' shapes in their order, those that
  // there are, members any distance apart.  Returns the first seven.
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
  // which form of the recurrent kernels a GPU of this compute capability (90: 9.0) with so many SMs runs, in words
  m.def("unroll_plan(int device, int P, int B, int T, int H, bool bf16, int chains, bool backward) -> str");
  // bytes that the last call on any thread took from the scratch pool
  m.def("last_scratch() -> int");
  // y, h_T, c_T, and what the backward pass needs (empty where not asked for)
  m.def(
      "lstm_unroll(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? reset, bool save) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // gradients of x, h0, c0, w_ih, w_hh, bias
  m.def(
      "lstm_unroll_backward(Tensor dy, Tensor dh, Tensor dc, Tensor saved, Tensor x, Tensor w_ih, Tensor w_hh, "
      "Tensor? reset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // one acting step from packed weights: h, c
  m.def("lstm_step(Tensor x, Tensor h, Tensor c, Tensor packed, Tensor? reset) -> (Tensor, Tensor)");
}

namespace townlet {
namespace {

// Floats of one member's panels; townlet/ops.py states the same formula for the fake kernel.
int64_t packed_size(const NetSizes& n, bool bf16) {
  const int64_t v = kernels().lanes, pack = bf16 ? kernels().bf16_pack : 1;
  const auto up = [v](int64_t x) { return (x + v - 1) / v * v; };
  const auto words = [pack](int64_t x) { return (x + pack - 1) / pack; };
  const int64_t outputs = up(n.A + (n.dueling ? 1 : 0));
  return 4 * up(n.H) * (words(n.D) + words(n.H) + 1) + (n.fc ? (words(n.H) + 1) * up(n.F) : 0) +
         (words(n.F) + 1) * outputs;
}

int64_t lanes() { return kernels().lanes; }
int64_t bf16_pack() { return kernels().bf16_pack; }
int64_t isa() { return kernels().bit; }
int64_t last_scratch() { return last_arena_bytes(); }
int64_t isa_levels() { return runnable(); }

Tensor pack_cpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc, const Optional& b_fc,
                const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val, const Optional& b_val, bool bf16) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  Tensor out = empty(w_ih, {net.n.P, packed_size(net.n, bf16)});
  kernels().pack(net.n, net.view(), bf16, out.mutable_data_ptr<float>(), kParallel);
  return out;
}

using TDValues = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // the gradient of features last

// What both forms of the operator share; `grad` says where the weights' gradients go.
TDValues run_td(const Net& net, const Optional& target, const Tensor& features_online, const Optional& features_target,
                const Tensor& h0, const Tensor& c0, const Tensor& action, const Tensor& reward,
                const Tensor& terminated, const Tensor& reset, const Tensor& mask, const Tensor& weight,
                const Optional& legal, const Tensor& gamma, const TDSettings& td, bool bf16, bool feature_grads,
                const NetGrad* grad) {
  const NetSizes& n = net.n;
  STD_TORCH_CHECK(features_online.dim() == 4, "features_online: expected [P, B, S+1, D]");
  const int64_t P = n.P, B = features_online.size(1), T = features_online.size(2), S = T - 1;
  STD_TORCH_CHECK(B > 0 && S > 0 && td.burn_in >= 0 && td.burn_in < S && td.n_step >= 1,
                  "B, S, burn_in or n_step out of range");
  STD_TORCH_CHECK(target.has_value() == features_target.has_value(), "target and features_target come together");
  const Tensor x = need(features_online, "features_online", {P, B, T, n.D}, kFloat);
  Optional xt, packed, ok;
  if (target) xt = need(*features_target, "features_target", {P, B, T, n.D}, kFloat);
  if (target) packed = need(*target, "target", {P, packed_size(net.n, bf16)}, kFloat);
  if (legal) ok = need(*legal, "legal", {P, B, T, n.A}, kBool);
  const Tensor h = need(h0, "h0", {P, B, n.H}, kFloat), c = need(c0, "c0", {P, B, n.H}, kFloat);
  const Tensor a = need(action, "action", {P, B, S}, kLong), r = need(reward, "reward", {P, B, S}, kFloat);
  const Tensor end = need(terminated, "terminated", {P, B, S}, kBool), first = need(reset, "reset", {P, B, T}, kBool);
  const Tensor real = need(mask, "mask", {P, B, S}, kBool), w = need(weight, "weight", {P, B}, kFloat);
  const Tensor g = need(gamma, "gamma", {P}, kFloat);

  Tensor loss = empty(x, {P}), td_error = empty(x, {P, B, S}), priority = empty(x, {P, B}),
         q_taken = empty(x, {P, B, S}), h_final = empty(x, {P, B, n.H}), c_final = empty(x, {P, B, n.H});
  Tensor d_x = feature_grads ? empty(x, {P, B, T, n.D}) : empty(x, {0});

  TDProblem q{};
  q.net = n;
  q.B = B;
  q.S = S;
  q.td = td;
  q.bf16 = bf16;
  q.online = net.view();
  q.target = fp(packed);
  q.features_online = fp(x);
  q.features_target = fp(xt);
  q.h0 = fp(h);
  q.c0 = fp(c);
  q.action = a.const_data_ptr<int64_t>();
  q.reward = fp(r);
  q.terminated = bp(end);
  q.reset = bp(first);
  q.mask = bp(real);
  q.legal = bp(ok);
  q.weight = fp(w);
  q.gamma = fp(g);
  q.loss = loss.mutable_data_ptr<float>();
  q.td_error = td_error.mutable_data_ptr<float>();
  q.priority = priority.mutable_data_ptr<float>();
  q.q_taken = q_taken.mutable_data_ptr<float>();
  q.h_final = h_final.mutable_data_ptr<float>();
  q.c_final = c_final.mutable_data_ptr<float>();
  q.param_grads = grad != nullptr;
  if (grad) q.grad = *grad;
  q.feature_grad = feature_grads ? d_x.mutable_data_ptr<float>() : nullptr;
  bool bad_action = false;
  q.bad_action = &bad_action;
  kernels().td_unroll(q, kParallel);
  STD_TORCH_CHECK(!bad_action, "batch.action is out of range at a valid position; expected 0 <= action < A = ", n.A);
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
  TDProblem q{};
  q.net = {P, D, H, head ? head : H, A, head > 0, dueling};
  q.B = B;
  q.S = S;
  q.td.burn_in = static_cast<int>(burn_in);
  q.bf16 = bf16;
  q.param_grads = param_grads;
  q.feature_grad = feature_grads ? &wanted : nullptr;
  return kernels().td_unroll_scratch(q);
}

struct LstmSizes {
  int64_t P, B, T, D, H;
  // floats kept for the backward pass; townlet/ops.py states the same formula for the fake kernel
  int64_t saved() const {
    const int64_t v = kernels().lanes, Hp = (H + v - 1) / v * v, ldx = ((D + Hp + v - 1) / v | 1) * v;
    return P * B * (T * (ldx + 5 * Hp) + (T + 1) * Hp);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_unroll_cpu(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias,
                                                           const Optional& reset, bool save) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const LstmSizes n{x.size(0), x.size(1), x.size(2), x.size(3), w_hh.size(2)};
  STD_TORCH_CHECK(n.P > 0 && n.B > 0 && n.T > 0 && n.D > 0 && n.H > 0, "x: expected positive sizes");
  const Tensor xc = need(x, "x", {n.P, n.B, n.T, n.D}, kFloat);
  const Tensor h = need(h0, "h0", {n.P, n.B, n.H}, kFloat), c = need(c0, "c0", {n.P, n.B, n.H}, kFloat);
  const Tensor wi = need(w_ih, "w_ih", {n.P, 4 * n.H, n.D}, kFloat),
               wh = need(w_hh, "w_hh", {n.P, 4 * n.H, n.H}, kFloat);
  const Tensor b = need(bias, "bias", {n.P, 4 * n.H}, kFloat);
  Optional first;
  if (reset) first = need(*reset, "reset", {n.P, n.B, n.T}, kBool);
  Tensor y = empty(x, {n.P, n.B, n.T, n.H}), hT = empty(x, {n.P, n.B, n.H}), cT = empty(x, {n.P, n.B, n.H});
  Tensor saved = empty(x, {save ? n.saved() : 0});
  const UnrollProblem q{n.P,
                        n.B,
                        n.T,
                        n.D,
                        n.H,
                        fp(xc),
                        fp(h),
                        fp(c),
                        fp(wi),
                        fp(wh),
                        fp(b),
                        bp(first),
                        y.mutable_data_ptr<float>(),
                        hT.mutable_data_ptr<float>(),
                        cT.mutable_data_ptr<float>(),
                        save ? saved.mutable_data_ptr<float>() : nullptr};
  kernels().lstm_unroll(q, kParallel);
  return {y, hT, cT, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_unroll_backward_cpu(
    const Tensor& dy, const Tensor& dh, const Tensor& dc, const Tensor& saved, const Tensor& x, const Tensor& w_ih,
    const Tensor& w_hh, const Optional& reset) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const LstmSizes n{x.size(0), x.size(1), x.size(2), x.size(3), w_hh.size(2)};
  const Tensor dyc = need(dy, "dy", {n.P, n.B, n.T, n.H}, kFloat);
  const Tensor dhc = need(dh, "dh", {n.P, n.B, n.H}, kFloat), dcc = need(dc, "dc", {n.P, n.B, n.H}, kFloat);
  const Tensor wi = need(w_ih, "w_ih", {n.P, 4 * n.H, n.D}, kFloat),
               wh = need(w_hh, "w_hh", {n.P, 4 * n.H, n.H}, kFloat);
  Tensor work = torch::stable::clone(need(saved, "saved", {n.saved()}, kFloat));  // gates turn into their gradients
  Optional first;
  if (reset) first = need(*reset, "reset", {n.P, n.B, n.T}, kBool);
  Tensor dx = empty(x, {n.P, n.B, n.T, n.D}), dh0 = empty(x, {n.P, n.B, n.H}), dc0 = empty(x, {n.P, n.B, n.H}),
         dw_ih = empty(x, {n.P, 4 * n.H, n.D}), dw_hh = empty(x, {n.P, 4 * n.H, n.H}), db = empty(x, {n.P, 4 * n.H});
  const UnrollGradProblem q{n.P,
                            n.B,
                            n.T,
                            n.D,
                            n.H,
                            fp(wi),
                            fp(wh),
                            bp(first),
                            work.mutable_data_ptr<float>(),
                            fp(dyc),
                            fp(dhc),
                            fp(dcc),
                            dx.mutable_data_ptr<float>(),
                            dh0.mutable_data_ptr<float>(),
                            dc0.mutable_data_ptr<float>(),
                            dw_ih.mutable_data_ptr<float>(),
                            dw_hh.mutable_data_ptr<float>(),
                            db.mutable_data_ptr<float>()};
  kernels().lstm_unroll_backward(q, kParallel);
  return {dx, dh0, dc0, dw_ih, dw_hh, db};
}

std::tuple<Tensor, Tensor> lstm_step_cpu(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& packed,
                                         const Optional& reset) {
  STD_TORCH_CHECK(x.dim() == 3 && h.dim() == 3 && packed.dim() == 2, "x: expected [P, E, D]; packed: expected [P, N]");
  const int64_t P = x.size(0), E = x.size(1), D = x.size(2), H = h.size(2), v = kernels().lanes;
  STD_TORCH_CHECK(P > 0 && E > 0 && D > 0 && H > 0, "x: expected positive sizes");
  STD_TORCH_CHECK(packed.size(1) >= 4 * ((H + v - 1) / v * v) * (D + H + 1), "packed: too small for D and H");
  const Tensor xc = need(x, "x", {P, E, D}, kFloat), hc = need(h, "h", {P, E, H}, kFloat);
  const Tensor cc = need(c, "c", {P, E, H}, kFloat), w = need(packed, "packed", {P, packed.size(1)}, kFloat);
  Optional first;
  if (reset) first = need(*reset, "reset", {P, E}, kBool);
  Tensor h_out = empty(x, {P, E, H}), c_out = empty(x, {P, E, H});
  StepProblem q{};
  q.E = E;
  q.net = {P, D, H, H, 1, false, false};
  q.packed = fp(w);
  q.packed_stride = w.size(1);
  q.x = fp(xc);
  q.h = fp(hc);
  q.c = fp(cc);
  q.reset = bp(first);
  q.h_out = h_out.mutable_data_ptr<float>();
  q.c_out = c_out.mutable_data_ptr<float>();
  kernels().step(q, kParallel);
  return {h_out, c_out};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("lanes", TORCH_BOX(&townlet::lanes));
  m.impl("bf16_pack", TORCH_BOX(&townlet::bf16_pack));
  m.impl("isa", TORCH_BOX(&townlet::isa));
  m.impl("td_unroll_scratch", TORCH_BOX(&townlet::td_unroll_scratch));
  m.impl("last_scratch", TORCH_BOX(&townlet::last_scratch));
  m.impl("isa_levels", TORCH_BOX(&townlet::isa_levels));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("pack", TORCH_BOX(&townlet::pack_cpu));
  m.impl("td_unroll", TORCH_BOX(&townlet::td_unroll_cpu));
  m.impl("td_unroll_into", TORCH_BOX(&townlet::td_unroll_into_cpu));
  m.impl("lstm_unroll", TORCH_BOX(&townlet::lstm_unroll_cpu));
  m.impl("lstm_unroll_backward", TORCH_BOX(&townlet::lstm_unroll_backward_cpu));
  m.impl("lstm_step", TORCH_BOX(&townlet::lstm_step_cpu));
}
