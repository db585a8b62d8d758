#pragma once
// Which variant of the recurrent kernels runs: a pure function of the sizes and the GPU, for the host.

#include <string>

#include "resident_plan.h"

namespace townlet::cuda {

struct Gpu {
  int arch;  // compute capability: 80, 90, ...
  int sms;
};

// Shared memory that one block can ask for.
inline int64_t shared_limit(int arch) {
  switch (arch) {
    case 80:
    case 87: return 163 << 10;
    case 86:
    case 89:
    case 120:
    case 121: return 99 << 10;
    case 90:
    case 100:
    case 103:
    case 110: return 227 << 10;
    default: return 48 << 10;  // what every GPU has
  }
}

struct UnrollSizes {
  int64_t P, B, T, H;
  bool bf16;
  int chains;     // that advance in one launch
  bool backward;  // the pass back through time, else the pass forward
};

struct Plan {
  bool resident;  // else one launch per step (step one), which takes any size
  Resident how;   // where resident
};

// The resident kernels run where w_hh, cut over the blocks of a group, fits into shared memory.
//  1. One block or a cluster (sm_90 and later): the fewest blocks that fit, so that a population fills the chip.
//  2. Tiles of 32 rows instead of 16 where that saves a second wave of blocks.
//  3. Where SMs are left idle, clusters of up to 8 blocks with at least 32 units each: a step is shorter on more SMs.
//  4. Where no cluster fits, or there are none (sm_80): the fewest blocks that fit, in a cooperative launch, if all of
//     them can be resident at once.
//  5. Else step one.
inline Plan plan_unroll(const Gpu& gpu, const UnrollSizes& n) {
  constexpr int kPortableCluster = 8, kLeastUnits = 32;
  const Plan step{false, {}};
  if (n.T == 0 || n.T * n.H * 4 * 32 >= int64_t{1} << 31) return step;  // offsets within a tile have 32 bits

  const auto fits = [&](const Resident& s) {
    const int64_t shared = n.backward ? s.backward_shared() : s.forward_shared();
    return s.units <= max_units(s.rows) && shared <= shared_limit(gpu.arch);
  };
  const auto one_wave = [&](const Resident& s) { return s.groups(n.P, n.B, n.chains) * s.blocks <= gpu.sms; };
  const auto of = [&](int blocks, int rows) {
    const Exchange exchange = blocks == 1 ? Exchange::kSingle : Exchange::kCluster;
    return Resident::of(exchange, n.H, blocks, rows, n.bf16);
  };

  const int most = gpu.arch >= 90 ? kMaxCluster : 1;
  for (int blocks = 1; blocks <= most; blocks *= 2) {
    Resident s = of(blocks, kRowTile);
    if (!fits(s)) continue;
    const Resident tall = of(blocks, 2 * kRowTile);
    if (!one_wave(s) && n.B > kRowTile && fits(tall)) s = tall;
    while (2 * s.blocks <= kPortableCluster && most > 1) {
      const Resident wider = of(2 * s.blocks, s.rows);
      if (wider.units < kLeastUnits || !one_wave(wider)) break;
      s = wider;
    }
    return {true, s};
  }
  for (int blocks = 2; blocks <= gpu.sms && blocks * kUnitTile <= n.H; ++blocks)
    for (int rows = kRowTile; rows <= 2 * kRowTile; rows += kRowTile) {
      const Resident s = Resident::of(Exchange::kGrid, n.H, blocks, rows, n.bf16);
      if (fits(s) && one_wave(s)) return {true, s};
    }
  return step;
}

// In words, for people.
inline std::string describe(const Plan& plan) {
  if (!plan.resident) return "a launch per step";
  const Resident& s = plan.how;
  const std::string rows = ", " + std::to_string(s.rows) + " rows";
  if (s.exchange == Exchange::kSingle) return "resident, one block" + rows;
  return "resident, " + std::string(s.exchange == Exchange::kCluster ? "cluster" : "cooperative grid") + " of " +
         std::to_string(s.blocks) + " blocks" + rows;
}

}  // namespace townlet::cuda
