// Every form of the recurrent kernels against a loop in double precision on the host, without torch; then their times.
//
//   smoke card           the card; fails where this program was not compiled for it
//   smoke clusters       how many thread-block clusters of each size the card holds at once
//   smoke check [tiny]   errors of every form; tiny: one size, for compute-sanitizer and for the host shim
//   smoke time           microseconds per time step of every form that fits, and of a launch
//
// programs.py compiles it, for a card or, with the shim of tests/emu, for the CPU, where only `check` is there. A form
// is a way to cut w_hh over blocks, named as TOWNLET_CUDA_UNROLL names it (csrc/cuda/form.h). The package picks one for
// a size and a card (csrc/cuda/plan.h); here every form of csrc/cuda/forms.inl runs that the card can hold.
//
// Exit codes: 0, 1 where a result is wrong, 2 where a kernel's failure has ended the CUDA context, 3 where the card
// cannot be used, 4 for wrong arguments.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "form.h"
#include "plan.h"
#include "resident.h"
#include "resident_plan.h"
#include "smoke_problem.h"
#include "unroll.h"

using namespace townlet::cuda;
using smoke::Expected;
using smoke::Inputs;
using smoke::Size;

namespace {

// ---- the card, or the host in its place ----------------------------------------------------------------------------

#ifdef TOWNLET_EMU

void* device_alloc(size_t bytes) { return std::malloc(std::max<size_t>(bytes, 1)); }
void device_free(void* p) { std::free(p); }
void to_device(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void to_host(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void fill(void* p, int byte, size_t bytes) { std::memset(p, byte, bytes); }
int settle() { return 0; }
const char* text(int error) { return error ? "error" : "ok"; }
bool context_lost() { return false; }
Gpu card() {
  std::printf("the host shim in place of a card\n");
  return {90, 132, resident_groups_at_once};  // an H100's numbers, so that the same forms run
}

#else

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
void* device_alloc(size_t bytes) {
  void* p = nullptr;
  must(cudaMalloc(&p, std::max<size_t>(bytes, 1)), "cudaMalloc");
  return p;
}
void device_free(void* p) { must(cudaFree(p), "cudaFree"); }
void to_device(void* to, const void* from, size_t bytes) {
  must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy to the card");
}
void to_host(void* to, const void* from, size_t bytes) {
  must(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy to the host");
}
void fill(void* p, int byte, size_t bytes) { must(cudaMemset(p, byte, bytes), "cudaMemset"); }
int settle() { return static_cast<int>(cudaDeviceSynchronize()); }
const char* text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
bool context_lost() {  // a launch that was refused leaves the context alone, a fault inside a kernel does not
  cudaGetLastError();
  return cudaDeviceSynchronize() != cudaSuccess;
}

// Does nothing. Where a cluster of blocks with much shared memory can lie does not depend on what they compute.
__global__ void placeholder() {}

Gpu card() {
  cudaDeviceProp found;
  must(cudaGetDeviceProperties(&found, 0), "the card");
  int clock = 0;
  must(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "its clock");
  cudaFuncAttributes attributes;
  must(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&placeholder)), "a kernel for this card");
  std::printf("%s, sm_%d%d, %d SMs, at most %d MHz, %zu bytes of shared memory for a block\n", found.name, found.major,
              found.minor, found.multiProcessorCount, clock / 1000, found.sharedMemPerBlockOptin);
  return {found.major * 10 + found.minor, found.multiProcessorCount, resident_groups_at_once};
}

// How many clusters of `blocks` blocks with that much dynamic shared memory each run at once; 0 where none does.
int clusters_held(int blocks, int threads, int64_t shared) {
  const void* const entry = reinterpret_cast<const void*>(&placeholder);
  cudaError_t error = cudaSuccess;
  if (blocks > 8) error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks) * 64);
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int held = 0;
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&held, entry, &config);
  cudaGetLastError();  // a size that the card does not know is an answer, not a failure
  return error == cudaSuccess ? held : 0;
}

#endif

// ---- forms ---------------------------------------------------------------------------------------------------------

const char* const kForms[] = {
#include "forms.inl"
};

// How a form runs at this size; nothing where the card cannot run it, and TOWNLET_CUDA_UNROLL would be refused.
std::optional<Plan> plan_of(const Form& form, const Gpu& gpu, const UnrollSizes& n) {
  try {
    return plan_form(form, gpu, n);
  } catch (const std::runtime_error&) {
    return std::nullopt;
  }
}
std::string name(const std::string& form, bool bf16) { return (bf16 ? "bf16 " : "fp32 ") + form; }

