#pragma once
// The operators once more as plain loops in double precision: what the kernels are held against before they are timed.
// One member, linear head, double Q, one-step Huber targets, nothing masked.

#include <cstdint>
#include <vector>

namespace plain {

using Numbers = std::vector<double>;

struct Sizes {
  std::int64_t B, S, D, H, A;
};

enum Part { kWIh, kWHh, kBias, kWQ, kBQ, kParts };

// w_ih [4H][D], w_hh [4H][H], bias [4H], w_q [A][H], b_q [A]; gates in the order i, f, g, o.
struct Net {
  Numbers part[kParts];
};

// x [B][S + 1][D], h0 and c0 [B][H] -> y [B][S + 1][H].
Numbers unroll(const Sizes&, const Net&, const Numbers& x, const Numbers& h0, const Numbers& c0);
// y [B][S + 1][H] -> Q [B][S + 1][A].
Numbers head(const Sizes&, const Net&, const Numbers& y);
// TD targets [B][S] from both networks' Q, reward [B][S] and ends [B][S].
Numbers targets(const Sizes&, const Numbers& q, const Numbers& q_target, const Numbers& reward,
                const std::vector<char>& terminated, double gamma);
// Mean Huber loss of Q at the actions [B][S] against the targets.
double loss(const Sizes&, const Numbers& q, const Numbers& y, const std::vector<std::int64_t>& action);

}  // namespace plain
