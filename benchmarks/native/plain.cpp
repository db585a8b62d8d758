#include "plain.h"

#include <algorithm>
#include <cmath>

namespace plain {

namespace {

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

Numbers unroll(const Sizes& n, const Net& net, const Numbers& x, const Numbers& h0, const Numbers& c0) {
  const std::int64_t T = n.S + 1, D = n.D, H = n.H;
  Numbers y(n.B * T * H);
  for (std::int64_t b = 0; b < n.B; ++b) {
    Numbers h(&h0[b * H], &h0[b * H] + H), c(&c0[b * H], &c0[b * H] + H), gates(4 * H);
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t g = 0; g < 4 * H; ++g)
        gates[g] = net.part[kBias][g] + dot(&net.part[kWIh][g * D], &x[(b * T + t) * D], D) +
                   dot(&net.part[kWHh][g * H], h.data(), H);
      for (std::int64_t u = 0; u < H; ++u) {
        c[u] = sigmoid(gates[H + u]) * c[u] + sigmoid(gates[u]) * std::tanh(gates[2 * H + u]);
        h[u] = sigmoid(gates[3 * H + u]) * std::tanh(c[u]);
      }
      std::copy(h.begin(), h.end(), &y[(b * T + t) * H]);
    }
  }
  return y;
}

Numbers head(const Sizes& n, const Net& net, const Numbers& y) {
  const std::int64_t rows = n.B * (n.S + 1);
  Numbers q(rows * n.A);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t a = 0; a < n.A; ++a)
      q[r * n.A + a] = net.part[kBQ][a] + dot(&net.part[kWQ][a * n.H], &y[r * n.H], n.H);
  return q;
}

Numbers targets(const Sizes& n, const Numbers& q, const Numbers& q_target, const Numbers& reward,
                const std::vector<char>& terminated, double gamma) {
  Numbers y(n.B * n.S);
  for (std::int64_t b = 0; b < n.B; ++b)
    for (std::int64_t t = 0; t < n.S; ++t) {
      const std::int64_t i = b * n.S + t, next = (b * (n.S + 1) + t + 1) * n.A;
      const auto best = std::max_element(&q[next], &q[next] + n.A) - &q[next];  // the first of equals
      y[i] = reward[i] + (terminated[i] ? 0.0 : gamma * q_target[next + best]);
    }
  return y;
}

double loss(const Sizes& n, const Numbers& q, const Numbers& y, const std::vector<std::int64_t>& action) {
  double sum = 0.0;
  for (std::int64_t b = 0; b < n.B; ++b)
    for (std::int64_t t = 0; t < n.S; ++t) {
      const std::int64_t i = b * n.S + t;
      const double e = std::fabs(y[i] - q[(b * (n.S + 1) + t) * n.A + action[i]]);
      sum += e <= 1.0 ? e * e / 2 : e - 0.5;
    }
  return sum / static_cast<double>(n.B * n.S);
}

}  // namespace plain
