// A network's weights in the layout of the CPU kernels, as an operator over cpu/pack.h.

#include "net.h"

STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // panels of one network: [P, packed size]
  m.def(
      "pack(Tensor w_ih, Tensor w_hh, Tensor bias, Tensor? w_fc, Tensor? b_fc, Tensor w_adv, Tensor b_adv, "
      "Tensor? w_val, Tensor? b_val, bool bf16) -> Tensor");
}

namespace townlet {
namespace {

Tensor pack_cpu(const Tensor& w_ih, const Tensor& w_hh, const Tensor& bias, const Optional& w_fc, const Optional& b_fc,
                const Tensor& w_adv, const Tensor& b_adv, const Optional& w_val, const Optional& b_val, bool bf16) {
  const Net net(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val);
  Tensor out = empty(w_ih, {net.n.P, packed_size(net.n, bf16)});
  kernels().pack(net.n, net.view(), bf16, out.mutable_data_ptr<float>(), kParallel);
  return out;
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) { m.impl("pack", TORCH_BOX(&townlet::pack_cpu)); }
