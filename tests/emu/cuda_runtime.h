// Stands in for CUDA's <cuda_runtime.h> so that kernel source (.cu/.cuh) compiles as ordinary C++ and runs on the CPU,
// for tests only.  One fiber per CUDA thread; switches happen only at barriers and warp operations.  Blocks that are
// resident together (a cluster, a cooperative grid) share an OS thread, so that a run repeats exactly for a given
// order; such kernels must keep all their shared memory in the dynamic part, since a `__shared__` variable belongs to
// the OS thread.  See emu_rt.cpp.  Not modelled: timing, memory coalescing, fences' weak ordering, textures.
#pragma once
#define TOWNLET_EMU 1
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local  // one OS thread runs one block at a time, unless blocks are resident together
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}

namespace emu {
struct Lane {
  uint3 tid, bid;
  dim3 bdim, gdim;
};
extern thread_local const Lane* cur;
enum Op { kSync, kShfl, kUp, kDown, kXor, kBallot, kMatch, kAdd, kMin, kMax, kAnd, kOr, kMma };
enum Together { kAlone, kCluster, kGrid };  // which blocks are resident together
void sync_block(const char* file, int line);
void arrive_group(Together kind, const char* file, int line);
void wait_group(Together kind, const char* file, int line);
void sync_group(Together kind, const char* file, int line);
unsigned group_rank();
unsigned group_blocks();
void* peer_shared(void* own, int rank, const char* file, int line);
void yield_now();
bool ignored(const char* file, int line);  // whether the barrier at this place is to be left out
std::uint64_t warp(unsigned mask, std::uint64_t v, Op op, int arg, int width, const char* file, int line);
void* dyn_smem();
struct Options {
  unsigned order = 0;  // 0: by index of block and thread; 1: reversed; >1: seed of a new random order every round
  int workers = 1;     // OS threads, for blocks that are not resident together
  bool strict = true;  // report barriers that exited threads never reach
  int ignore = -1;     // leave out the barrier of this index in `sites()`: the mutation tests' switch
  std::size_t stack = 64 << 10;
  std::size_t smem_limit = 227 << 10;  // dynamic shared memory of a block
  std::map<unsigned, int> clusters;    // how many of so many blocks run at the same time; no entry: any number
};
extern Options options;
extern std::uint64_t switches;  // since start: a cost measure
struct Shape {
  dim3 grid, block;
  std::size_t smem = 0;
  bool coop = false;
  unsigned cluster = 1;  // blocks of a cluster, neighbours along x
};
inline std::int64_t blocks_at_once(unsigned cluster) {
  const auto found = options.clusters.find(cluster);
  return found == options.clusters.end() ? std::numeric_limits<int>::max() : std::int64_t{found->second} * cluster;
}
void run(const Shape& shape, const std::function<void()>& body);
int sites();  // barriers met so far, by place in the source
const char* site(int index);

template <class... P, class... A>
cudaError_t launch(void (*k)(P...), const Shape& shape, A&&... a) {
  run(shape, [&] { k(static_cast<P>(a)...); });
  return cudaSuccess;
}
template <class T>
std::uint64_t bits(T v) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t u = 0;
  std::memcpy(&u, &v, sizeof v);
  return u;
}
template <class T>
T unbits(std::uint64_t u) {
  T v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}
}  // namespace emu

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->bid)
#define blockDim (emu::cur->bdim)
#define gridDim (emu::cur->gdim)
#define warpSize 32
#define EMU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMU_AT) { emu::sync_block(file, line); }
inline void __syncwarp(unsigned m = ~0u, EMU_AT) { emu::warp(m, 0, emu::kSync, 0, 32, file, line); }
inline unsigned __clusterRelativeBlockRank() { return emu::group_rank(); }
inline void* __cluster_map_shared_rank(void* own, unsigned rank, EMU_AT) {
  return emu::peer_shared(own, int(rank), file, line);
}
inline void __cluster_barrier_arrive(EMU_AT) { emu::arrive_group(emu::kCluster, file, line); }
inline void __cluster_barrier_wait(EMU_AT) { emu::wait_group(emu::kCluster, file, line); }
inline void __trap() { __builtin_trap(); }
inline void __nanosleep(unsigned) { emu::yield_now(); }
namespace emu {
// What the device does with red.release and ld.acquire: ThreadSanitizer understands these, but no fences.
inline void add_release(unsigned* p, unsigned v) { __atomic_fetch_add(p, v, __ATOMIC_RELEASE); }
inline void wait_at_least(const unsigned* p, unsigned v, EMU_AT) {
  if (ignored(file, line)) return;
  while (__atomic_load_n(p, __ATOMIC_ACQUIRE) < v) yield_now();
}
// mma.sync m16n8k16, bf16 operands, by all lanes of a warp: d = a b + d
struct Mma {
  float* d;
  const unsigned *a, *b;
};
inline void mma_bf16(float* d, const unsigned* a, const unsigned* b, EMU_AT) {
  const Mma m{d, a, b};
  warp(~0u, reinterpret_cast<std::uintptr_t>(&m), kMma, 0, 32, file, line);
}
}  // namespace emu
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __threadfence(); }
#define EMU_SHFL(name, op, argname)                                                \
  template <class T>                                                               \
  T name(unsigned m, T v, int argname, int w = 32, EMU_AT) {                       \
    return emu::unbits<T>(emu::warp(m, emu::bits(v), op, argname, w, file, line)); \
  }
