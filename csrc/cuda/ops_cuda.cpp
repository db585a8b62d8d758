// The operators for CUDA tensors: on the caller's device and stream.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <map>
#include <mutex>
#include <tuple>

#include "../ops/net.h"
#include "plan.h"
#include "resident.h"

namespace townlet {
namespace {

struct Guard {
  torch::stable::accelerator::DeviceGuard guard;
  explicit Guard(int device) : guard(device) {}
  explicit Guard(const Tensor& t) : Guard(t.get_device_index()) {}
};
void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}
void check(int error) { STD_CUDA_CHECK(static_cast<cudaError_t>(error)); }

// The driver's answer for the current device, asked for once.
int64_t groups_at_once(int device, const cuda::Resident& s, bool backward) {
  static std::mutex mutex;
  static std::map<std::tuple<int, cuda::Exchange, int, int, int, bool, bool>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, unknown] = known.try_emplace({device, s.exchange, s.blocks, s.units, s.rows, s.bf16, backward}, 0);
  if (unknown) at->second = cuda::resident_groups_at_once(s, backward);
  return at->second;
}
std::optional<cuda::Gpu> gpu_of(int device) {
  int major = 0, minor = 0, sms = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  return cuda::Gpu{10 * major + minor, sms,
                   [device](const cuda::Resident& s, bool backward) { return groups_at_once(device, s, backward); }};
}

Tensor product_bf16(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(torch::stable::to(a, ScalarType::BFloat16)),
                                    torch::stable::detail::from(torch::stable::to(b, ScalarType::BFloat16)),
                                    torch::stable::detail::from(kFloat)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace
}  // namespace townlet

#include "ops.inl"

STABLE_TORCH_LIBRARY_IMPL(townlet, CUDA, m) {
  m.impl("pack", TORCH_BOX(&townlet::pack_gpu));
  m.impl("td_unroll", TORCH_BOX(&townlet::td_unroll_gpu));
  m.impl("lstm_unroll", TORCH_BOX(&townlet::lstm_unroll_gpu));
  m.impl("lstm_unroll_backward", TORCH_BOX(&townlet::lstm_unroll_backward_gpu));
  m.impl("lstm_step", TORCH_BOX(&townlet::lstm_step_gpu));
}
STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("unroll_plan", TORCH_BOX(&townlet::unroll_plan));
}
