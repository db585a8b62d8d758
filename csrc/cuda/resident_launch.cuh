#pragma once
// Launches of the resident kernels of one direction and one element type. Each resident_DIRECTION_TYPE.cu instantiates
// one: the kernels take most of a build's time, and as four sources they share the cores.

#include <type_traits>

#include "launch.h"
#include "resident.cuh"
#include "resident.h"

namespace townlet::cuda {

template <class Problem, class Tile, class Exchange, int M>
auto kernel_of() {
  if constexpr (std::is_same_v<Problem, UnrollForward>)
    return &resident_forward<Tile, Exchange, M>;
  else
    return &resident_backward<Tile, Exchange, M>;
}
template <class Problem, class Tile, int M>
auto choose(Exchange exchange) {
  switch (exchange) {
    case Exchange::kCluster: return kernel_of<Problem, Tile, ClusterExchange, M>();
    case Exchange::kGrid: return kernel_of<Problem, Tile, GridExchange, M>();
    default: return kernel_of<Problem, Tile, SingleExchange, M>();
  }
}
template <class Problem, bool bf16>
auto choose(const Resident& s) {
  using Tile = std::conditional_t<bf16, Mma, Fma>;
  return s.rows > kRowTile ? choose<Problem, Tile, 2>(s.exchange) : choose<Problem, Tile, 1>(s.exchange);
}

inline LaunchShape shape_of(const Resident& s, bool backward, int64_t groups) {
  LaunchShape shape;
  shape.grid = unsigned(groups * s.blocks);
  shape.block = unsigned(s.threads());
  shape.smem = size_t(s.shared(backward));
  shape.coop = s.exchange == Exchange::kGrid;
  shape.cluster = s.exchange == Exchange::kCluster ? unsigned(s.blocks) : 1;
  return shape;
}

template <class Problem, bool bf16>
int ResidentLaunch<Problem, bf16>::run(const Resident& s, const Problem& problem, void* scratch, void* stream) {
  constexpr bool kBackward = std::is_same_v<Problem, UnrollBackward>;
  int64_t chains = 1;
  if constexpr (!kBackward) chains = problem.chains;
  const int64_t groups = s.groups(problem.P, problem.B, chains);
  if (s.exchange == Exchange::kGrid) {
    // barriers; forward the boxes too: what pads the rows of a state is read
    const int64_t zeros = kBackward ? groups * kCounterBytes : s.forward_scratch(groups);
    const cudaError_t error = cudaMemsetAsync(scratch, 0, size_t(zeros), static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
  }
  const LaunchShape shape = shape_of(s, kBackward, groups);
  return launch(choose<Problem, bf16>(s), shape, stream, problem, s, static_cast<char*>(scratch));
}

template <class Problem, bool bf16>
int64_t ResidentLaunch<Problem, bf16>::groups_at_once(const Resident& s) {
  return blocks_at_once(choose<Problem, bf16>(s), shape_of(s, std::is_same_v<Problem, UnrollBackward>, 1)) / s.blocks;
}

}  // namespace townlet::cuda