int forward(const Plan& plan, const UnrollForward& a, void* scratch) {
  return plan.resident ? resident_unroll_forward(plan.how, a, scratch, nullptr) : step_forward(a, nullptr);
}
int backward(const Plan& plan, const UnrollBackward& a, void* scratch) {
  return plan.resident ? resident_unroll_backward(plan.how, a, scratch, nullptr) : step_backward(a, nullptr);
}

// ---- arrays on the card --------------------------------------------------------------------------------------------

class Array {
 public:
  explicit Array(int64_t bytes) : bytes_(size_t(std::max<int64_t>(bytes, 16))), at_(device_alloc(bytes_)) { spoil(); }
  template <class T>
  explicit Array(const std::vector<T>& values) : Array(int64_t(values.size() * sizeof(T))) {
    to_device(at_, values.data(), values.size() * sizeof(T));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { device_free(at_); }
  void spoil() { fill(at_, 0xFF, bytes_); }  // to NaN: a number that nobody writes is seen
  void* get() const { return at_; }
  float* floats() const { return static_cast<float*>(at_); }

 private:
  size_t bytes_;
  void* at_;
};

std::vector<uint16_t> bf16_bits(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), smoke::bf16_bits);
  return bits;
}

// One network's arrays. The activated gates are written over gx where they are kept, as the package does it.
struct Network {
  Array gx, w_hh, h0, c0, reset, dy, dh_final, dc_final, y, c, h_final, c_final, dh0, dc0;

  Network(const Inputs& in, const Size& n, bool bf16)
      : gx(in.gx),
        w_hh(bf16 ? Array(bf16_bits(in.w_hh)) : Array(in.w_hh)),
        h0(in.h0),
        c0(in.c0),
        reset(in.reset),
        dy(in.dy),
        dh_final(in.dh_final),
        dc_final(in.dc_final),
        y(4 * n.steps()),
        c(4 * n.steps()),
        h_final(4 * n.states()),
        c_final(4 * n.states()),
        dh0(4 * n.states()),
        dc0(4 * n.states()) {}

  const bool* resets() const { return static_cast<const bool*>(reset.get()); }
  Chain chain(float* gates) const {
    return {gx.floats(),      w_hh.get(),      h0.floats(), c0.floats(),
            resets(),         y.floats(),      gates,       gates ? c.floats() : nullptr,
            h_final.floats(), c_final.floats()};
  }
  UnrollBackward back(const Size& n, bool bf16) const {
    return {n.P,          n.B,         n.T,        n.H,      bf16,        n.first,           gx.floats(),
            c.floats(),   c0.floats(), w_hh.get(), resets(), dy.floats(), dh_final.floats(), dc_final.floats(),
            dh0.floats(), dc0.floats()};
  }
};

int64_t scratch_bytes(const std::optional<Plan>& up, const std::optional<Plan>& back, const Size& n) {
  int64_t bytes = 0;
  if (up && up->resident) bytes = up->how.forward_scratch(up->how.groups(n.P, n.B, 2));
  if (back && back->resident) bytes = std::max(bytes, back->how.backward_scratch(back->how.groups(n.P, n.B, 1)));
  return bytes;
}

// ---- check ---------------------------------------------------------------------------------------------------------

// Largest errors allowed, relative to the largest value of an array. Seen on the host shim: fp32 1.2e-6 forward and
// 1.4e-6 backward; bf16 2.1e-4 and 4.0e-4. A state that lies where bfloat16 rounds the other way moves what follows it.
double allowed(bool bf16, bool backward) {
  if (bf16) return backward ? 1e-2 : 2e-3;
  return backward ? 2e-5 : 5e-6;
}

// The largest error, relative to the largest value; NaN where a number is none.
double error_of(const Array& array, const std::vector<double>& want) {
  std::vector<float> got(want.size());
  to_host(got.data(), array.get(), got.size() * sizeof(float));
  double error = 0, largest = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::fabs(got[i] - want[i]);
    if (std::isnan(e)) return e;
    error = std::max(error, e);
    largest = std::max(largest, std::fabs(want[i]));
  }
  return error / largest;
}
double worst_of(std::initializer_list<double> errors) {
  for (double e : errors)
    if (std::isnan(e)) return e;
  return std::max(errors);
}

struct Checked {
  int code;  // cudaError_t
  double forward, backward;
  bool right(bool bf16) const {
    return code == 0 && forward <= allowed(bf16, false) && backward <= allowed(bf16, true);
  }
};

