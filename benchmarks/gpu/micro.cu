// Latencies that the recurrent kernels are built from, in clocks of one multiprocessor: `micro`, without arguments.
//
// 1. How blocks of a cluster meet and exchange states (sm_90 and later; left out on older cards): the cluster's
// barrier,
//    relaxed and with release, with and without stores to global memory before it; then one exchange of states, with
//    `st.async` that completes an mbarrier, and with ordinary remote stores and a release barrier as exchange.cuh does.
// 2. Loads of 16 bytes a lane from shared memory, by how many different addresses a warp reads.
// 3. Tensor-core products m16n8k16 of bfloat16, by how many do not depend on each other.
//
// The slowest block counts. programs.py compiles this file.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cg = cooperative_groups;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#endif

namespace {

constexpr int kStores = 24;  // to global memory, a thread and round: about what a step of the kernels writes

enum class Arrive { kRelaxed, kRelease, kReleaseAfterStores, kRelaxedAfterStores };

template <Arrive how>
__global__ void barrier_kernel(int rounds, float* out, long long* clocks) {
#ifdef HAS_CLUSTERS
  constexpr bool stores = how == Arrive::kReleaseAfterStores || how == Arrive::kRelaxedAfterStores;
  constexpr bool relaxed = how == Arrive::kRelaxed || how == Arrive::kRelaxedAfterStores;
  const size_t threads = blockDim.x, one_round = kStores * threads * gridDim.x;
  float* const own = out + blockIdx.x * kStores * threads + threadIdx.x;
  cg::this_cluster().sync();
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) {
    if (stores) {
#pragma unroll
      for (int k = 0; k < kStores; ++k) own[k * threads + size_t(i & 63) * one_round] = float(i);
    }
    if (relaxed)
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    else
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  if (threadIdx.x == 0) clocks[blockIdx.x] = (clock64() - begin) / rounds;
#endif
}

// In a round every thread sends 8 bytes to every block of the cluster, all blocks wait for all of it, and each reads
// some of it. That is a tile of 16 rows and 8 units a warp, as bfloat16. There are two boxes in turns, and no other
// barrier.
__global__ void exchange_kernel(int rounds, int blocks, long long* clocks, uint32_t* sink) {
#ifdef HAS_CLUSTERS
  extern __shared__ __align__(16) char bytes[];
  __shared__ __align__(8) uint64_t barriers[2];
  const int rank = int(cg::this_cluster().block_rank());
  const uint32_t part = uint32_t(blockDim.x) * 8;  // bytes that one block sends to another
  const auto shared_address = [](const void* p) { return uint32_t(__cvta_generic_to_shared(p)); };
  const uint32_t boxes = shared_address(bytes);
  const uint32_t bar[2] = {shared_address(&barriers[0]), shared_address(&barriers[1])};
  const auto expect = [&](int which) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar[which]), "r"(part * blocks)
                 : "memory");
  };
  if (threadIdx.x == 0) {
    for (int which = 0; which < 2; ++which) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar[which]));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cg::this_cluster().sync();
  if (threadIdx.x == 0) {
    expect(0);
    expect(1);
  }
  cg::this_cluster().sync();
  uint32_t value = threadIdx.x;
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) {
    const int which = i & 1;
    const uint32_t box = which * part * blocks, own = boxes + box + rank * part + threadIdx.x * 8;
    for (int to = 0; to < blocks; ++to) {
      uint32_t there, barrier_there;
      asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(to));
      asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier_there) : "r"(bar[which]), "r"(to));
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(there),
          "r"(value), "r"(value + 1), "r"(barrier_there)
          : "memory");
    }
    const uint32_t parity = uint32_t(i >> 1) & 1;
    uint32_t done = 0;
    while (!done)
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(bar[which]), "r"(parity)
          : "memory");
    if (threadIdx.x == 0) expect(which);
    const uint32_t from = ((rank + 1) % blocks) * part + ((threadIdx.x + 32) % blockDim.x) * 8;
    value += *reinterpret_cast<uint32_t*>(bytes + box + from);
  }
  if (threadIdx.x == 0) clocks[blockIdx.x] = (clock64() - begin) / rounds;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = value;
  cg::this_cluster().sync();
