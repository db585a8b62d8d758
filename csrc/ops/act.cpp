// One acting step in one call.  A thread that has computed the Q-values of a run of rows (cpu/act.h) at once makes the
// epsilon-greedy choice for them.  It draws from math/philox.h, so a draw is a function of (seed, step, environment).

#include <atomic>
#include <tuple>

#include "../math/philox.h"
#include "tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // panels of P encoders, weights[i] [P, out, in] and biases[i] [P, out]: [P, encoder_size]
  m.def("pack_encoder(Tensor[] weights, Tensor[] biases) -> Tensor");
  // floats of one encoder's panels; widths: what comes in, then what each layer puts out
  m.def("encoder_size(int[] widths) -> int");
  // action, q, h, c; packed is pack's, encoder is pack_encoder's; head: units of the head's hidden layer, 0 for none
  m.def(
      "act(Tensor obs, Tensor h, Tensor c, Tensor? reset, Tensor? legal, Tensor? epsilon, Tensor? seeds, int step, "
      "Tensor? encoder, int[] widths, Tensor packed, int head, int actions, bool dueling) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

namespace townlet {
namespace {

constexpr uint32_t kActingStream = 1;  // of math/philox.h

EncoderSizes sizes_of(int64_t P, const std::vector<int64_t>& widths) {
  STD_TORCH_CHECK(!widths.empty(), "widths: expected at least one");
  for (int64_t width : widths) STD_TORCH_CHECK(width > 0, "widths: expected positive sizes");
  return {P, static_cast<int64_t>(widths.size()) - 1, widths.data()};
}

int64_t encoder_size(const std::vector<int64_t>& widths) { return kernels().encoder_size(sizes_of(1, widths)); }

Tensor pack_encoder_cpu(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() == biases.size(),
                  "weights: expected one or more, as many as biases");
  STD_TORCH_CHECK(weights[0].dim() == 3, "weights: expected [P, out, in]");
  const int64_t P = weights[0].size(0);
  std::vector<int64_t> widths{weights[0].size(2)};
  std::vector<Tensor> kept;
  std::vector<const float*> w, b;
  for (size_t i = 0; i < weights.size(); ++i) {
    STD_TORCH_CHECK(weights[i].dim() == 3, "weights: expected [P, out, in]");
    const int64_t in = widths.back(), out = weights[i].size(1);
    STD_TORCH_CHECK(P > 0 && in > 0 && out > 0, "weights: expected positive sizes");
    kept.push_back(need(weights[i], "weights", {P, out, in}, kFloat));
    w.push_back(kept.back().const_data_ptr<float>());
    kept.push_back(need(biases[i], "biases", {P, out}, kFloat));
    b.push_back(kept.back().const_data_ptr<float>());
    widths.push_back(out);
  }
  Tensor packed = empty(weights[0], {P, encoder_size(widths)});
  kernels().pack_encoder(sizes_of(P, widths), w.data(), b.data(), packed.mutable_data_ptr<float>(), kParallel);
  return packed;
}

struct Choice {
  int64_t E, A, step;
  const float* q;         // [P, E, A]
  const bool* legal;      // [P, E, A] or null
  const double* epsilon;  // [P, E] or null
  const int64_t* seeds;   // [P]
  int64_t* action;        // [P, E]

  // The choice is greedy (the lowest index among equals) or uniform over the legal actions.  Where no action is legal,
  // all of them count as legal.
  void row(int64_t at) const {
    const float* value = q + at * A;
    const bool* allowed = legal ? legal + at * A : nullptr;
    int64_t best = -1, count = 0;
    for (int64_t a = 0; allowed && a < A; ++a) count += allowed[a];
    if (!count) {
      allowed = nullptr;
      count = A;
    }
    for (int64_t a = 0; a < A; ++a)
      if ((!allowed || allowed[a]) && (best < 0 || value[a] > value[best])) best = a;
    if (epsilon && epsilon[at] > 0.0) {
      const auto draw = philox_uniform_pair(static_cast<uint64_t>(seeds[at / E]), kActingStream,
                                            static_cast<uint64_t>(step), static_cast<uint32_t>(at % E));
      if (draw[0] < epsilon[at]) {
        auto left = static_cast<int64_t>(draw[1] * static_cast<double>(count));  // below count, as the draw is below 1
        best = 0;
        while (allowed ? !allowed[best] || left-- > 0 : best < left) ++best;
      }
    }
    action[at] = best;
  }
};

void check_epsilon(const Tensor& epsilon) {
  const double* value = dp(epsilon);
  for (int64_t i = 0; i < epsilon.numel(); ++i)
    if (!(value[i] >= 0.0 && value[i] <= 1.0))
      refuse("epsilon is ", digits(value[i]), " at ", position(epsilon, i), "; expected values in [0, 1]");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> act_cpu(Tensor obs, Tensor h, Tensor c, Optional reset, Optional legal,
                                                   Optional epsilon, Optional seeds, int64_t step, Optional encoder,
                                                   const std::vector<int64_t>& widths, Tensor packed, int64_t head,
                                                   int64_t actions, bool dueling) {
  STD_TORCH_CHECK(obs.dim() == 3 && h.dim() == 3 && packed.dim() == 2, "obs: expected [P, E, obs_size]");
  const int64_t P = obs.size(0), E = obs.size(1), H = h.size(2), A = actions;
  const EncoderSizes sizes = sizes_of(P, widths);
  STD_TORCH_CHECK(encoder.has_value() == (sizes.layers > 0), "encoder: does not fit widths");
  STD_TORCH_CHECK(P > 0 && E > 0 && H > 0 && A > 0 && head >= 0, "act: expected positive sizes");
  const NetSizes net{P, widths.back(), H, head ? head : H, A, head > 0, dueling};
  STD_TORCH_CHECK(packed.size(1) == kernels().pack_size(net, false), "packed: does not fit the sizes");
  obs = need(obs, "obs", {P, E, widths[0]}, kFloat);
  h = need(h, "h", {P, E, H}, kFloat);
  c = need(c, "c", {P, E, H}, kFloat);
  packed = need(packed, "packed", {P, packed.size(1)}, kFloat);
  encoder = need(encoder, "encoder", {P, kernels().encoder_size(sizes)}, kFloat);
  reset = need(reset, "reset", {P, E}, kBool);
  legal = need(legal, "legal", {P, E, A}, kBool);
  STD_TORCH_CHECK(epsilon.has_value() == seeds.has_value(), "epsilon and seeds come together");
  epsilon = need(epsilon, "epsilon", {P, E}, ScalarType::Double);
  seeds = need(seeds, "seeds", {P}, kLong);
  if (epsilon) check_epsilon(*epsilon);

  Tensor h_out = empty(obs, {P, E, H}), c_out = empty(obs, {P, E, H}), q = empty(obs, {P, E, A});
  Tensor action = torch::stable::new_empty(obs, std::vector<int64_t>{P, E}, kLong);
  Choice choice{E, A, step, fp(q), bp(legal), dp(epsilon), ip(seeds), action.mutable_data_ptr<int64_t>()};
  StepProblem problem{};
  problem.E = E;
  problem.net = net;
  problem.packed = fp(packed);
  problem.packed_stride = packed.size(1);
  problem.encoder = sizes;
  problem.encoder_packed = fp(encoder);
  problem.x = fp(obs);
  problem.h = fp(h);
  problem.c = fp(c);
  problem.reset = bp(reset);
  problem.h_out = h_out.mutable_data_ptr<float>();
  problem.c_out = c_out.mutable_data_ptr<float>();
  problem.q = q.mutable_data_ptr<float>();
  problem.context = &choice;
  problem.done = [](void* self, int64_t at, int64_t rows) {
    for (int64_t i = at; i < at + rows; ++i) static_cast<const Choice*>(self)->row(i);
  };
  kernels().step(problem, kParallel);
  return {action, q, h_out, c_out};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("encoder_size", TORCH_BOX(&townlet::encoder_size));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("pack_encoder", TORCH_BOX(&townlet::pack_encoder_cpu));
  m.impl("act", TORCH_BOX(&townlet::act_cpu));
}
