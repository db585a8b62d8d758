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

std::tuple<Tensor, Tensor> spatial_encode_cpu(Tensor obs, Tensor conv0_w, Tensor conv0_b, Tensor conv1_w,
                                              Tensor conv1_b, Tensor window_w, Tensor window_b, Tensor position_w,
                                              Tensor position_b, Tensor meters_w, Tensor meters_b, Tensor affordance_w,
                                              Tensor affordance_b, int64_t height, int64_t width, bool save) {
  const SpatialSizes n = sizes(obs, conv0_w, conv1_w, window_w, {&position_w, &meters_w, &affordance_w}, height, width);
  obs = need(obs, "obs", {n.P, n.N, obs.size(2)}, kFloat);
  conv0_w = need(conv0_w, "conv0_w", {n.P, n.C0, n.planes, 3, 3}, kFloat);
  conv0_b = need(conv0_b, "conv0_b", {n.P, n.C0}, kFloat);
  conv1_w = need(conv1_w, "conv1_w", {n.P, n.C1, n.C0, 3, 3}, kFloat);
  conv1_b = need(conv1_b, "conv1_b", {n.P, n.C1}, kFloat);
  window_w = need(window_w, "window_w", {n.P, n.M, n.C1 * height * width}, kFloat);
  window_b = need(window_b, "window_b", {n.P, n.M}, kFloat);
  position_w = need(position_w, "position_w", {n.P, n.out[0], n.in[0]}, kFloat);
  position_b = need(position_b, "position_b", {n.P, n.out[0]}, kFloat);
  meters_w = need(meters_w, "meters_w", {n.P, n.out[1], n.in[1]}, kFloat);
  meters_b = need(meters_b, "meters_b", {n.P, n.out[1]}, kFloat);
  affordance_w = need(affordance_w, "affordance_w", {n.P, n.out[2], n.in[2]}, kFloat);
  affordance_b = need(affordance_b, "affordance_b", {n.P, n.out[2]}, kFloat);
  Tensor features = empty(obs, {n.P, n.N, n.M + n.out[0] + n.out[1] + n.out[2]});
  Tensor saved = empty(obs, {save ? n.P : 0, kernels().spatial_saved(n)});
  const SpatialProblem problem{n,
                               fp(obs),
                               fp(conv0_w),
                               fp(conv0_b),
                               fp(conv1_w),
                               fp(conv1_b),
                               fp(window_w),
                               fp(window_b),
                               {fp(position_w), fp(meters_w), fp(affordance_w)},
                               {fp(position_b), fp(meters_b), fp(affordance_b)},
                               features.mutable_data_ptr<float>(),
                               save ? saved.mutable_data_ptr<float>() : nullptr};
  kernels().spatial_encode(problem, kParallel);
  return {features, saved};
}

using Grads =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads spatial_encode_backward_cpu(Tensor grad, Tensor features, Tensor saved, Tensor obs, const Tensor& conv0_w,
                                  Tensor conv1_w, Tensor window_w, const Tensor& position_w, const Tensor& meters_w,
                                  const Tensor& affordance_w, int64_t height, int64_t width) {
  const SpatialSizes n = sizes(obs, conv0_w, conv1_w, window_w, {&position_w, &meters_w, &affordance_w}, height, width);
  const int64_t D = n.M + n.out[0] + n.out[1] + n.out[2];
  grad = need(grad, "grad", {n.P, n.N, D}, kFloat);
  features = need(features, "features", {n.P, n.N, D}, kFloat);
  saved = need(saved, "saved", {n.P, kernels().spatial_saved(n)}, kFloat);
  obs = need(obs, "obs", {n.P, n.N, obs.size(2)}, kFloat);
  conv1_w = need(conv1_w, "conv1_w", {n.P, n.C1, n.C0, 3, 3}, kFloat);
  window_w = need(window_w, "window_w", {n.P, n.M, n.C1 * height * width}, kFloat);
  Tensor dconv0_w = empty(obs, {n.P, n.C0, n.planes, 3, 3}), dconv0_b = empty(obs, {n.P, n.C0}),
         dconv1_w = empty(obs, {n.P, n.C1, n.C0, 3, 3}), dconv1_b = empty(obs, {n.P, n.C1}),
         dwindow_w = empty(obs, {n.P, n.M, n.C1 * height * width}), dwindow_b = empty(obs, {n.P, n.M});
  Tensor dsmall_w[3], dsmall_b[3];
  for (int i = 0; i < 3; ++i) {
    dsmall_w[i] = empty(obs, {n.P, n.out[i], n.in[i]});
    dsmall_b[i] = empty(obs, {n.P, n.out[i]});
  }
  const auto to = [](Tensor& t) { return t.mutable_data_ptr<float>(); };
  const SpatialGradProblem problem{n,
                                   fp(grad),
                                   fp(features),
                                   fp(saved),
                                   fp(obs),
                                   fp(conv1_w),
                                   fp(window_w),
                                   to(dconv0_w),
                                   to(dconv0_b),
                                   to(dconv1_w),
                                   to(dconv1_b),
                                   to(dwindow_w),
                                   to(dwindow_b),
                                   {to(dsmall_w[0]), to(dsmall_w[1]), to(dsmall_w[2])},
                                   {to(dsmall_b[0]), to(dsmall_b[1]), to(dsmall_b[2])}};
  kernels().spatial_encode_backward(problem, kParallel);
  return {dconv0_w,    dconv0_b,    dconv1_w,    dconv1_b,    dwindow_w,   dwindow_b,
          dsmall_w[0], dsmall_b[0], dsmall_w[1], dsmall_b[1], dsmall_w[2], dsmall_b[2]};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("spatial_encode", TORCH_BOX(&townlet::spatial_encode_cpu));
  m.impl("spatial_encode_backward", TORCH_BOX(&townlet::spatial_encode_backward_cpu));
}
