#pragma once
// Random problems for the recurrent kernels, and what a plain loop in double precision makes of them on the host.
// Arrays are laid out as csrc/cuda/unroll.h says.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace smoke {

// P members, B sequences, T steps, H units; no gradient enters the steps before `first`.
struct Size {
  int64_t P, B, T, H, first;
  bool resets;

  int64_t states() const { return P * B * H; }
  int64_t steps() const { return states() * T; }
};

// A number as bfloat16 holds it: rounded to nearest, ties to even.
inline float to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return value;  // not a number
  bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
inline uint16_t bf16_bits(float value) {
  value = to_bf16(value);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

struct Inputs {
  std::vector<float> gx, w_hh, h0, c0, dy, dh_final, dc_final;
  std::vector<char> reset;
};

struct Expected {
  std::vector<double> y, c, gates, h_final, c_final;  // forward
  std::vector<double> dgates, dh0, dc0;               // backward
};

// Uniform numbers. Weights are small enough for the gates to stay away from their limits.
inline Inputs draw(const Size& n, unsigned seed) {
  std::mt19937 rng(seed);
  const auto uniform = [&](int64_t count, float scale) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = scale * (2.f * static_cast<float>(rng()) / 4294967296.f - 1.f);
    return values;
  };
  Inputs in;
  in.gx = uniform(4 * n.steps(), 1.5f);
  in.w_hh = uniform(n.P * 4 * n.H * n.H, 1.7f / std::sqrt(static_cast<float>(n.H)));
  in.h0 = uniform(n.states(), .8f);
  in.c0 = uniform(n.states(), .8f);
  in.dy = uniform(n.steps(), 1.f);
  in.dh_final = uniform(n.states(), 1.f);
  in.dc_final = uniform(n.states(), 1.f);
  in.reset.resize(static_cast<size_t>(n.P * n.B * n.T));
  for (char& r : in.reset) r = n.resets && rng() % 5 == 0;
  return in;
}

// One sequence of one member, in double precision. With `bf16`, weights, and what they are multiplied with, are rounded
// first, as the kernels do it; sums are not.
class Sequence {
 public:
  Sequence(const Inputs& in, const std::vector<float>& w, const Size& n, bool bf16, int64_t index, Expected& out)
      : in_(in), w_(w.data() + index / n.B * 4 * n.H * n.H), n_(n), bf16_(bf16), index_(index), out_(out) {}

  void forward() {
    const int64_t H = n_.H;
    std::vector<double> h(in_.h0.begin() + index_ * H, in_.h0.begin() + (index_ + 1) * H);
    std::vector<double> c(in_.c0.begin() + index_ * H, in_.c0.begin() + (index_ + 1) * H), operand(size_t(H), 0.);
    for (int64_t t = 0; t < n_.T; ++t) {
      if (reset(t)) {
        std::fill(h.begin(), h.end(), 0.);
        std::fill(c.begin(), c.end(), 0.);
      }
      for (int64_t k = 0; k < H; ++k) operand[k] = rounded(h[k]);
      for (int64_t u = 0; u < H; ++u) {
        double z[4];
        for (int gate = 0; gate < 4; ++gate) {
          const float* row = w_ + (gate * H + u) * H;
          z[gate] = in_.gx[((index_ * n_.T + t) * 4 + gate) * H + u];
          for (int64_t k = 0; k < H; ++k) z[gate] += operand[k] * row[k];
        }
        const double i = sigmoid(z[0]), f = sigmoid(z[1]), g = std::tanh(z[2]), o = sigmoid(z[3]);
        c[u] = f * c[u] + i * g;
        h[u] = o * std::tanh(c[u]);
        double* kept = out_.gates.data() + gate_at(t, u);
        kept[0] = i, kept[H] = f, kept[2 * H] = g, kept[3 * H] = o;
        out_.c[at(t, u)] = c[u];
        out_.y[at(t, u)] = h[u];
      }
    }
    std::copy(h.begin(), h.end(), out_.h_final.begin() + index_ * H);
    std::copy(c.begin(), c.end(), out_.c_final.begin() + index_ * H);
  }

  void backward() {
    const int64_t H = n_.H;
    std::vector<double> dh(in_.dh_final.begin() + index_ * H, in_.dh_final.begin() + (index_ + 1) * H);
    std::vector<double> dc(in_.dc_final.begin() + index_ * H, in_.dc_final.begin() + (index_ + 1) * H);
    std::vector<double> operand(static_cast<size_t>(4 * H));
    for (int64_t t = n_.T - 1; t >= n_.first; --t) {
      for (int64_t u = 0; u < H; ++u) {
        const double* gates = out_.gates.data() + gate_at(t, u);
        const double i = gates[0], f = gates[H], g = gates[2 * H], o = gates[3 * H];
        const double before = reset(t) ? 0 : t > 0 ? out_.c[at(t - 1, u)] : double(in_.c0[index_ * H + u]);
        const double tanh_c = std::tanh(out_.c[at(t, u)]), d = in_.dy[at(t, u)] + dh[u];
        const double x = dc[u] + d * o * (1 - tanh_c * tanh_c);
        double* dz = out_.dgates.data() + gate_at(t, u);
        dz[0] = x * g * i * (1 - i);
        dz[H] = x * before * f * (1 - f);
        dz[2 * H] = x * i * (1 - g * g);
        dz[3 * H] = d * tanh_c * o * (1 - o);
        for (int gate = 0; gate < 4; ++gate) operand[gate * H + u] = rounded(dz[gate * H]);
        dc[u] = reset(t) ? 0 : x * f;
      }
      std::fill(dh.begin(), dh.end(), 0.);
      if (reset(t)) continue;
      for (int64_t r = 0; r < 4 * H; ++r)
        for (int64_t k = 0; k < H; ++k) dh[k] += operand[r] * w_[r * H + k];
    }
    if (n_.first > 0) return;  // what enters the steps before is a constant
    std::copy(dh.begin(), dh.end(), out_.dh0.begin() + index_ * H);
    std::copy(dc.begin(), dc.end(), out_.dc0.begin() + index_ * H);
  }

 private:
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  double rounded(double v) const { return bf16_ ? double(to_bf16(static_cast<float>(v))) : v; }
  bool reset(int64_t t) const { return in_.reset[index_ * n_.T + t] != 0; }
  int64_t at(int64_t t, int64_t u) const { return (index_ * n_.T + t) * n_.H + u; }
  int64_t gate_at(int64_t t, int64_t u) const { return (index_ * n_.T + t) * 4 * n_.H + u; }

  const Inputs& in_;
  const float* w_;
  const Size n_;
  const bool bf16_;
  const int64_t index_;
  Expected& out_;
};

inline Expected expected(const Inputs& in, const Size& n, bool bf16) {
  Expected out;
  out.y.assign(static_cast<size_t>(n.steps()), 0.);
  out.c = out.y;
  out.gates.assign(static_cast<size_t>(4 * n.steps()), 0.);
  out.dgates = out.gates;
  out.h_final.assign(static_cast<size_t>(n.states()), 0.);
  out.c_final = out.dh0 = out.dc0 = out.h_final;
  std::vector<float> w = in.w_hh;
  if (bf16)
    for (float& v : w) v = to_bf16(v);
  for (int64_t index = 0; index < n.P * n.B; ++index) {
    Sequence sequence(in, w, n, bf16, index, out);
    sequence.forward();
    sequence.backward();
  }
  return out;
}

}  // namespace smoke
