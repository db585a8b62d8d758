// The encoder over the Town's window as an operator over cpu/spatial.h.

#include <tuple>

#include "tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // features [P, N, D] of obs [P, N, numbers], and what the backward pass needs (empty where not asked for)
  m.def(
      "spatial_encode(Tensor obs, Tensor conv0_w, Tensor conv0_b, Tensor conv1_w, Tensor conv1_b, Tensor window_w, "
      "Tensor window_b, Tensor position_w, Tensor position_b, Tensor meters_w, Tensor meters_b, Tensor affordance_w, "
      "Tensor affordance_b, int height, int width, bool save) -> (Tensor, Tensor)");
  // gradients of the twelve weights
  m.def(
      "spatial_encode_backward(Tensor grad, Tensor features, Tensor saved, Tensor obs, Tensor conv0_w, Tensor conv1_w, "
      "Tensor window_w, Tensor position_w, Tensor meters_w, Tensor affordance_w, int height, int width) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

namespace townlet {
namespace {

SpatialSizes sizes(const Tensor& obs, const Tensor& conv0_w, const Tensor& conv1_w, const Tensor& window_w,
                   std::initializer_list<const Tensor*> small, int64_t height, int64_t width) {
  STD_TORCH_CHECK(obs.dim() == 3 && conv0_w.dim() == 5 && conv1_w.dim() == 5 && window_w.dim() == 3,
                  "obs: expected [P, N, numbers]; convolutions: [P, out, in, 3, 3]; window: [P, out, in]");
  SpatialSizes n{};
  n.P = obs.size(0);
  n.N = obs.size(1);
  n.height = height;
  n.width = width;
  n.planes = conv0_w.size(2);
  n.C0 = conv0_w.size(1);
  n.C1 = conv1_w.size(1);
  n.M = window_w.size(1);
  int64_t numbers = n.planes * height * width;
  int i = 0;
  for (const Tensor* w : small) {
    STD_TORCH_CHECK(w->dim() == 3, "layers: expected [P, out, in]");
    n.out[i] = w->size(1);
    n.in[i] = w->size(2);
    numbers += n.in[i++];
  }
  const int64_t lanes = kernels().lanes;
  STD_TORCH_CHECK(n.P > 0 && n.N > 0 && height > 0 && width > 0, "obs: expected positive sizes");
  STD_TORCH_CHECK(n.C0 % lanes == 0 && n.C1 % lanes == 0 && n.M % lanes == 0 && n.out[0] % lanes == 0 &&
                      n.out[1] % lanes == 0 && n.out[2] % lanes == 0,
                  "layers: expected multiples of 16 units");
  STD_TORCH_CHECK(obs.size(2) == numbers, "obs: unexpected size");
  return n;
}

std::tuple<Tensor, Tensor> spatial_encode_cpu(const Tensor& obs, const Tensor& conv0_w, const Tensor& conv0_b,
                                              const Tensor& conv1_w, const Tensor& conv1_b, const Tensor& window_w,
                                              const Tensor& window_b, const Tensor& position_w,
                                              const Tensor& position_b, const Tensor& meters_w, const Tensor& meters_b,
                                              const Tensor& affordance_w, const Tensor& affordance_b, int64_t height,
                                              int64_t width, bool save) {
  const SpatialSizes n = sizes(obs, conv0_w, conv1_w, window_w, {&position_w, &meters_w, &affordance_w}, height, width);
  const Tensor x = need(obs, "obs", {n.P, n.N, obs.size(2)}, kFloat);
  const Tensor w0 = need(conv0_w, "conv0_w", {n.P, n.C0, n.planes, 3, 3}, kFloat),
               b0 = need(conv0_b, "conv0_b", {n.P, n.C0}, kFloat),
               w1 = need(conv1_w, "conv1_w", {n.P, n.C1, n.C0, 3, 3}, kFloat),
               b1 = need(conv1_b, "conv1_b", {n.P, n.C1}, kFloat),
               ww = need(window_w, "window_w", {n.P, n.M, n.C1 * height * width}, kFloat),
               bw = need(window_b, "window_b", {n.P, n.M}, kFloat);
  const Tensor w[3] = {need(position_w, "position_w", {n.P, n.out[0], n.in[0]}, kFloat),
                       need(meters_w, "meters_w", {n.P, n.out[1], n.in[1]}, kFloat),
                       need(affordance_w, "affordance_w", {n.P, n.out[2], n.in[2]}, kFloat)};
  const Tensor b[3] = {need(position_b, "position_b", {n.P, n.out[0]}, kFloat),
                       need(meters_b, "meters_b", {n.P, n.out[1]}, kFloat),
                       need(affordance_b, "affordance_b", {n.P, n.out[2]}, kFloat)};
  Tensor features = empty(obs, {n.P, n.N, n.M + n.out[0] + n.out[1] + n.out[2]});
  Tensor saved = empty(obs, {save ? n.P : 0, kernels().spatial_saved(n)});
  const SpatialProblem q{n,
                         fp(x),
                         fp(w0),
                         fp(b0),
                         fp(w1),
                         fp(b1),
                         fp(ww),
                         fp(bw),
                         {fp(w[0]), fp(w[1]), fp(w[2])},
                         {fp(b[0]), fp(b[1]), fp(b[2])},
                         features.mutable_data_ptr<float>(),
                         save ? saved.mutable_data_ptr<float>() : nullptr};
  kernels().spatial_encode(q, kParallel);
  return {features, saved};
}

using Grads =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads spatial_encode_backward_cpu(const Tensor& grad, const Tensor& features, const Tensor& saved, const Tensor& obs,
                                  const Tensor& conv0_w, const Tensor& conv1_w, const Tensor& window_w,
                                  const Tensor& position_w, const Tensor& meters_w, const Tensor& affordance_w,
                                  int64_t height, int64_t width) {
  const SpatialSizes n = sizes(obs, conv0_w, conv1_w, window_w, {&position_w, &meters_w, &affordance_w}, height, width);
  const int64_t D = n.M + n.out[0] + n.out[1] + n.out[2];
  const Tensor g = need(grad, "grad", {n.P, n.N, D}, kFloat), f = need(features, "features", {n.P, n.N, D}, kFloat);
  const Tensor kept = need(saved, "saved", {n.P, kernels().spatial_saved(n)}, kFloat);
  const Tensor x = need(obs, "obs", {n.P, n.N, obs.size(2)}, kFloat);
  const Tensor w1 = need(conv1_w, "conv1_w", {n.P, n.C1, n.C0, 3, 3}, kFloat);
  const Tensor ww = need(window_w, "window_w", {n.P, n.M, n.C1 * height * width}, kFloat);
  Tensor dw0 = empty(obs, {n.P, n.C0, n.planes, 3, 3}), db0 = empty(obs, {n.P, n.C0}),
         dw1 = empty(obs, {n.P, n.C1, n.C0, 3, 3}), db1 = empty(obs, {n.P, n.C1}),
         dww = empty(obs, {n.P, n.M, n.C1 * height * width}), dbw = empty(obs, {n.P, n.M});
  Tensor dw[3], db[3];
  for (int i = 0; i < 3; ++i) {
    dw[i] = empty(obs, {n.P, n.out[i], n.in[i]});
    db[i] = empty(obs, {n.P, n.out[i]});
  }
  const auto to = [](Tensor& t) { return t.mutable_data_ptr<float>(); };
  const SpatialGradProblem q{n,
                             fp(g),
                             fp(f),
                             fp(kept),
                             fp(x),
                             fp(w1),
                             fp(ww),
                             to(dw0),
                             to(db0),
                             to(dw1),
                             to(db1),
                             to(dww),
                             to(dbw),
                             {to(dw[0]), to(dw[1]), to(dw[2])},
                             {to(db[0]), to(db[1]), to(db[2])}};
  kernels().spatial_encode_backward(q, kParallel);
  return {dw0, db0, dw1, db1, dww, dbw, dw[0], db[0], dw[1], db[1], dw[2], db[2]};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("spatial_encode", TORCH_BOX(&townlet::spatial_encode_cpu));
  m.impl("spatial_encode_backward", TORCH_BOX(&townlet::spatial_encode_backward_cpu));
}
