// A network's weights in the layout of the CPU kernels, as an operator over cpu/pack.h.

#include "net.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // panels of P networks: [P, pack_size]
  m.def(
      "pack(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, bool bf16) -> Tensor");
  // floats of one network's panels; head is F, or 0 without the head's hidden layer
  m.def("pack_size(int D, int H, int head, int A, bool dueling, bool bf16) -> int");
}

namespace townlet {
namespace {

Tensor pack_cpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc, const Optional& b_fc,
                const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val, const Optional& b_val, bool bf16) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  Tensor out = empty(w_ih, {net.n.P, kernels().pack_size(net.n, bf16)});
  kernels().pack(net.n, net.view(), bf16, out.mutable_data_ptr<float>(), kParallel);
  return out;
}

int64_t pack_size(int64_t D, int64_t H, int64_t head, int64_t A, bool dueling, bool bf16) {
  STD_TORCH_CHECK(D > 0 && H > 0 && head >= 0 && A > 0, "pack_size: expected positive sizes");
  return kernels().pack_size({1, D, H, head ? head : H, A, head > 0, dueling}, bf16);
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("pack_size", TORCH_BOX(&townlet::pack_size));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) { m.impl("pack", TORCH_BOX(&townlet::pack_cpu)); }
