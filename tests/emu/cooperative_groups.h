#pragma once
#include "cuda_runtime.h"
// Stands in for CUDA's <cooperative_groups.h>; see cuda_runtime.h.
namespace cooperative_groups {
struct grid_group {
  void sync(EMU_AT) const { emu::sync_group(emu::kGrid, file, line); }
  unsigned long long size() const {
    return 1ull * gridDim.x * gridDim.y * gridDim.z * blockDim.x * blockDim.y * blockDim.z;
  }
  unsigned long long thread_rank() const { return 1ull * blockIdx.x * blockDim.x + threadIdx.x; }
  bool is_valid() const { return true; }
};
struct cluster_group {
  void sync(EMU_AT) const { emu::sync_group(emu::kCluster, file, line); }
  void barrier_arrive(EMU_AT) const { emu::arrive_group(emu::kCluster, file, line); }
  void barrier_wait(EMU_AT) const { emu::wait_group(emu::kCluster, file, line); }
  unsigned block_rank() const { return emu::group_rank(); }
  unsigned num_blocks() const { return emu::group_blocks(); }
  template <class T>
  T* map_shared_rank(T* own, int rank, EMU_AT) const {
    return static_cast<T*>(emu::peer_shared(own, rank, file, line));
  }
};
struct thread_block {
  void sync(EMU_AT) const { emu::sync_block(file, line); }
  unsigned thread_rank() const { return threadIdx.x; }
  unsigned size() const { return blockDim.x; }
};
inline grid_group this_grid() { return {}; }
inline cluster_group this_cluster() { return {}; }
inline thread_block this_thread_block() { return {}; }
}  // namespace cooperative_groups