EMU_SHFL(__shfl_sync, emu::kShfl, src)
EMU_SHFL(__shfl_up_sync, emu::kUp, delta)
EMU_SHFL(__shfl_down_sync, emu::kDown, delta)
EMU_SHFL(__shfl_xor_sync, emu::kXor, lane_mask)
inline unsigned __ballot_sync(unsigned m, int p, EMU_AT) {
  return (unsigned)emu::warp(m, p != 0, emu::kBallot, 0, 32, file, line);
}
inline int __any_sync(unsigned m, int p, EMU_AT) { return emu::warp(m, p != 0, emu::kBallot, 0, 32, file, line) != 0; }
inline int __all_sync(unsigned m, int p, EMU_AT) { return emu::warp(m, p == 0, emu::kBallot, 0, 32, file, line) == 0; }
template <class T>
unsigned __match_any_sync(unsigned m, T v, EMU_AT) {
  return (unsigned)emu::warp(m, emu::bits(v), emu::kMatch, 0, 32, file, line);
}
inline unsigned __reduce_add_sync(unsigned m, unsigned v, EMU_AT) {
  return (unsigned)emu::warp(m, v, emu::kAdd, 0, 32, file, line);
}
inline unsigned __reduce_min_sync(unsigned m, unsigned v, EMU_AT) {
  return (unsigned)emu::warp(m, v, emu::kMin, 0, 32, file, line);
}
inline unsigned __reduce_max_sync(unsigned m, unsigned v, EMU_AT) {
  return (unsigned)emu::warp(m, v, emu::kMax, 0, 32, file, line);
}
inline unsigned __reduce_or_sync(unsigned m, unsigned v, EMU_AT) {
  return (unsigned)emu::warp(m, v, emu::kOr, 0, 32, file, line);
}
inline unsigned __reduce_and_sync(unsigned m, unsigned v, EMU_AT) {
  return (unsigned)emu::warp(m, v, emu::kAnd, 0, 32, file, line);
}

// Relaxed, as on the device: they order nothing else (so ThreadSanitizer sees no edge).
template <class T, class F>
T emu_rmw(T* p, F f) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do next = f(old);
  while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
T atomicAdd(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return T(o + v); });
}
template <class T>
T atomicSub(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return T(o - v); });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return std::min(o, v); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return std::max(o, v); });
}
template <class T>
T atomicOr(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return T(o | v); });
}
template <class T>
T atomicAnd(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return T(o & v); });
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) {
  return emu_rmw(p, [&](T o) { return o == c ? v : o; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((std::uint64_t)a * b >> 32); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
using std::max;
using std::min;
