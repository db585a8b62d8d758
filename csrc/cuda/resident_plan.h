#pragma once
// The arithmetic of the resident kernels (resident.cuh): how w_hh is cut over blocks and what a block keeps in shared
// memory.  Pure functions of sizes, for host and device; no CUDA headers.

#include <cstdint>

#if defined(__CUDACC__)
#define TOWNLET_ANYWHERE __host__ __device__
#else
#define TOWNLET_ANYWHERE
#endif

namespace townlet::cuda {

// How the blocks that share one chain, member and batch tile exchange states.
enum class Exchange : int {
  kSingle = 0,   // one block holds all of w_hh
  kCluster = 1,  // a thread-block cluster, through distributed shared memory (sm_90 and later)
  kGrid = 2,     // a cooperative launch, through global memory
};

constexpr int kUnitTile = 8;             // hidden units of a warp: their four gates are the 32 columns of its product
constexpr int kColumns = 4 * kUnitTile;  // columns of a warp's product
constexpr int kRowTile = 16;             // rows of one tensor-core product
// Hidden units of a block at most: 16 warps leave a thread 128 registers, enough for tiles of 16 rows without spills;
// 32 rows need more.
constexpr int max_units(int rows) { return rows > kRowTile ? 64 : 128; }
constexpr int max_threads(int rows) { return 32 * max_units(rows) / kUnitTile; }
constexpr int kMaxCluster = 16;     // sm_90; above 8 is non-portable and has to be asked for
constexpr int kCounterBytes = 128;  // of a group's barrier in global memory: a cache line of its own

TOWNLET_ANYWHERE inline int64_t round_up_to(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One way to run: `blocks` blocks form a group and share a chain, a member and a batch tile of `rows` sequences; each
// owns `units` hidden units (the last ones may own fewer, or none).
struct Resident {
  Exchange exchange;
  int blocks, units, rows;
  bool bf16;

  TOWNLET_ANYWHERE static Resident of(Exchange exchange, int64_t H, int blocks, int rows, bool bf16) {
    return {exchange, blocks, int(round_up_to((H + blocks - 1) / blocks, kUnitTile)), rows, bf16};
  }
  TOWNLET_ANYWHERE int threads() const { return 32 * units / kUnitTile; }
  TOWNLET_ANYWHERE int64_t value_bytes() const { return bf16 ? 2 : 4; }
  // values that a lane's 16-byte loads cover in one go along the inner dimension of a product (see tile.cuh)
  TOWNLET_ANYWHERE int64_t chunk() const { return bf16 ? 32 : 4; }
  // values from one row of a product's left operand to the next: for bf16 an odd number of chunks (64 bytes), so that
  // the two rows which eight lanes load together lie in different banks
  TOWNLET_ANYWHERE int64_t stride(int64_t inner) const {
    const int64_t chunks = (inner + chunk() - 1) / chunk();
    return chunk() * (bf16 ? chunks | 1 : chunks);
  }
  TOWNLET_ANYWHERE int64_t padded() const { return int64_t(blocks) * units; }  // H, with what pads the last blocks

  // Forward: acc [rows][4 units] = h [rows][H] w; inner dimension H.
  TOWNLET_ANYWHERE int64_t forward_chunks() const { return round_up_to(padded(), chunk()) / chunk(); }
  TOWNLET_ANYWHERE int64_t forward_stride() const { return stride(padded()); }
  TOWNLET_ANYWHERE int64_t forward_weights() const { return 4 * units * forward_chunks() * chunk(); }  // values
  TOWNLET_ANYWHERE int64_t forward_state() const { return rows * forward_stride(); }                   // values
  TOWNLET_ANYWHERE int64_t forward_shared() const { return (forward_weights() + 2 * forward_state()) * value_bytes(); }

  // Backward: partial dh [rows][H] = dgates [rows][4 units] w; inner dimension 4 units.  The inbox receives every
  // block's partial sums of the own units: [from][rows][units] floats.
  TOWNLET_ANYWHERE int64_t backward_tiles() const { return (padded() + kColumns - 1) / kColumns; }
  TOWNLET_ANYWHERE int64_t backward_chunks() const { return 4 * units / chunk(); }
  TOWNLET_ANYWHERE int64_t backward_stride() const { return stride(4 * units); }
  TOWNLET_ANYWHERE int64_t backward_weights() const { return backward_tiles() * kColumns * 4 * units; }  // values
  TOWNLET_ANYWHERE int64_t inbox() const { return rows * padded(); }                                     // floats
  TOWNLET_ANYWHERE int64_t backward_shared() const {
    const int64_t boxes = exchange == Exchange::kGrid ? 0 : 2 * inbox() * 4;
    return (backward_weights() + rows * backward_stride()) * value_bytes() + boxes;
  }
  TOWNLET_ANYWHERE int64_t shared(bool backward) const { return backward ? backward_shared() : forward_shared(); }

  // Global memory for the exchange of kGrid, zeroed barriers first; nothing for the others.
  TOWNLET_ANYWHERE int64_t groups(int64_t P, int64_t B, int64_t chains) const {
    return chains * P * ((B + rows - 1) / rows);
  }
  TOWNLET_ANYWHERE int64_t forward_scratch(int64_t groups) const {
    return exchange == Exchange::kGrid ? groups * (kCounterBytes + 2 * forward_state() * value_bytes()) : 0;
  }
  TOWNLET_ANYWHERE int64_t backward_scratch(int64_t groups) const {
    return exchange == Exchange::kGrid ? groups * (kCounterBytes + 2 * blocks * inbox() * 4) : 0;
  }
};

}  // namespace townlet::cuda
