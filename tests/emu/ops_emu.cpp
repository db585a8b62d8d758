// The operators of csrc/cuda on the host shim, as torch.ops.townlet_emu.*: same schemas, CPU tensors.

#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/resident.h"
#include "../../csrc/ops/net.h"
#include "cuda_runtime.h"

namespace townlet {
namespace {

struct Guard {
  explicit Guard(int) {}
  explicit Guard(const Tensor&) {}
};
void* current_stream(const Tensor&) { return nullptr; }
void check(int error) { STD_TORCH_CHECK(error == 0, "launch failed: ", error); }

// The GPU that the plan is made for; none: a launch per step.
std::optional<cuda::Gpu> gpu;
std::optional<cuda::Gpu> gpu_of(int) { return gpu; }
void set_gpu(int64_t arch, int64_t sms) {
  gpu = std::nullopt;
  if (arch > 0) gpu = cuda::Gpu{static_cast<int>(arch), static_cast<int>(sms), cuda::resident_groups_at_once};
  emu::options.clusters.clear();
}
void set_clusters(int64_t blocks, int64_t at_once) {
  emu::options.clusters[static_cast<unsigned>(blocks)] = static_cast<int>(at_once);
}

Tensor rounded(const Tensor& t) {
  return torch::stable::to(torch::stable::to(t, ScalarType::BFloat16), ScalarType::Float);
}
Tensor product_bf16(const Tensor& a, const Tensor& b) { return torch::stable::matmul(rounded(a), rounded(b)); }

void set_order(int64_t order) { emu::options.order = static_cast<unsigned>(order); }
int64_t sites() { return emu::sites(); }
std::string site(int64_t index) { return emu::site(static_cast<int>(index)); }
void leave_out(int64_t index) {
  emu::options.ignore = static_cast<int>(index);
  emu::options.strict = index < 0;
}

}  // namespace
}  // namespace townlet

#include "../../csrc/cuda/ops.inl"

STABLE_TORCH_LIBRARY(townlet_emu, m) {
  m.def("set_order(int order) -> ()");
  // compute capability and number of SMs that the plan is made for; 0, 0: a launch per step
  m.def("set_gpu(int arch, int sms) -> ()");
  // how many clusters of so many blocks the GPU runs at the same time, until the next set_gpu
  m.def("set_clusters(int blocks, int at_once) -> ()");
  m.def("unroll_plan(int device, int P, int B, int T, int H, bool bf16, int chains, bool backward) -> str");
  // barriers met so far, by place in the source; the mutation tests' switch: leave one out, -1 none
  m.def("sites() -> int");
  m.def("site(int index) -> str");
  m.def("leave_out(int index) -> ()");
  m.def(
      "pack(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, bool bf16) -> Tensor");
  m.def(
      "td_unroll(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, Tensor? target, Tensor features_online, Tensor? features_target, Tensor h0, "
      "Tensor c0, Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask, Tensor weight, "
      "Tensor? legal, Tensor gamma, int n_step, int burn_in, bool double_q, float rescale_eps, float huber_delta, "
      "float eta, bool bf16, bool param_grads, bool feature_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_unroll(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? reset, bool save) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_unroll_backward(Tensor dy, Tensor dh, Tensor dc, Tensor saved, Tensor x, Tensor w_ih, Tensor w_hh, "
      "Tensor? reset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("lstm_step(Tensor x, Tensor h, Tensor c, Tensor packed, Tensor? reset) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(townlet_emu, CPU, m) {
  m.impl("pack", TORCH_BOX(&townlet::pack_gpu));
  m.impl("td_unroll", TORCH_BOX(&townlet::td_unroll_gpu));
  m.impl("lstm_unroll", TORCH_BOX(&townlet::lstm_unroll_gpu));
  m.impl("lstm_unroll_backward", TORCH_BOX(&townlet::lstm_unroll_backward_gpu));
  m.impl("lstm_step", TORCH_BOX(&townlet::lstm_step_gpu));
}
STABLE_TORCH_LIBRARY_IMPL(townlet_emu, CompositeExplicitAutograd, m) {
  m.impl("set_order", TORCH_BOX(&townlet::set_order));
  m.impl("set_gpu", TORCH_BOX(&townlet::set_gpu));
  m.impl("set_clusters", TORCH_BOX(&townlet::set_clusters));
  m.impl("unroll_plan", TORCH_BOX(&townlet::unroll_plan));
  m.impl("sites", TORCH_BOX(&townlet::sites));
  m.impl("site", TORCH_BOX(&townlet::site));
  m.impl("leave_out", TORCH_BOX(&townlet::leave_out));
}
