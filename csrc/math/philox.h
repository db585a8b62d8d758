// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
// "Parallel random numbers: as easy as 1, 2, 3" (SC'11).
//
// A counter-based generator has no state to advance: a draw is a pure function of (key, counter).  Townlet uses that
// twice over.  Draws of one member or environment cannot depend on how many others there are or in which order they
// are served, and a checkpoint needs to hold a counter only.
//
// Layout of the 128-bit counter as used here (32-bit words):
//   word 0: block index inside one (stream, counter) pair; a block yields two doubles
//   word 1: stream, one number per purpose: 0 = Town episodes, 1 = acting, 2 = replay
//   words 2, 3: low and high half of the 64-bit counter
#pragma once

#include <array>
#include <cstdint>

namespace townlet {

using PhiloxBlock = std::array<std::uint32_t, 4>;

// Ten rounds over `counter` under `key` (low half first).
inline PhiloxBlock philox4x32_10(PhiloxBlock counter, std::uint64_t key) {
  constexpr std::uint64_t kMul0 = 0xD2511F53u;
  constexpr std::uint64_t kMul1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;  // golden ratio
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = kMul0 * counter[0];
    const std::uint64_t p1 = kMul1 * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return counter;
}

// 53 random bits to a double in [0, 1): the top bits of `hi:lo`, so 1.0 itself cannot come out.
inline double philox_to_unit(std::uint32_t lo, std::uint32_t hi) {
  const std::uint64_t bits = (static_cast<std::uint64_t>(hi) << 32) | lo;
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// The uniform draws number 2*block and 2*block + 1 of (key, stream, counter).
inline std::array<double, 2> philox_uniform_pair(std::uint64_t key, std::uint32_t stream, std::uint64_t counter,
                                                 std::uint32_t block) {
  const PhiloxBlock out = philox4x32_10(
      {block, stream, static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32)}, key);
  return {philox_to_unit(out[0], out[1]), philox_to_unit(out[2], out[3])};
}

}  // namespace townlet
