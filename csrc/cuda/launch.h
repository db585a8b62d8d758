#pragma once
// One way to launch a kernel, on the GPU and on the host shim of tests/emu, and what kernels need from either.

#include <cuda_runtime.h>

#include <cstddef>

namespace townlet::cuda {

struct LaunchShape {
  dim3 grid, block;
  std::size_t smem = 0;  // dynamic shared memory of a block, bytes
  bool coop = false;     // all blocks resident together
  unsigned cluster = 1;  // blocks of a cluster, neighbours along x
};

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchShape& shape, void* stream, A... a) {
#ifdef TOWNLET_EMU
  (void)stream;
  return emu::launch(kernel, {shape.grid, shape.block, shape.smem, shape.coop, shape.cluster}, a...);
#else
  const void* const entry = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shape.smem > (48u << 10))
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.smem));
  if (error == cudaSuccess && shape.cluster > 8)
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  if (shape.coop) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.smem;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = shape.coop || shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(a)...);
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
