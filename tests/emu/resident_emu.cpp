// The resident kernels on the host for the tests: the very same sources against tests/emu/cuda_runtime.h, behind
// two C functions (ctypes calls them).  Sizes and pointers come in the order of the structs in unroll.h.
#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/resident.cpp"
#include "resident.cpp"

#include <exception>
#include <string>
#include <vector>

namespace {
using namespace townlet::cuda;

thread_local std::string message;

template <class F>
const char* guarded(const F& f) {
  try {
    const int error = f();
    message = error == 0 ? "" : "cudaError " + std::to_string(error);
  } catch (const std::exception& e) {
    message = e.what();
  }
  return message.c_str();
}

Resident resident(const int64_t* plan, int64_t H, bool bf16) {
  return Resident::of(static_cast<Exchange>(plan[0]), H, int(plan[1]), int(plan[2]), bf16);
}
template <class T>
T* at(void* const* pointers, int i) {
  return static_cast<T*>(pointers[i]);
}
Chain chain(void* const* p) {
  return {at<float>(p, 0), at<void>(p, 1),  at<float>(p, 2), at<float>(p, 3), at<bool>(p, 4),
          at<float>(p, 5), at<float>(p, 6), at<float>(p, 7), at<float>(p, 8), at<float>(p, 9)};
}
}  // namespace

extern "C" {
// sizes: P, B, T, H, bf16, chains; plan: exchange, blocks, rows; pointers: ten for each chain.  "" or what went wrong
const char* emu_forward(const int64_t* sizes, const int64_t* plan, void* const* pointers) {
  return guarded([&] {
    UnrollForward a{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4] != 0, int(sizes[5]), {}};
    for (int i = 0; i < a.chains; ++i) a.chain[i] = chain(pointers + 10 * i);
    const Resident s = resident(plan, a.H, a.bf16);
    std::vector<char> scratch(size_t(s.forward_scratch(s.groups(a.P, a.B, a.chains))), char(0xFF));
    return resident_unroll_forward(s, a, scratch.data(), nullptr);
  });
}
// sizes: P, B, T, H, bf16, burn_in; pointers: gates, c, c0, w_hh, reset, dy, dh, dc, dh0, dc0
const char* emu_backward(const int64_t* sizes, const int64_t* plan, void* const* p) {
  return guarded([&] {
    const UnrollBackward a{sizes[0],        sizes[1],        sizes[2],        sizes[3],
                           sizes[4] != 0,   sizes[5],        at<float>(p, 0), at<float>(p, 1),
                           at<float>(p, 2), at<void>(p, 3),  at<bool>(p, 4),  at<float>(p, 5),
                           at<float>(p, 6), at<float>(p, 7), at<float>(p, 8), at<float>(p, 9)};
    const Resident s = resident(plan, a.H, a.bf16);
    std::vector<char> scratch(size_t(s.backward_scratch(s.groups(a.P, a.B, 1))), char(0xFF));
    return resident_unroll_backward(s, a, scratch.data(), nullptr);
  });
}
// gpu: compute capability, SMs; sizes: P, B, T, H, bf16, chains, backward.  out: whether resident, exchange, blocks,
// units, rows, bytes of shared memory, and the architecture's limit
void emu_plan(const int64_t* gpu, const int64_t* n, int64_t* out) {
  const Gpu device{int(gpu[0]), int(gpu[1]), resident_groups_at_once};
  const Plan plan = plan_unroll(device, {n[0], n[1], n[2], n[3], n[4] != 0, int(n[5]), n[6] != 0});
  const Resident& s = plan.how;
  const int64_t shared = plan.resident ? s.shared(n[6] != 0) : 0;
  const int64_t numbers[] = {plan.resident, int64_t(s.exchange),      s.blocks, s.units, s.rows,
                             shared,        shared_limit(device.arch)};
  std::copy(std::begin(numbers), std::end(numbers), out);
}
// how many clusters of so many blocks run at the same time; below 0: any number, for any size
void emu_set_clusters(unsigned blocks, int at_once) {
  if (at_once < 0)
    emu::options.clusters.clear();
  else
    emu::options.clusters[blocks] = at_once;
}
void emu_set(unsigned order, int ignore) {
  emu::options.order = order;
  emu::options.ignore = ignore;
}
int emu_sites() { return emu::sites(); }
const char* emu_site(int index) { return emu::site(index); }
}