// One form at one size: the pass forward of two networks at once, and the pass back of the online one. Where only the
// pass back fits, the step kernel goes forward.
Checked run(const std::optional<Plan>& up_plan, const std::optional<Plan>& back_plan, const Size& n, bool bf16,
            const Inputs& online_in, const Inputs& target_in, const Expected& online_out, const Expected& target_out) {
  const Network online(online_in, n, bf16), target(target_in, n, bf16);
  Array scratch(scratch_bytes(up_plan, back_plan, n));
  UnrollForward up{n.P, n.B, n.T, n.H, bf16, 2, {}};
  up.chain[0] = online.chain(online.gx.floats());
  up.chain[1] = target.chain(nullptr);
  Checked result{forward(up_plan.value_or(Plan{false, {}}), up, scratch.get()), 0, 0};
  if (result.code == 0) result.code = settle();
  if (result.code != 0) return result;
  result.forward =
      worst_of({error_of(online.y, online_out.y), error_of(online.c, online_out.c),
                error_of(online.gx, online_out.gates), error_of(online.h_final, online_out.h_final),
                error_of(online.c_final, online_out.c_final), error_of(target.y, target_out.y),
                error_of(target.h_final, target_out.h_final), error_of(target.c_final, target_out.c_final)});
  if (!back_plan) return result;
  scratch.spoil();
  result.code = backward(*back_plan, online.back(n, bf16), scratch.get());
  if (result.code == 0) result.code = settle();
  if (result.code != 0) return result;
  result.backward = worst_of({error_of(online.gx, online_out.dgates), error_of(online.dh0, online_out.dh0),
                              error_of(online.dc0, online_out.dc0)});
  return result;
}

int check(bool tiny, const Gpu& gpu) {
  std::vector<Size> sizes{{2, 19, 3, 40, 1, true}};
  if (!tiny)
    sizes = {{2, 19, 5, 40, 2, true},  {1, 35, 4, 70, 0, true}, {1, 17, 3, 130, 0, true},
             {1, 33, 3, 256, 1, true}, {1, 3, 1, 9, 0, false},  {1, 20, 3, 512, 0, true}};
  int ran = 0, wrong = 0;
  for (const Size& n : sizes)
    for (bool bf16 : {false, true}) {
      const Inputs online = smoke::draw(n, 1);
      Inputs target = smoke::draw(n, 2);
      target.reset = online.reset;
      const Expected online_out = smoke::expected(online, n, bf16), target_out = smoke::expected(target, n, bf16);
      for (const char* const form : kForms) {
        const auto up = plan_of(read_form(form), gpu, {n.P, n.B, n.T, n.H, bf16, 2, false});
        const auto back = plan_of(read_form(form), gpu, {n.P, n.B, n.T, n.H, bf16, 1, true});
        if (!up && !back) continue;
        const Checked result = run(up, back, n, bf16, online, target, online_out, target_out);
        const bool named = (!up || form_of(*up) == form) && (!back || form_of(*back) == form);
        const bool right = result.right(bf16) && named;
        ++ran;
        wrong += !right;
        std::printf("%s P=%lld B=%-2lld T=%lld H=%-3lld %-18s forward%s %.1e, backward%s %.1e %s\n",
                    right ? "ok   " : "WRONG", (long long)n.P, (long long)n.B, (long long)n.T, (long long)n.H,
                    name(form, bf16).c_str(), up ? "" : " (step)", result.forward, back ? "" : " (none)",
                    result.backward, result.code ? text(result.code) : "");
        std::fflush(stdout);
        if (result.code && context_lost()) {
          std::printf("the context is lost; %d forms ran until then, %d wrong\n", ran, wrong);
          std::_Exit(2);  // freeing memory would fail too
        }
      }
    }
  std::printf("%d forms ran, %d wrong\n", ran, wrong);
  return wrong ? 1 : 0;
}

#ifndef TOWNLET_EMU

// ---- clusters and times --------------------------------------------------------------------------------------------

int clusters(const Gpu& gpu) {
  if (gpu.arch < 90) {
    std::printf("there are no clusters on sm_%d: they begin with sm_90\n", gpu.arch);
    return 0;
  }
  std::printf("clusters held at once (and their SMs), by blocks of a cluster and shared memory of a block\n");
  for (int kib : {64, 99, 110, 166, 200, 227}) {
    if (int64_t(kib) << 10 > shared_limit(gpu.arch)) break;
    std::printf("%3d KiB:", kib);
    for (int blocks : {1, 2, 4, 8, 12, 16}) {
      const int held = clusters_held(blocks, 128, int64_t(kib) << 10);
      std::printf("  %d: %d (%d)", blocks, held, held * blocks);
    }
    std::printf("\n");
  }
  return 0;
}

