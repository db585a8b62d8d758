// The operators for CUDA tensors: on the caller's device and stream.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstdlib>
#include <cstring>

#include "../ops/net.h"
#include "plan.h"

namespace townlet {
namespace {

struct Guard {
  torch::stable::accelerator::DeviceGuard guard;
  explicit Guard(const Tensor& t) : guard(t.get_device_index()) {}
};
void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}
void check(int error) { STD_CUDA_CHECK(static_cast<cudaError_t>(error)); }

// The environment variable TOWNLET_CUDA_UNROLL=step leaves the resident kernels out, for comparisons.
std::optional<cuda::Gpu> gpu_of(const Tensor& t) {
  static const bool step = [] {
    const char* chosen = std::getenv("TOWNLET_CUDA_UNROLL");
    return chosen != nullptr && std::strcmp(chosen, "step") == 0;
  }();
  if (step) return std::nullopt;
  const int device = t.get_device_index();
  int major = 0, minor = 0, sms = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  return cuda::Gpu{10 * major + minor, sms};
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