#endif
}

// The same data with ordinary remote stores and a barrier of the cluster.
__global__ void stores_kernel(int rounds, int blocks, long long* clocks, uint32_t* sink) {
#ifdef HAS_CLUSTERS
  extern __shared__ __align__(16) char bytes[];
  auto cluster = cg::this_cluster();
  const int rank = int(cluster.block_rank());
  const uint32_t part = uint32_t(blockDim.x) * 8;
  uint32_t value = threadIdx.x;
  cluster.sync();
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) {
    char* const box = bytes + (i & 1) * part * blocks;
    for (int to = 0; to < blocks; ++to) {
      uint32_t* const there = reinterpret_cast<uint32_t*>(cluster.map_shared_rank(box, to) + rank * part) + threadIdx.x;
      there[0] = value;
      there[blockDim.x] = value + 1;
    }
    cluster.barrier_arrive();
    cluster.barrier_wait();
    const uint32_t from = ((rank + 1) % blocks) * part + ((threadIdx.x + 32) % blockDim.x) * 8;
    value += *reinterpret_cast<uint32_t*>(box + from);
  }
  if (threadIdx.x == 0) clocks[blockIdx.x] = (clock64() - begin) / rounds;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = value;
  cluster.sync();
#endif
}

constexpr int kLoads = 8;  // in flight

// different: how many addresses the lanes of a warp read. 8: a column of w_hh that four groups of lanes share; 4: a row
// that eight lanes share; 1: all lanes the same.
template <int different>
__global__ void load_kernel(int rounds, long long* clocks, float* sink) {
  extern __shared__ __align__(16) char bytes[];
  const int lane = threadIdx.x % 32;
  const int slot = different == 32 ? lane : different == 8 ? lane % 8 : different == 4 ? lane / 8 * 17 : 0;
  for (int i = threadIdx.x; i < 8192; i += blockDim.x) reinterpret_cast<float*>(bytes)[i] = float(i);
  __syncthreads();
  const uint32_t at = uint32_t(__cvta_generic_to_shared(bytes)) + slot * 16;
  float sum = 0;
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) {
    float4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k)
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(v[k].x), "=f"(v[k].y), "=f"(v[k].z), "=f"(v[k].w)
                   : "r"(at + k * 1024));
#pragma unroll
    for (int k = 0; k < kLoads; ++k) sum += v[k].x + v[k].w;
  }
  __syncthreads();
  const long long loads = static_cast<long long>(rounds) * kLoads * (blockDim.x / 32);
  if (threadIdx.x == 0) clocks[blockIdx.x] = (clock64() - begin) * 100 / loads;  // hundredths
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <int chains>
__global__ void product_kernel(int rounds, long long* clocks, float* sink) {
  float d[chains][4] = {};
  const uint32_t operand = 0x3f803f80u + threadIdx.x % 2;  // two bfloat16 ones, or about that
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i)
#pragma unroll
    for (int c = 0; c < chains; ++c)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
          : "r"(operand));
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = (end - begin) / rounds;
  float sum = 0;
  for (int c = 0; c < chains; ++c) sum += d[c][0] + d[c][3];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// ---- the host's side -----------------------------------------------------------------------------------------------

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("\nFAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}

struct Shape {
  int blocks, threads, cluster;
  size_t shared;
};

long long* clocks_of;  // of each block, on the card
float* memory;         // what kernels write, 256 MiB

// Run a kernel; the clocks of its slowest block, or -1 where the card refuses to launch it.
template <class Kernel, class... Arguments>
long long slowest(const Shape& shape, Kernel kernel, Arguments... arguments) {
  const void* const entry = reinterpret_cast<const void*>(kernel);
  must(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared)), "shared memory");
  cudaError_t error = cudaSuccess;
  if (shape.cluster > 8) error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(shape.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(shape.blocks));
  config.blockDim = dim3(unsigned(shape.threads));
  config.dynamicSmemBytes = shape.shared;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  must(cudaDeviceSynchronize(), "a kernel");
  std::vector<long long> each(static_cast<size_t>(shape.blocks));
  must(cudaMemcpy(each.data(), clocks_of, each.size() * sizeof(long long), cudaMemcpyDeviceToHost), "copy to the host");
  return *std::max_element(each.begin(), each.end());
}

