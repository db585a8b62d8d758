// The optimiser's step as an operator over cpu/adam.h.

#include <cmath>

#include "tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // global gradient norms before clipping [P]; nothing is written where one of them is not finite
  m.def(
      "adam_step(Tensor(a!) weights, Tensor(b!) m, Tensor(c!) v, Tensor grad, Tensor lr, Tensor? clip_norm, "
      "float beta1, float beta2, float eps, int step) -> Tensor");
}

namespace townlet {
namespace {

float* written(Tensor& t, const char* name, int64_t P, int64_t N) {
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
  return need(t, name, {P, N}, kFloat).mutable_data_ptr<float>();
}

Tensor adam_step_cpu(Tensor weights, Tensor m, Tensor v, Tensor grad, Tensor lr, Optional clip_norm, double beta1,
                     double beta2, double eps, int64_t step) {
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) > 0 && weights.size(1) > 0, "weights: expected [P, N]");
  STD_TORCH_CHECK(step >= 1, "step: expected at least 1");
  const int64_t P = weights.size(0), N = weights.size(1);
  grad = need(grad, "grad", {P, N}, kFloat);
  lr = need(lr, "lr", {P}, kFloat);
  clip_norm = need(clip_norm, "clip_norm", {P}, kFloat);
  Tensor norm = empty(grad, {P});
  const double steps = static_cast<double>(step);
  const AdamProblem problem{P,
                            N,
                            written(weights, "weights", P, N),
                            written(m, "m", P, N),
                            written(v, "v", P, N),
                            fp(grad),
                            fp(lr),
                            fp(clip_norm),
                            static_cast<float>(1.0 - beta1),
                            static_cast<float>(1.0 - beta2),
                            static_cast<float>(eps),
                            static_cast<float>(1.0 / (1.0 - std::pow(beta1, steps))),
                            static_cast<float>(1.0 / (1.0 - std::pow(beta2, steps))),
                            norm.mutable_data_ptr<float>()};
  kernels().adam_step(problem, kParallel);
  return norm;
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) { m.impl("adam_step", TORCH_BOX(&townlet::adam_step_cpu)); }
