// Picks the instruction set once, and keeps the scratch buffers between calls.

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arena.h"
#include "kernels.h"

namespace townlet {

namespace portable {
extern const Kernels table;
}
#if defined(TOWNLET_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}
#endif

namespace {

std::vector<const Kernels*> supported() {  // best first
  std::vector<const Kernels*> out;
#if defined(TOWNLET_X86)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  if (v4 && __builtin_cpu_supports("avx512bf16")) out.push_back(&avx512_bf16::table);
  if (v4) out.push_back(&avx512::table);
  if (v3) out.push_back(&avx2::table);
#endif
  out.push_back(&portable::table);
  return out;
}

const Kernels& pick() {
  const std::vector<const Kernels*> can = supported();
  const char* forced = std::getenv("TOWNLET_ISA");
  if (!forced || !*forced) return *can.front();
  std::string names;
  for (const Kernels* k : can) {
    if (!std::strcmp(k->name, forced)) return *k;
    names += std::string(names.empty() ? "" : ", ") + k->name;
  }
  throw std::runtime_error(std::string("TOWNLET_ISA is '") + forced + "'; this CPU runs: " + names);
}

constexpr std::size_t kAlign = 64;
constexpr std::size_t kKept = 8;  // free buffers kept at most
constexpr std::size_t kHugePage = std::size_t(2) << 20;

// Large buffers ask for huge pages: an update walks through all of its scratch, more than the TLB reaches in small
// ones.
float* allocate(std::size_t bytes) {
  const bool large = bytes >= 2 * kHugePage;
  const std::size_t align = large ? kHugePage : kAlign;
  void* const data = std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (!data) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish: it may fail without harm
#endif
  return static_cast<float*>(data);
}

struct Buffer {
  float* data;
  std::size_t bytes;
};
std::atomic<int64_t> last_bytes{0};
std::mutex pool_mutex;
std::vector<Buffer>& pool() {
  static auto* const p = new std::vector<Buffer>();  // never destroyed: calls may outlive static destructors
  return *p;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& k = pick();
  return k;
}

int runnable() {
  int bits = 0;
  for (const Kernels* k : supported()) bits |= k->bit;
  return bits;
}

int64_t last_arena_bytes() { return last_bytes.load(std::memory_order_relaxed); }

Arena::Arena(int64_t floats) : data(nullptr), bytes_(0) {
  last_bytes.store(floats * int64_t(sizeof(float)), std::memory_order_relaxed);
  const std::size_t need = (static_cast<std::size_t>(floats) * sizeof(float) + kAlign - 1) / kAlign * kAlign;
  {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    std::vector<Buffer>& p = pool();
    std::size_t best = p.size();
    for (std::size_t i = 0; i < p.size(); ++i)
      if (p[i].bytes >= need && p[i].bytes <= 4 * need + (1 << 20) && (best == p.size() || p[i].bytes < p[best].bytes))
        best = i;
    if (best < p.size()) {
      data = p[best].data;
      bytes_ = p[best].bytes;
      p.erase(p.begin() + static_cast<std::ptrdiff_t>(best));
      return;
    }
  }
  data = allocate(need);
  bytes_ = need;
}

Arena::~Arena() {
  Buffer drop{data, bytes_};
  {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    std::vector<Buffer>& p = pool();
    p.push_back(drop);
    if (p.size() <= kKept) return;
    drop = p.front();  // the one longest unused
    p.erase(p.begin());
  }
  std::free(drop.data);
}

}  // namespace townlet