// Microseconds of a call, the best of five samples; NaN where it fails.
template <class Call>
double microseconds(Call call, int repeats) {
  for (int warmup = 0; warmup < 2; ++warmup)
    if (call() != 0) return NAN;
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "cudaEventCreate");
  must(cudaEventCreate(&end), "cudaEventCreate");
  double best = std::numeric_limits<double>::infinity();
  for (int sample = 0; sample < 5; ++sample) {
    cudaEventRecord(begin);
    for (int i = 0; i < repeats; ++i) call();
    cudaEventRecord(end);
    float milliseconds = 0;
    if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&milliseconds, begin, end) != cudaSuccess)
      return NAN;
    best = std::min(best, double(milliseconds) * 1e3 / repeats);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

// From the times of a long and a short sequence: what each step takes, and what a launch takes beside its steps.
struct Line {
  double step, fixed;
  Line(double of_long, double of_short, int64_t T_long, int64_t T_short)
      : step((of_long - of_short) / double(T_long - T_short)), fixed(of_short - double(T_short) * step) {}
};

// Every form that is checked, and what the package chooses where that is another one.
std::vector<std::string> timed(const Plan& up, const Plan& back) {
  std::vector<std::string> all(std::begin(kForms), std::end(kForms));
  for (const Plan& plan : {up, back}) {
    const std::string chosen = form_of(plan);
    if (std::find(all.begin(), all.end(), chosen) == all.end()) all.push_back(chosen);
  }
  return all;
}

int times(const Gpu& gpu) {
  constexpr int64_t kLong = 81, kShort = 21;
  std::printf("B = 64; us a step and us of a launch beside its steps, from T = 81 and T = 21; forward: two networks\n");
  std::printf("%4s %3s %-18s %12s %10s %12s %10s\n", "H", "P", "form", "forward/step", "launch", "back/step", "launch");
  for (int64_t P : {1, 8})
    for (int64_t H : {128, 256, 512})
      for (bool bf16 : {true, false}) {
        const Size full{P, 64, kLong, H, 0, false};
        const Plan up_plan = plan_unroll(gpu, {P, full.B, full.T, H, bf16, 2, false});
        const Plan back_plan = plan_unroll(gpu, {P, full.B, full.T, H, bf16, 1, true});
        std::printf("     the package's choice for H=%lld P=%lld %s: forward %s; backward %s\n", (long long)H,
                    (long long)P, bf16 ? "bf16" : "fp32", describe(up_plan).c_str(), describe(back_plan).c_str());
        const Inputs in = smoke::draw(full, 3);
        const Network online(in, full, bf16), target(in, full, bf16);
        for (const std::string& form : timed(up_plan, back_plan)) {
          const auto up = plan_of(read_form(form), gpu, {P, full.B, full.T, H, bf16, 2, false});
          const auto back = plan_of(read_form(form), gpu, {P, full.B, full.T, H, bf16, 1, true});
          if (!up && !back) continue;
          Array scratch(scratch_bytes(up, back, full));
          double spent[2][2] = {{NAN, NAN}, {NAN, NAN}};  // forward, backward; long, short
          for (int which = 0; which < 2; ++which) {
            Size n = full;
            n.T = which ? kShort : kLong;
            UnrollForward forward_of{P, n.B, n.T, H, bf16, 2, {}};
            // gates go elsewhere than gx, which would otherwise change from call to call
            forward_of.chain[0] = online.chain(target.gx.floats());
            forward_of.chain[1] = target.chain(nullptr);
            forward_of.chain[1].gx = online.gx.floats();
            const UnrollBackward backward_of = online.back(n, bf16);
            const int repeats = form == "step" ? 3 : 10;
            if (up) spent[0][which] = microseconds([&] { return forward(*up, forward_of, scratch.get()); }, repeats);
            if (back)
              spent[1][which] = microseconds([&] { return backward(*back, backward_of, scratch.get()); }, repeats);
          }
          const Line ahead(spent[0][0], spent[0][1], kLong, kShort), behind(spent[1][0], spent[1][1], kLong, kShort);
          std::printf("%4lld %3lld %-18s %12.2f %10.1f %12.2f %10.1f\n", (long long)H, (long long)P,
                      name(form, bf16).c_str(), ahead.step, ahead.fixed, behind.step, behind.fixed);
          std::fflush(stdout);
          if (const int error = settle()) {
            std::printf("the context is lost: %s\n", text(error));
            std::_Exit(2);
          }
        }
      }
  return 0;
}

#endif

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  const bool tiny = argc > 2 && std::string(argv[2]) == "tiny";
  const Gpu found = card();
  if (what == "check") return check(tiny, found);
  if (what == "card") return 0;
#ifndef TOWNLET_EMU
  if (what == "clusters") return clusters(found);
  if (what == "time") return times(found);
#endif
  std::printf("the first argument is '%s'; expected card, clusters, check or time\n", what.c_str());
  return 4;
}
