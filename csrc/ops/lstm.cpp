// The LSTM over time and its single step as operators over cpu/lstm_unroll.h and cpu/act.h.

#include <tuple>

#include "../cuda/unroll.h"
#include "tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // y, h_T, c_T, and what the backward pass needs (empty where not asked for)
  m.def(
      "lstm_unroll(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? reset, bool save) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // gradients of x, h0, c0, w_ih, w_hh, bias
  m.def(
      "lstm_unroll_backward(Tensor dy, Tensor dh, Tensor dc, Tensor saved, Tensor x, Tensor w_ih, Tensor w_hh, "
      "Tensor? reset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // floats that lstm_unroll keeps of a sequence for its backward pass: for each time step, and beside those
  m.def("lstm_saved_size(int D, int H, bool cuda) -> (int, int)");
  // one acting step from packed weights: h, c
  m.def("lstm_step(Tensor x, Tensor h, Tensor c, Tensor packed, Tensor? reset) -> (Tensor, Tensor)");
  // which form of the recurrent kernels the GPU of this number runs, in words; cuda/ops.inl has it
  m.def("unroll_plan(int device, int P, int B, int T, int H, bool bf16, int chains, bool backward) -> str");
}

namespace townlet {
namespace {

struct LstmSizes {
  int64_t P, B, T, D, H;
  int64_t saved() const { return kernels().lstm_saved(D, H).of(P, B, T); }  // floats for the backward pass
};

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_unroll_cpu(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh,
                                                           Tensor bias, Optional reset, bool save) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const LstmSizes n{x.size(0), x.size(1), x.size(2), x.size(3), w_hh.size(2)};
  STD_TORCH_CHECK(n.P > 0 && n.B > 0 && n.T > 0 && n.D > 0 && n.H > 0, "x: expected positive sizes");
  x = need(x, "x", {n.P, n.B, n.T, n.D}, kFloat);
  h0 = need(h0, "h0", {n.P, n.B, n.H}, kFloat);
  c0 = need(c0, "c0", {n.P, n.B, n.H}, kFloat);
  w_ih = need(w_ih, "w_ih", {n.P, 4 * n.H, n.D}, kFloat);
  w_hh = need(w_hh, "w_hh", {n.P, 4 * n.H, n.H}, kFloat);
  bias = need(bias, "bias", {n.P, 4 * n.H}, kFloat);
  reset = need(reset, "reset", {n.P, n.B, n.T}, kBool);
  Tensor y = empty(x, {n.P, n.B, n.T, n.H}), h_final = empty(x, {n.P, n.B, n.H}), c_final = empty(x, {n.P, n.B, n.H});
  Tensor saved = empty(x, {save ? n.saved() : 0});
  const UnrollProblem problem{n.P,
                              n.B,
                              n.T,
                              n.D,
                              n.H,
                              fp(x),
                              fp(h0),
                              fp(c0),
                              fp(w_ih),
                              fp(w_hh),
                              fp(bias),
                              bp(reset),
                              y.mutable_data_ptr<float>(),
                              h_final.mutable_data_ptr<float>(),
                              c_final.mutable_data_ptr<float>(),
                              save ? saved.mutable_data_ptr<float>() : nullptr};
  kernels().lstm_unroll(problem, kParallel);
  return {y, h_final, c_final, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_unroll_backward_cpu(Tensor dy, Tensor dh, Tensor dc,
                                                                                    const Tensor& saved,
                                                                                    const Tensor& x, Tensor w_ih,
                                                                                    Tensor w_hh, Optional reset) {
  STD_TORCH_CHECK(x.dim() == 4 && w_hh.dim() == 3, "x: expected [P, B, T, D]; w_hh: expected [P, 4H, H]");
  const LstmSizes n{x.size(0), x.size(1), x.size(2), x.size(3), w_hh.size(2)};
  dy = need(dy, "dy", {n.P, n.B, n.T, n.H}, kFloat);
  dh = need(dh, "dh", {n.P, n.B, n.H}, kFloat);
  dc = need(dc, "dc", {n.P, n.B, n.H}, kFloat);
  w_ih = need(w_ih, "w_ih", {n.P, 4 * n.H, n.D}, kFloat);
  w_hh = need(w_hh, "w_hh", {n.P, 4 * n.H, n.H}, kFloat);
  Tensor work = torch::stable::clone(need(saved, "saved", {n.saved()}, kFloat));  // gates turn into their gradients
  reset = need(reset, "reset", {n.P, n.B, n.T}, kBool);
  Tensor dx = empty(x, {n.P, n.B, n.T, n.D}), dh0 = empty(x, {n.P, n.B, n.H}), dc0 = empty(x, {n.P, n.B, n.H}),
         dw_ih = empty(x, {n.P, 4 * n.H, n.D}), dw_hh = empty(x, {n.P, 4 * n.H, n.H}), dbias = empty(x, {n.P, 4 * n.H});
  const UnrollGradProblem problem{n.P,
                                  n.B,
                                  n.T,
                                  n.D,
                                  n.H,
                                  fp(w_ih),
                                  fp(w_hh),
                                  bp(reset),
                                  work.mutable_data_ptr<float>(),
                                  fp(dy),
                                  fp(dh),
                                  fp(dc),
                                  dx.mutable_data_ptr<float>(),
                                  dh0.mutable_data_ptr<float>(),
                                  dc0.mutable_data_ptr<float>(),
                                  dw_ih.mutable_data_ptr<float>(),
                                  dw_hh.mutable_data_ptr<float>(),
                                  dbias.mutable_data_ptr<float>()};
  kernels().lstm_unroll_backward(problem, kParallel);
  return {dx, dh0, dc0, dw_ih, dw_hh, dbias};
}

std::tuple<Tensor, Tensor> lstm_step_cpu(Tensor x, Tensor h, Tensor c, Tensor packed, Optional reset) {
  STD_TORCH_CHECK(x.dim() == 3 && h.dim() == 3 && packed.dim() == 2, "x: expected [P, E, D]; packed: expected [P, N]");
  const int64_t P = x.size(0), E = x.size(1), D = x.size(2), H = h.size(2);
  STD_TORCH_CHECK(P > 0 && E > 0 && D > 0 && H > 0, "x: expected positive sizes");
  const NetSizes net{P, D, H, H, 0, false, false};  // the LSTM alone
  STD_TORCH_CHECK(packed.size(1) >= kernels().pack_size(net, false), "packed: too small for D and H");
  x = need(x, "x", {P, E, D}, kFloat);
  h = need(h, "h", {P, E, H}, kFloat);
  c = need(c, "c", {P, E, H}, kFloat);
  packed = need(packed, "packed", {P, packed.size(1)}, kFloat);
  reset = need(reset, "reset", {P, E}, kBool);
  Tensor h_out = empty(x, {P, E, H}), c_out = empty(x, {P, E, H});
  StepProblem problem{};
  problem.E = E;
  problem.net = net;
  problem.packed = fp(packed);
  problem.packed_stride = packed.size(1);
  problem.x = fp(x);
  problem.h = fp(h);
  problem.c = fp(c);
  problem.reset = bp(reset);
  problem.h_out = h_out.mutable_data_ptr<float>();
  problem.c_out = c_out.mutable_data_ptr<float>();
  kernels().step(problem, kParallel);
  return {h_out, c_out};
}

std::tuple<int64_t, int64_t> lstm_saved_size(int64_t D, int64_t H, bool cuda) {
  STD_TORCH_CHECK(D > 0 && H > 0, "lstm_saved_size: expected positive sizes");
  if (cuda) return {cuda::kSavedPerStep * H, cuda::kSavedBeside * H};
  const SavedSize size = kernels().lstm_saved(D, H);
  return {size.step, size.rest};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("lstm_saved_size", TORCH_BOX(&townlet::lstm_saved_size));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("lstm_unroll", TORCH_BOX(&townlet::lstm_unroll_cpu));
  m.impl("lstm_unroll_backward", TORCH_BOX(&townlet::lstm_unroll_backward_cpu));
  m.impl("lstm_step", TORCH_BOX(&townlet::lstm_step_cpu));
}
