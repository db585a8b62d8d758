// The torch side of the operators on a GPU: tensors in, launches out.  Compiled for CUDA (ops_cuda.cpp) and for the
// host shim of the tests.  The includer has defined, in townlet's anonymous namespace:
//   struct Guard            makes a device current, of a tensor or by its index
//   void* current_stream(const Tensor&)
//   void check(int)         an exception for a cudaError_t that is not success
//   std::optional<cuda::Gpu> gpu_of(int device)   nothing: a launch per step, whatever the size
//   Tensor product_bf16(const Tensor& a, const Tensor& b)   a @ b of bfloat16 operands, batched, as float
//
// Products over all of time are torch's own (on a GPU: cuBLAS), so their order of summation is that library's.

#include <cmath>
#include <limits>
#include <tuple>

#include "../ops/net.h"
#include "form.h"
#include "plan.h"
#include "resident.h"
#include "rows.h"
#include "td.h"
#include "unroll.h"

namespace townlet {
namespace {

// Sizes that a grid can have.
void check_sizes(int64_t P, int64_t B) {
  STD_TORCH_CHECK(2 * P <= 65535 && (B + 31) / 32 <= 65535, "the CUDA kernels take at most 32767 members and 2097120 ",
                  "sequences; got P = ", P, ", B = ", B);
}

Tensor call(const char* name, std::initializer_list<Tensor> arguments) {
  std::vector<StableIValue> stack;
  for (const Tensor& t : arguments) stack.push_back(torch::stable::detail::from(t));
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor shaped(const Tensor& t, std::initializer_list<int64_t> shape) {
  return torch::stable::view(t, std::vector<int64_t>(shape));
}
Tensor flipped(const Tensor& t) { return torch::stable::transpose(t, 1, 2); }

// Parts of a flat tensor that lie one behind the other.
class Parts {
 public:
  explicit Parts(const Tensor& whole)
      : flat_(torch::stable::view(whole, std::vector<int64_t>{whole.numel()})), offset_(0) {}
  Tensor take(const std::vector<int64_t>& shape) {
    int64_t size = 1;
    for (int64_t d : shape) size *= d;
    const Tensor part = torch::stable::view(torch::stable::narrow(flat_, 0, offset_, size), shape);
    offset_ += size;
    return part;
  }

 private:
  Tensor flat_;
  int64_t offset_;
};

// What runs on a device, by the environment or else by the plan.
cuda::Plan plan_on(int device, const cuda::UnrollSizes& n) {
  const std::optional<cuda::Form> form = cuda::forced_form();
  const std::optional<cuda::Gpu> gpu = gpu_of(device);
  if (!gpu) return {};
  return form ? cuda::plan_form(*form, *gpu, n) : cuda::plan_unroll(*gpu, n);
}
// The same in words.
std::string unroll_plan(int64_t device, int64_t P, int64_t B, int64_t T, int64_t H, bool bf16, int64_t chains,
                        bool backward) {
  const int index = static_cast<int>(device);
  const Guard guard(index);
  return cuda::describe(plan_on(index, {P, B, T, H, bf16, static_cast<int>(chains), backward}));
}

// What every part of an operator's call shares.
struct Call {
  Guard guard;
  Tensor like;
  void* stream;
  bool bf16;
  Call(const Tensor& t, bool bf16_) : guard(t), like(t), stream(current_stream(t)), bf16(bf16_) {}

  Tensor make(std::initializer_list<int64_t> shape) const { return empty(like, shape); }
  static float* at(Tensor& t) { return t.mutable_data_ptr<float>(); }

  // a [P, N, K] b [P, K, M] -> [P, N, M]
  Tensor product(const Tensor& a, const Tensor& b) const {
    return torch::stable::contiguous(bf16 ? product_bf16(a, b) : call("aten::bmm", {a, b}));
  }
  // x [P, N, K] w [P, M, K]^T + bias [P, M]
  Tensor affine(const Tensor& x, const Tensor& w, const Tensor& bias, bool relu) const {
    Tensor out = product(x, flipped(w));
    check(cuda::add_bias(at(out), bias.const_data_ptr<float>(), out.size(0), out.size(1), out.size(2), relu, stream));
    return out;
  }
  Tensor sum_rows(const Tensor& x) const {
    const int64_t dim = 1;
    return torch::stable::sum(x, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
  }
  // recurrent weights as the kernels multiply with them
  Tensor recurrent(const Tensor& w_hh) const { return bf16 ? torch::stable::to(w_hh, ScalarType::BFloat16) : w_hh; }
  void forward(const cuda::UnrollForward& a) const {
    const cuda::Plan plan = plan_on(like.get_device_index(), {a.P, a.B, a.T, a.H, a.bf16, a.chains, false});
    if (!plan.resident) return check(cuda::step_forward(a, stream));
    Tensor scratch = bytes(plan.how.forward_scratch(plan.how.groups(a.P, a.B, a.chains)));
    check(cuda::resident_unroll_forward(plan.how, a, at(scratch), stream));
  }
  void backward(const cuda::UnrollBackward& a) const {
    const cuda::Plan plan = plan_on(like.get_device_index(), {a.P, a.B, a.T, a.H, a.bf16, 1, true});
    if (!plan.resident) return check(cuda::step_backward(a, stream));
    Tensor scratch = bytes(plan.how.backward_scratch(plan.how.groups(a.P, a.B, 1)));
    check(cuda::resident_unroll_backward(plan.how, a, at(scratch), stream));
  }

 private:
  Tensor bytes(int64_t n) const { return make({(n + 3) / 4}); }
};

const void* raw(const Tensor& t) { return t.const_data_ptr(); }

// The parts of pack's result that are there, each [P, ...] and contiguous, one behind the other.
Net unpacked(const Tensor& packed, const Net& like) {
  Net out = like;
  Parts parts(packed);
  const auto take = [&](Tensor& part) {
    part = parts.take(std::vector<int64_t>(part.sizes().begin(), part.sizes().end()));
  };
  const auto take_optional = [&](Optional& part) {
    if (part) take(*part);
  };
  take(out.w_ih), take(out.w_hh), take(out.bias);
  take_optional(out.w_fc), take_optional(out.b_fc);
  take(out.w_adv), take(out.b_adv);
  take_optional(out.w_val), take_optional(out.b_val);
  return out;
}

int64_t numbers(const Net& net) {
  int64_t n = 0;
  for (const Optional& part : net.parts()) n += part ? part->numel() / net.n.P : 0;
  return n;
}

Tensor pack_gpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc, const Optional& b_fc,
                const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val, const Optional& b_val, bool) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  const Guard guard(w_ih);
  Tensor out = empty(w_ih, {net.n.P, numbers(net)});
  Net to = unpacked(out, net);
  const auto from = net.parts(), parts = to.parts();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i]) continue;
    Tensor part = *parts[i];
    torch::stable::copy_(part, *from[i]);
  }
  return out;
}

