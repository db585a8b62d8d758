#pragma once
// How the blocks of a group hand over what they computed, one policy for each kind of launch.
//
// A box is the memory that receives one block's share of the exchange; `at(box, r)` is block r's copy of it, for
// writing, `own(box)` the block's own, for reading with `read`.  Every step ends in one barrier of the group, cut in
// two: what is written to boxes before `arrive` can be read after `wait`, and other work fits between.  kGlobal: boxes
// lie in global memory.  kHere: the architecture can do it; where it cannot, a kernel consists of a trap.

#include <cuda_runtime.h>

#include <cstdint>

namespace townlet::cuda {

struct SingleExchange {
  static constexpr bool kGlobal = false, kHere = true;
  __device__ SingleExchange(int, unsigned*, int64_t) {}
  __device__ int rank() const { return 0; }
  __device__ int copies() const { return 1; }  // of the state that all blocks of the group read
  template <class T>
  __device__ T* at(T* box, int) const {
    return box;
  }
  template <class T>
  __device__ T* own(T* box) const {
    return box;
  }
  __device__ static float read(const float* from) { return *from; }
  __device__ void arrive() {}
  __device__ void wait() { __syncthreads(); }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
struct ClusterExchange : SingleExchange {  // no clusters here: the plan never asks for them
  static constexpr bool kHere = false;
  using SingleExchange::SingleExchange;
};
#else
struct ClusterExchange {  // by the intrinsics: cooperative_groups.h would double the time to compile
  static constexpr bool kGlobal = false, kHere = true;
  int blocks;
  __device__ ClusterExchange(int blocks_, unsigned*, int64_t) : blocks(blocks_) {}
  __device__ int rank() const { return int(__clusterRelativeBlockRank()); }
  __device__ int copies() const { return blocks; }
  template <class T>
  __device__ T* at(T* box, int r) const {
    return static_cast<T*>(__cluster_map_shared_rank(box, unsigned(r)));
  }
  template <class T>
  __device__ T* own(T* box) const {
    return box;
  }
  __device__ static float read(const float* from) { return *from; }
  __device__ void arrive() { __cluster_barrier_arrive(); }
  __device__ void wait() { __cluster_barrier_wait(); }
};
#endif

// Release and acquire at the scope of the device.
__device__ inline void add_release(unsigned* counter) {
#if defined(TOWNLET_EMU)
  emu::add_release(counter, 1);
#elif defined(__CUDA_ARCH__)
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#endif
}
__device__ inline void wait_at_least(const unsigned* counter, unsigned count) {
#if defined(TOWNLET_EMU)
  emu::wait_at_least(counter, count);
#elif defined(__CUDA_ARCH__)
  unsigned seen;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  while (seen < count);
#endif
}

// The boxes lie in global memory; all blocks of the launch are resident, so that waiting ends.
struct GridExchange {
  static constexpr bool kGlobal = true, kHere = true;
  int blocks;
  unsigned *counter, count = 0;
  int64_t box_bytes;  // from one block's box to the next; 0 where the group shares one
  __device__ GridExchange(int blocks_, unsigned* counter_, int64_t box_bytes_)
      : blocks(blocks_), counter(counter_), box_bytes(box_bytes_) {}
  __device__ int rank() const { return int(blockIdx.x % unsigned(blocks)); }
  __device__ int copies() const { return 1; }
  template <class T>
  __device__ T* at(T* box, int r) const {
    return box + r * (box_bytes / int64_t(sizeof(T)));
  }
  template <class T>
  __device__ T* own(T* box) const {
    return at(box, rank());
  }
  __device__ static float read(const float* from) { return __ldcg(from); }  // past the L1 cache, which is not coherent
  __device__ void arrive() {
    __syncthreads();
    count += unsigned(blocks);
    if (threadIdx.x == 0) add_release(counter);
  }
  __device__ void wait() {
    if (threadIdx.x == 0) wait_at_least(counter, count);
    __syncthreads();
  }
};

}  // namespace townlet::cuda
