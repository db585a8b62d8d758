// The yardstick of the benchmarks: a loop of twelve independent multiply-adds whose operands never leave the registers.
// In assembly, because a compiler is free to spill or to merge what nobody reads; twelve, because that hides the
// latency (up to six cycles) wherever at most two of them start in a cycle.  The file needs no compiler flags: no
// instruction runs before the CPU was asked for it, and only registers that the compiler knows at every level are used.

#include "peak.h"

#include <chrono>
#include <cstdint>

namespace townlet {
namespace {

constexpr int kAccumulators = 12;

struct Loop {
  const char* isa;
  int flops;  // of one instruction
  void (*run)(std::int64_t rounds);
};

#if defined(__x86_64__) && defined(__GNUC__)
// registers 0 to 11 are accumulators, 12 and 13 hold ones
#define TOWNLET_LOOP(name, op, r, bits)                                                                                \
  void name(std::int64_t rounds) {                                                                                     \
    const std::uint32_t ones = bits;                                                                                   \
    asm volatile("vbroadcastss %1, %%" r "12\n\tvbroadcastss %1, %%" r "13\n\t" CLEAR(0) CLEAR(1) CLEAR(2) CLEAR(3)    \
                     CLEAR(4) CLEAR(5) CLEAR(6) CLEAR(7) CLEAR(8) CLEAR(9) CLEAR(10)                                   \
                         CLEAR(11) ".p2align 5\n1:\n\t" STEP(op, r, 0) STEP(op, r, 1) STEP(op, r, 2) STEP(op, r, 3)    \
                             STEP(op, r, 4) STEP(op, r, 5) STEP(op, r, 6) STEP(op, r, 7) STEP(op, r, 8) STEP(op, r, 9) \
                                 STEP(op, r, 10) STEP(op, r, 11) "dec %0\n\tjnz 1b\n\tvzeroupper"                      \
                 : "+r"(rounds)                                                                                        \
                 : "m"(ones)                                                                                           \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",      \
                   "xmm11", "xmm12", "xmm13");                                                                         \
  }
#define CLEAR(n) "vxorps %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n\t"
#define STEP(op, r, n) op " %%" r "13, %%" r "12, %%" r #n "\n\t"
constexpr std::uint32_t kOne = 0x3f800000u, kTwoOnes = 0x3f803f80u;  // a float; a pair of bfloat16
TOWNLET_LOOP(fma_avx512, "vfmadd231ps", "zmm", kOne)
TOWNLET_LOOP(fma_avx2, "vfmadd231ps", "ymm", kOne)
TOWNLET_LOOP(dot_bf16, "vdpbf16ps", "zmm", kTwoOnes)
#endif

typedef float V4 __attribute__((vector_size(16)));

// Other CPUs: the compiler's own vectors of four, fused where the target has it.
void portable(std::int64_t rounds) {
  V4 sum[kAccumulators] = {};
  volatile float one = 1.0f;
  const V4 x = one - V4{}, y = one - V4{};
  for (; rounds; --rounds)
    for (V4& s : sum) s = s * x + y;
  volatile float sink = 0.0f;
  for (const V4& s : sum) sink = sink + s[0];
}

Loop widest(bool bf16) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (bf16) return __builtin_cpu_supports("avx512bf16") ? Loop{"avx512bf16", 64, dot_bf16} : Loop{"none", 0, nullptr};
  if (__builtin_cpu_supports("avx512f")) return {"avx512", 32, fma_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", 16, fma_avx2};
#endif
  if (bf16) return {"none", 0, nullptr};
  return {"portable", 8, portable};
}

}  // namespace

Peak measure_peak(bool bf16, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kRounds = 50'000;  // about 0.2 ms: short enough to fit between two interruptions
  const Loop loop = widest(bf16);
  if (!loop.run) return {loop.isa, 0.0};
  double best = 0.0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto begun = Clock::now();
    loop.run(kRounds);
    const double took = std::chrono::duration<double>(Clock::now() - begun).count();
    const double rate = static_cast<double>(kRounds) * kAccumulators * loop.flops / took;
    best = rate > best ? rate : best;
  } while (Clock::now() < end);
  return {loop.isa, best};
}

}  // namespace townlet
