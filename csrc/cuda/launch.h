#pragma once
// One way to launch a kernel, on the GPU and on the host shim of tests/emu, and what kernels need from either.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace townlet::cuda {

struct LaunchShape {
  dim3 grid, block;
  std::size_t smem = 0;  // dynamic shared memory of a block, bytes
  bool coop = false;     // all blocks resident together
  unsigned cluster = 1;  // blocks of a cluster, neighbours along x
};

#ifndef TOWNLET_EMU
// A launch's configuration; `attribute` has to live as long as it is used.
struct LaunchConfig {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  LaunchConfig(const LaunchShape& shape, void* stream) {
    if (shape.coop) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = shape.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.smem;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = shape.coop || shape.cluster > 1 ? 1 : 0;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

// Permits what a kernel has to ask for: much shared memory, clusters of more than 8 blocks.
inline cudaError_t permit(const void* entry, const LaunchShape& shape) {
  cudaError_t error = cudaSuccess;
  if (shape.smem > (48u << 10))
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.smem));
  if (error == cudaSuccess && shape.cluster > 8)
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}
#endif

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchShape& shape, void* stream, A... a) {
#ifdef TOWNLET_EMU
  (void)stream;
  return emu::launch(kernel, {shape.grid, shape.block, shape.smem, shape.coop, shape.cluster}, a...);
#else
  const cudaError_t error = permit(reinterpret_cast<const void*>(kernel), shape);
  if (error != cudaSuccess) return error;
  const LaunchConfig with(shape, stream);
  return cudaLaunchKernelEx(&with.config, kernel, static_cast<P>(a)...);
#endif
}

// How many blocks the current device can run at the same time, as the driver says: those of whole clusters where
// `shape` has clusters, which have to fit into a GPC each.  0 where the kernel cannot be launched like this.
template <class... P>
std::int64_t blocks_at_once(void (*kernel)(P...), const LaunchShape& shape) {
#ifdef TOWNLET_EMU
  (void)kernel;
  return emu::blocks_at_once(shape.cluster);
#else
  const void* const entry = reinterpret_cast<const void*>(kernel);
  int count = 0, device = 0, sms = 0;
  cudaError_t error = permit(entry, shape);
  if (error == cudaSuccess && shape.cluster > 1) {
    const LaunchConfig with(shape, nullptr);
    error = cudaOccupancyMaxActiveClusters(&count, entry, &with.config);
    count *= int(shape.cluster);
  } else if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, entry, int(shape.block.x), shape.smem);
    if (error == cudaSuccess) error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    count *= sms;
  }
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // it is answered here: the next check of a launch must not find it
  return 0;
#endif
}

__device__ inline void* dynamic_shared() {
#ifdef TOWNLET_EMU
  return emu::dyn_smem();
#else
  extern __shared__ __align__(16) char bytes[];
  return bytes;
#endif
}

}  // namespace townlet::cuda