void exchanges(size_t shared) {
  constexpr int kRounds = 2000;
  std::printf("clocks a round, the slowest block; +%d: after so many stores to global memory a thread; -1: refused\n",
              kStores);
  std::printf("%-8s %-8s %10s %10s %12s %12s %12s %12s\n", "cluster", "threads", "relaxed", "release", "release +24",
              "relaxed +24", "st.async", "st, release");
  uint32_t* const sink = reinterpret_cast<uint32_t*>(memory);
  for (int blocks : {2, 4, 8, 16})
    for (int threads : {128, 256}) {
      const Shape shape{blocks, threads, blocks, shared};
      const auto barrier = [&](auto kernel) { return slowest(shape, kernel, kRounds, memory, clocks_of); };
      const auto exchange = [&](auto kernel) { return slowest(shape, kernel, kRounds, blocks, clocks_of, sink); };
      std::printf("%-8d %-8d %10lld %10lld %12lld %12lld %12lld %12lld\n", blocks, threads,
                  barrier(barrier_kernel<Arrive::kRelaxed>), barrier(barrier_kernel<Arrive::kRelease>),
                  barrier(barrier_kernel<Arrive::kReleaseAfterStores>),
                  barrier(barrier_kernel<Arrive::kRelaxedAfterStores>), exchange(exchange_kernel),
                  exchange(stores_kernel));
      std::fflush(stdout);
    }
}

void loads() {
  std::printf("16-byte loads from shared memory, clocks a load of a warp; 32, 8, 4 and 1 different addresses\n");
  for (int threads : {128, 512}) {
    const Shape shape{1, threads, 1, 40 << 10};
    const auto one = [&](auto kernel) { return double(slowest(shape, kernel, 500, clocks_of, memory)) / 100; };
    std::printf("%4d threads: %.2f %.2f %.2f %.2f\n", threads, one(load_kernel<32>), one(load_kernel<8>),
                one(load_kernel<4>), one(load_kernel<1>));
  }
}

void products() {
  std::printf("mma m16n8k16 of bfloat16, clocks a round of 1, 2, 4 and 8 independent ones\n");
  for (int threads : {32, 128, 256}) {
    const Shape shape{1, threads, 1, 0};
    const auto one = [&](auto kernel) { return slowest(shape, kernel, 1000, clocks_of, memory); };
    std::printf("%4d threads: %lld %lld %lld %lld\n", threads, one(product_kernel<1>), one(product_kernel<2>),
                one(product_kernel<4>), one(product_kernel<8>));
  }
}

}  // namespace

int main() {
  cudaDeviceProp card;
  must(cudaGetDeviceProperties(&card, 0), "the card");
  std::printf("%s, sm_%d%d\n", card.name, card.major, card.minor);
  must(cudaMalloc(&clocks_of, 4096), "cudaMalloc");
  must(cudaMalloc(&memory, size_t(1) << 28), "cudaMalloc");
  if (card.major >= 9)
    // so much that a block has an SM to itself; the mbarriers take some bytes beside it
    exchanges(std::min<size_t>(160 << 10, card.sharedMemPerBlockOptin - 1024));
  else
    std::printf("there are no clusters on sm_%d%d: they begin with sm_90\n", card.major, card.minor);
  loads();
  products();
  return 0;
}