// A head's outputs for y [P, N, H]: Q-values [P, N, A], and the hidden layer where there is one.
struct Head {
  Tensor q;
  Optional hidden;
};
Head head(const Call& c, const Net& net, const Tensor& y) {
  Head out;
  if (net.n.fc) out.hidden = c.affine(y, *net.w_fc, *net.b_fc, true);
  const Tensor& x = net.n.fc ? *out.hidden : y;
  out.q = c.affine(x, net.w_adv, net.b_adv, false);
  if (net.n.dueling) {
    const Tensor value = c.affine(x, *net.w_val, *net.b_val, false);
    check(cuda::dueling(Call::at(out.q), value.const_data_ptr<float>(), y.size(0) * y.size(1), net.n.A, c.stream));
  }
  return out;
}

using TDResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor, Tensor>;

TDResults td_unroll_gpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc,
                        const Optional& b_fc, const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val,
                        const Optional& b_val, Optional target, Tensor features_online, Optional features_target,
                        Tensor h0, Tensor c0, Tensor action, Tensor reward, Tensor terminated, Tensor reset,
                        Tensor mask, Tensor weight, Optional legal, Tensor gamma, int64_t n_step, int64_t burn_in,
                        bool double_q, double rescale_eps, double huber_delta, double eta, bool bf16, bool param_grads,
                        bool feature_grads) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  const NetSizes& n = net.n;
  STD_TORCH_CHECK(features_online.dim() == 4, "features_online: expected [P, B, S+1, D]");
  const int64_t P = n.P, B = features_online.size(1), T = features_online.size(2), S = T - 1, H = n.H, A = n.A;
  STD_TORCH_CHECK(B > 0 && S > 0 && burn_in >= 0 && burn_in < S && n_step >= 1, "B, S, burn_in or n_step out of range");
  STD_TORCH_CHECK(target.has_value() == features_target.has_value(), "target and features_target come together");
  check_sizes(P, B);
  features_online = need(features_online, "features_online", {P, B, T, n.D}, kFloat);
  features_target = need(features_target, "features_target", {P, B, T, n.D}, kFloat);
  target = need(target, "target", {P, numbers(net)}, kFloat);
  h0 = need(h0, "h0", {P, B, H}, kFloat);
  c0 = need(c0, "c0", {P, B, H}, kFloat);
  action = need(action, "action", {P, B, S}, kLong);
  reward = need(reward, "reward", {P, B, S}, kFloat);
  terminated = need(terminated, "terminated", {P, B, S}, kBool);
  reset = need(reset, "reset", {P, B, T}, kBool);
  mask = need(mask, "mask", {P, B, S}, kBool);
  weight = need(weight, "weight", {P, B}, kFloat);
  legal = need(legal, "legal", {P, B, T, A}, kBool);
  gamma = need(gamma, "gamma", {P}, kFloat);
  const bool backward = param_grads || feature_grads;
  const Call on(features_online, bf16);
  const Tensor x = shaped(features_online, {P, B * T, n.D});
  const auto at = [](Tensor& t) { return Call::at(t); };

  // both networks' chains, side by side
  Tensor gates = on.affine(x, net.w_ih, net.bias, false), y = on.make({P, B * T, H}), h_final = on.make({P, B, H}),
         c_final = on.make({P, B, H}), cells = on.make({backward ? P * B * T * H : 0});
  const Tensor w_hh_ = on.recurrent(net.w_hh);
  cuda::UnrollForward up{P, B, T, H, bf16, 1, {}};
  up.chain[0] = {at(gates),
                 raw(w_hh_),
                 fp(h0),
                 fp(c0),
                 bp(reset),
                 at(y),
                 backward ? at(gates) : nullptr,
                 backward ? at(cells) : nullptr,
                 at(h_final),
                 at(c_final)};
  Optional gx_target, y_target, w_target, h_target, c_target;
  std::optional<Net> older;
  if (target) {
    older = unpacked(*target, net);
    gx_target = on.affine(shaped(*features_target, {P, B * T, n.D}), older->w_ih, older->bias, false);
    y_target = on.make({P, B * T, H});
    h_target = on.make({P, B, H});
    c_target = on.make({P, B, H});
    w_target = on.recurrent(older->w_hh);
    up.chains = 2;
    up.chain[1] = {fp(gx_target), raw(*w_target), fp(h0),  fp(c0),        bp(reset),
                   at(*y_target), nullptr,        nullptr, at(*h_target), at(*c_target)};
  }
  on.forward(up);

  // Q-values, TD target, loss and its gradient
  const Head online = head(on, net, y);
  const Tensor q_target = target ? head(on, *older, *y_target).q : online.q;
  Tensor loss = on.make({P}), td_error = on.make({P, B, S}), priority = on.make({P, B}), q_taken = on.make({P, B, S}),
         value = on.make({P, B, T}), d_adv = on.make({P, backward ? B * T : 0, A}),
         d_val = on.make({P, backward && n.dueling ? B * T : 0, 1});
  const auto number = [](int64_t v) { return static_cast<int>(v < (1 << 30) ? v : 1 << 30); };
  cuda::TDProblem problem{};
  problem.P = P;
  problem.B = B;
  problem.S = S;
  problem.A = A;
  problem.td = {number(n_step),
                number(burn_in),
                double_q,
                static_cast<float>(rescale_eps),
                static_cast<float>(huber_delta),
                static_cast<float>(eta)};
  problem.q_online = online.q.const_data_ptr<float>();
  problem.q_target = q_target.const_data_ptr<float>();
  problem.action = ip(action);
  problem.reward = fp(reward);
  problem.terminated = bp(terminated);
  problem.reset = bp(reset);
  problem.mask = bp(mask);
  problem.legal = bp(legal);
  problem.weight = fp(weight);
  problem.gamma = fp(gamma);
  problem.value = at(value);
  problem.loss = at(loss);
  problem.td_error = at(td_error);
  problem.priority = at(priority);
  problem.q_taken = at(q_taken);
  problem.d_adv = backward ? at(d_adv) : nullptr;
  problem.d_val = backward && n.dueling ? at(d_val) : nullptr;
  check(cuda::td_loss_and_gradient(problem, on.stream));

  const Tensor none = on.make({0});
  if (!backward)
    return {loss, td_error, priority, q_taken, h_final, c_final, none, none,
            none, none,     none,     none,    none,    none,    none, none};

  // back through the head
  Tensor dy = on.product(d_adv, net.w_adv);
  check(cuda::head_gradient(at(dy), n.dueling ? fp(d_val) : nullptr, fp(net.w_val), n.fc ? fp(online.hidden) : nullptr,
                            P, B * T, n.F, on.stream));
  const Tensor d_hidden = dy;
  if (n.fc) dy = on.product(d_hidden, *net.w_fc);

  // back through time: gates become the gradients of the pre-activations
  Tensor dh0 = on.make({P, B, H}), dc0 = on.make({P, B, H});
  on.backward({P, B, T, H, bf16, burn_in, at(gates), fp(cells), fp(c0), raw(w_hh_), bp(reset), fp(dy), nullptr, nullptr,
               at(dh0), at(dc0)});

  const Tensor dx = feature_grads ? shaped(on.product(gates, net.w_ih), {P, B, T, n.D}) : none;
  if (!param_grads)
    return {loss, td_error, priority, q_taken, h_final, c_final, dx,   none,
            none, none,     none,     none,    none,    none,    none, none};
  Tensor before = on.make({P, B * T, H});
  check(cuda::previous_outputs(at(before), fp(y), fp(h0), bp(reset), P * B, T, H, on.stream));
  const Tensor columns = flipped(gates), top = n.fc ? *online.hidden : y;
  return {loss,
          td_error,
          priority,
          q_taken,
          h_final,
          c_final,
          dx,
          on.product(columns, x),
          on.product(columns, before),
          on.sum_rows(gates),
          n.fc ? on.product(flipped(d_hidden), y) : none,
          n.fc ? on.sum_rows(d_hidden) : none,
          on.product(flipped(d_adv), top),
          on.sum_rows(d_adv),
          n.dueling ? on.product(flipped(d_val), top) : none,
          n.dueling ? on.sum_rows(d_val) : none};
}

