#pragma once
// Which variant of the recurrent kernels runs: a pure function of the sizes and the GPU, for the host.

#include <functional>
#include <string>

#include "resident_plan.h"

namespace townlet::cuda {

struct Gpu {
  int arch;  // compute capability: 80, 90, ...
  int sms;
  // Groups of blocks that the GPU runs at the same time; 0: it cannot launch one.  The driver knows: a cluster has to
  // fit into a GPC, of which some have fewer SMs than others.
  std::function<int64_t(const Resident&, bool backward)> groups_at_once;
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

// Whether a form can be launched, and whether all of its blocks then run at the same time, each on an SM of its own.
// A cooperative launch needs that; groups that come in a second wave take twice the time.
inline bool fits(const Gpu& gpu, const UnrollSizes& n, const Resident& s) {
  return s.units <= max_units(s.rows) && s.shared(n.backward) <= shared_limit(gpu.arch) &&
         gpu.groups_at_once(s, n.backward) > 0;
}
inline bool one_wave(const Gpu& gpu, const UnrollSizes& n, const Resident& s) {
  const int64_t groups = s.groups(n.P, n.B, n.chains);
  return groups * s.blocks <= gpu.sms && groups <= gpu.groups_at_once(s, n.backward);
}
// Offsets within a tile have 32 bits.
inline bool has_offsets(const UnrollSizes& n) { return n.T > 0 && n.T * n.H * 4 * 32 < int64_t{1} << 31; }

// The resident kernels run where w_hh, cut over the blocks of a group, fits into shared memory.
//  1. One block or a cluster (sm_90 and later, where the GPU can place one): the fewest blocks that fit, so that a
//     population fills the chip.
//  2. Tiles of 32 rows instead of 16 where that saves a second wave of blocks.
//  3. Where SMs are left idle and all clusters run at the same time, clusters of up to 8 blocks with at least 32 units
//     each: a step is shorter on more SMs.
//  4. Where no cluster fits, or there are none (sm_80): the fewest blocks that fit, in a cooperative launch, if all of
//     them can be resident at once.
//  5. Else step one.
inline Plan plan_unroll(const Gpu& gpu, const UnrollSizes& n) {
  constexpr int kPortableCluster = 8, kLeastUnits = 32;
  const Plan step{false, {}};
  if (!has_offsets(n)) return step;
  const auto of = [&](int blocks, int rows) {
    const Exchange exchange = blocks == 1 ? Exchange::kSingle : Exchange::kCluster;
    return Resident::of(exchange, n.H, blocks, rows, n.bf16);
  };

  const int most = gpu.arch >= 90 ? kMaxCluster : 1;
  for (int blocks = 1; blocks <= most; blocks *= 2) {
    Resident s = of(blocks, kRowTile);
    if (!fits(gpu, n, s)) continue;
    const Resident tall = of(blocks, 2 * kRowTile);
    if (!one_wave(gpu, n, s) && n.B > kRowTile && fits(gpu, n, tall)) s = tall;
    while (2 * s.blocks <= kPortableCluster && most > 1) {
      const Resident wider = of(2 * s.blocks, s.rows);
      if (wider.units < kLeastUnits || !one_wave(gpu, n, wider)) break;
      s = wider;
    }
    return {true, s};
  }
  for (int blocks = 2; blocks <= gpu.sms && blocks * kUnitTile <= n.H; ++blocks)
    for (int rows = kRowTile; rows <= 2 * kRowTile; rows += kRowTile) {
      const Resident s = Resident::of(Exchange::kGrid, n.H, blocks, rows, n.bf16);
      if (fits(gpu, n, s) && one_wave(gpu, n, s)) return {true, s};
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
