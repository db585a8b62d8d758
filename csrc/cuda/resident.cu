#include "resident.h"

#include "launch.h"
#include "resident.cuh"

namespace townlet::cuda {
namespace {

struct Forward {
  template <class Tile, class Exchange, int M>
  static constexpr auto kernel = &resident_forward<Tile, Exchange, M>;
};
struct Backward {
  template <class Tile, class Exchange, int M>
  static constexpr auto kernel = &resident_backward<Tile, Exchange, M>;
};

template <class Which, class Tile, int M>
auto choose(Exchange exchange) {
  switch (exchange) {
    case Exchange::kCluster: return Which::template kernel<Tile, ClusterExchange, M>;
    case Exchange::kGrid: return Which::template kernel<Tile, GridExchange, M>;
    default: return Which::template kernel<Tile, SingleExchange, M>;
  }
}
template <class Which>
auto choose(const Resident& s) {
  const bool wide = s.rows > kRowTile;
  if (s.bf16) return wide ? choose<Which, Mma, 2>(s.exchange) : choose<Which, Mma, 1>(s.exchange);
  return wide ? choose<Which, Fma, 2>(s.exchange) : choose<Which, Fma, 1>(s.exchange);
}

template <class Which, class Problem>
int run(const Resident& s, const Problem& problem, int64_t groups, int64_t shared, int64_t zeros, void* scratch,
        void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (s.exchange == Exchange::kGrid) {
    const cudaError_t error = cudaMemsetAsync(scratch, 0, size_t(zeros), queue);
    if (error != cudaSuccess) return error;
  }
  LaunchShape shape;
  shape.grid = unsigned(groups * s.blocks);
  shape.block = unsigned(s.threads());
  shape.smem = size_t(shared);
  shape.coop = s.exchange == Exchange::kGrid;
  shape.cluster = s.exchange == Exchange::kCluster ? unsigned(s.blocks) : 1;
  return launch(choose<Which>(s), shape, stream, problem, s, static_cast<char*>(scratch));
}

}  // namespace

int resident_unroll_forward(const Resident& s, const UnrollForward& a, void* scratch, void* stream) {
  const int64_t groups = s.groups(a.P, a.B, a.chains);
  // barriers, and boxes: what pads the rows of a state is read too
  return run<Forward>(s, a, groups, s.forward_shared(), s.forward_scratch(groups), scratch, stream);
}
int resident_unroll_backward(const Resident& s, const UnrollBackward& a, void* scratch, void* stream) {
  const int64_t groups = s.groups(a.P, a.B, 1);
  return run<Backward>(s, a, groups, s.backward_shared(), groups * kCounterBytes, scratch, stream);
}

}  // namespace townlet::cuda