// What lstm_unroll keeps for its backward pass, one behind the other.
struct Saved {
  Tensor gates, cells, before, c0;
  static int64_t numbers(int64_t P, int64_t B, int64_t T, int64_t H) {
    return P * B * (T * cuda::kSavedPerStep + cuda::kSavedBeside) * H;
  }
  Saved(const Tensor& flat, int64_t P, int64_t B, int64_t T, int64_t H) {
    Parts parts(flat);
    gates = parts.take({P, B * T, 4 * H});
    cells = parts.take({P, B * T, H});
    before = parts.take({P, B * T, H});
    c0 = parts.take({P, B, H});
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_unroll_gpu(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh,
                                                           Tensor bias, Optional reset, bool save) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const int64_t P = x.size(0), B = x.size(1), T = x.size(2), D = x.size(3), H = w_hh.size(2);
  STD_TORCH_CHECK(P > 0 && B > 0 && T > 0 && D > 0 && H > 0, "x: expected positive sizes");
  check_sizes(P, B);
  x = shaped(need(x, "x", {P, B, T, D}, kFloat), {P, B * T, D});
  h0 = need(h0, "h0", {P, B, H}, kFloat);
  c0 = need(c0, "c0", {P, B, H}, kFloat);
  w_ih = need(w_ih, "w_ih", {P, 4 * H, D}, kFloat);
  w_hh = need(w_hh, "w_hh", {P, 4 * H, H}, kFloat);
  bias = need(bias, "bias", {P, 4 * H}, kFloat);
  reset = need(reset, "reset", {P, B, T}, kBool);
  const Call on(x, false);
  const auto at = [](Tensor& t) { return Call::at(t); };
  const Tensor gx = on.affine(x, w_ih, bias, false);
  Tensor y = on.make({P, B, T, H}), h_final = on.make({P, B, H}), c_final = on.make({P, B, H});
  Tensor saved = on.make({save ? Saved::numbers(P, B, T, H) : 0});
  std::optional<Saved> kept;
  if (save) kept.emplace(saved, P, B, T, H);
  cuda::UnrollForward up{P, B, T, H, false, 1, {}};
  up.chain[0] = {fp(gx),
                 raw(w_hh),
                 fp(h0),
                 fp(c0),
                 bp(reset),
                 at(y),
                 save ? at(kept->gates) : nullptr,
                 save ? at(kept->cells) : nullptr,
                 at(h_final),
                 at(c_final)};
  on.forward(up);
  if (save) {
    check(cuda::previous_outputs(at(kept->before), fp(y), fp(h0), bp(reset), P * B, T, H, on.stream));
    torch::stable::copy_(kept->c0, c0);
  }
  return {y, h_final, c_final, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_unroll_backward_gpu(Tensor dy, Tensor dh, Tensor dc,
                                                                                    Tensor saved, Tensor x, Tensor w_ih,
                                                                                    Tensor w_hh, Optional reset) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const int64_t P = x.size(0), B = x.size(1), T = x.size(2), D = x.size(3), H = w_hh.size(2);
  dy = need(dy, "dy", {P, B, T, H}, kFloat);
  dh = need(dh, "dh", {P, B, H}, kFloat);
  dc = need(dc, "dc", {P, B, H}, kFloat);
  saved = need(saved, "saved", {Saved::numbers(P, B, T, H)}, kFloat);
  x = shaped(need(x, "x", {P, B, T, D}, kFloat), {P, B * T, D});
  w_ih = need(w_ih, "w_ih", {P, 4 * H, D}, kFloat);
  w_hh = need(w_hh, "w_hh", {P, 4 * H, H}, kFloat);
  reset = need(reset, "reset", {P, B, T}, kBool);
  const Call on(x, false);
  const Saved kept(saved, P, B, T, H);
  Tensor gates = torch::stable::clone(kept.gates);  // they turn into their gradients
  Tensor dh0 = on.make({P, B, H}), dc0 = on.make({P, B, H});
  on.backward({P, B, T, H, false, 0, Call::at(gates), fp(kept.cells), fp(kept.c0), raw(w_hh), bp(reset), fp(dy), fp(dh),
               fp(dc), Call::at(dh0), Call::at(dc0)});
  const Tensor columns = flipped(gates);
  return {shaped(on.product(gates, w_ih), {P, B, T, D}),
          dh0,
          dc0,
          on.product(columns, x),
          on.product(columns, kept.before),
          on.sum_rows(gates)};
}

std::tuple<Tensor, Tensor> lstm_step_gpu(Tensor x, Tensor h, Tensor c, Tensor packed, Optional reset) {
  STD_TORCH_CHECK(x.dim() == 3 && h.dim() == 3 && packed.dim() == 2, "x: expected [P, E, D]; packed: expected [P, N]");
  const int64_t P = x.size(0), E = x.size(1), D = x.size(2), H = h.size(2);
  STD_TORCH_CHECK(P > 0 && E > 0 && D > 0 && H > 0, "x: expected positive sizes");
  STD_TORCH_CHECK(packed.size(0) == P && packed.size(1) >= 4 * H * (D + H + 1), "packed: too small for P, D and H");
  check_sizes(P, E);
  x = need(x, "x", {P, E, D}, kFloat);
  h = need(h, "h", {P, E, H}, kFloat);
  c = need(c, "c", {P, E, H}, kFloat);
  packed = need(packed, "packed", {P, packed.size(1)}, kFloat);
  reset = need(reset, "reset", {P, E}, kBool);
  const Call on(x, false);
  Parts parts(packed);
  const Tensor w_ih = parts.take({P, 4 * H, D}), w_hh = parts.take({P, 4 * H, H}), bias = parts.take({P, 4 * H});
  const Tensor gx = on.affine(x, w_ih, bias, false);
  Tensor y = on.make({P, E, H}), h_out = on.make({P, E, H}), c_out = on.make({P, E, H});
  cuda::UnrollForward up{P, E, 1, H, false, 1, {}};
  up.chain[0] = {fp(gx),      raw(w_hh), fp(h),   fp(c),           bp(reset),
                 Call::at(y), nullptr,   nullptr, Call::at(h_out), Call::at(c_out)};
  on.forward(up);
  return {h_out, c_out};
}

}  // namespace
}  // namespace townlet
