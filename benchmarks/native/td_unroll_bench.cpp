// Drives the CPU kernels without Python and without torch, on one thread, so that a profiler sees only them.
//
//   td_unroll_bench                                    all shapes
//   td_unroll_bench --benchmark_filter=td_unroll/fp32  and every other option of Google Benchmark
//   TOWNLET_ISA=avx2 td_unroll_bench                   another instruction set
//
// First the kernels' results are held against plain loops in double precision (plain.h): values directly, gradients
// along a random direction in each tensor against the difference quotient of the plain loss.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/peak.h"
#include "plain.h"

namespace {

using townlet::kernels;
using Floats = std::vector<float>;

void run_serial(std::int64_t n, void* context, void (*body)(void*, std::int64_t)) {
  for (std::int64_t i = 0; i < n; ++i) body(context, i);
}
constexpr townlet::Parallel kSerial{&run_serial};
constexpr std::int64_t kActions = 6;
constexpr float kGamma = 0.99f;

struct Shape {
  std::int64_t B, S, D, H;
  std::string name() const {
    return std::to_string(B) + "/" + std::to_string(S) + "/" + std::to_string(D) + "/" + std::to_string(H);
  }
};

// One member's weights, inputs and outputs; targets a little off the online weights, as after a sync.
struct Update {
  Shape n;
  bool bf16;
  std::mt19937 random{1};
  Floats net[plain::kParts], older[plain::kParts], grad[plain::kParts];
  Floats x, x_target, h0, c0, reward, weight{}, gamma{kGamma}, packed;
  std::vector<std::int64_t> action;
  std::vector<char> terminated, reset, mask;
  Floats loss = Floats(1), td_error, priority, q_taken, h_final, c_final;
  bool bad_action = false;

  Update(Shape shape, bool bf16_) : n(shape), bf16(bf16_) {
    const std::int64_t B = n.B, S = n.S, D = n.D, H = n.H, T = S + 1;
    const float k = 1.0f / std::sqrt(static_cast<float>(H));
    const std::int64_t sizes[] = {4 * H * D, 4 * H * H, 4 * H, kActions * H, kActions};
    for (int p = 0; p < plain::kParts; ++p) {
      net[p] = uniform(sizes[p], k);
      older[p] = uniform(sizes[p], 0.1f * k);
      for (std::size_t i = 0; i < net[p].size(); ++i) older[p][i] += net[p][i];
      grad[p].resize(sizes[p]);
    }
    x = uniform(B * T * D, 1.0f);
    x_target = uniform(B * T * D, 1.0f);
    h0 = uniform(B * H, 0.5f);
    c0 = uniform(B * H, 0.5f);
    reward = uniform(B * S, 1.0f);
    weight.assign(B, 1.0f);
    for (std::int64_t i = 0; i < B * S; ++i) action.push_back(static_cast<std::int64_t>(random() % kActions));
    terminated.assign(B * S, 0);
    for (std::int64_t i = 0; i < B * S; i += 7) terminated[i] = 1;
    reset.assign(B * T, 0);
    mask.assign(B * S, 1);
    td_error.resize(B * S);
    priority.resize(B);
    q_taken.resize(B * S);
    h_final.resize(B * H);
    c_final.resize(B * H);
    packed.resize(more_than_packed());
    pack(older);
  }

  Floats uniform(std::int64_t size, float scale) {
    std::uniform_real_distribution<float> draw(-scale, scale);
    Floats out(size);
    for (float& v : out) v = draw(random);
    return out;
  }

  // Panels of one member are a dense copy of the weights, rows rounded up to whole vectors; never more than this.
  std::size_t more_than_packed() const {
    const std::int64_t up = 64;
    return static_cast<std::size_t>(4 * (n.H + up) * (n.D + n.H + up) + (n.H + up) * (n.H + kActions + 2 * up));
  }
  townlet::NetSizes sizes() const { return {1, n.D, n.H, n.H, kActions, false, false}; }
  static townlet::NetView view(const Floats* w) {
    return {w[plain::kWIh].data(),
            w[plain::kWHh].data(),
            w[plain::kBias].data(),
            nullptr,
            nullptr,
            w[plain::kWQ].data(),
            w[plain::kBQ].data(),
            nullptr,
            nullptr};
  }
  void pack(const Floats* w) { kernels().pack(sizes(), view(w), bf16, packed.data(), kSerial); }

  static const bool* flags(const std::vector<char>& v) { return reinterpret_cast<const bool*>(v.data()); }

  void run() {
    townlet::TDProblem problem{};
    problem.net = sizes();
    problem.B = n.B;
    problem.S = n.S;
    problem.td = {1, 0, true, 0.0f, 1.0f, 0.9f};
    problem.bf16 = bf16;
    problem.online = view(net);
    problem.target = packed.data();
    problem.features_online = x.data();
    problem.features_target = x_target.data();
    problem.h0 = h0.data();
    problem.c0 = c0.data();
    problem.action = action.data();
    problem.reward = reward.data();
    problem.terminated = flags(terminated);
    problem.reset = flags(reset);
    problem.mask = flags(mask);
    problem.weight = weight.data();
    problem.gamma = gamma.data();
    problem.loss = loss.data();
    problem.td_error = td_error.data();
    problem.priority = priority.data();
    problem.q_taken = q_taken.data();
    problem.h_final = h_final.data();
    problem.c_final = c_final.data();
    problem.param_grads = true;
    const auto rows = [this](int part) { return townlet::GradRows{grad[part].data(), 0}; };  // of one member
    problem.grad.w_ih = rows(plain::kWIh);
    problem.grad.w_hh = rows(plain::kWHh);
    problem.grad.bias = rows(plain::kBias);
    problem.grad.w_adv = rows(plain::kWQ);
    problem.grad.b_adv = rows(plain::kBQ);
    problem.bad_action = &bad_action;
    kernels().td_unroll(problem, kSerial);
  }

  double flops() const {
    const double B = n.B, S = n.S, D = n.D, H = n.H;
    return B * (2 * 8 * H * (D + H) * (S + 1) + (8 * H * H + 8 * H * (D + H)) * S);
  }
};

// The LSTM alone over the same numbers.
struct Unroll {
  Update u;
  Floats y, h, c, saved, work, dy, dx, dh0, dc0, dw_ih, dw_hh, dbias;

  explicit Unroll(Shape n) : u(n, false) {
    const std::int64_t B = n.B, T = n.S + 1, D = n.D, H = n.H, up = 64;
    y.resize(B * T * H);
    h.resize(B * H);
    c.resize(B * H);
    saved.resize(B * (T + 1) * (D + 8 * (H + up)));  // more than the kernels of any instruction set keep
    dy = u.uniform(B * T * H, 1.0f);
    dx.resize(B * T * D);
    dh0.resize(B * H);
    dc0.resize(B * H);
    dw_ih.resize(4 * H * D);
    dw_hh.resize(4 * H * H);
    dbias.resize(4 * H);
  }
  void forward() {
    const Shape& n = u.n;
    const townlet::UnrollProblem problem{1,
                                         n.B,
                                         n.S + 1,
                                         n.D,
                                         n.H,
                                         u.x.data(),
                                         u.h0.data(),
                                         u.c0.data(),
                                         u.net[plain::kWIh].data(),
                                         u.net[plain::kWHh].data(),
                                         u.net[plain::kBias].data(),
                                         nullptr,
                                         y.data(),
                                         h.data(),
                                         c.data(),
                                         saved.data()};
    kernels().lstm_unroll(problem, kSerial);
  }
  void backward() {
    const Shape& n = u.n;
    const Floats none(n.B * n.H);
    const townlet::UnrollGradProblem problem{1,
                                             n.B,
                                             n.S + 1,
                                             n.D,
                                             n.H,
                                             u.net[plain::kWIh].data(),
                                             u.net[plain::kWHh].data(),
                                             nullptr,
                                             saved.data(),
                                             dy.data(),
                                             none.data(),
                                             none.data(),
                                             dx.data(),
                                             dh0.data(),
                                             dc0.data(),
                                             dw_ih.data(),
                                             dw_hh.data(),
                                             dbias.data()};
    kernels().lstm_unroll_backward(problem, kSerial);
  }
  double flops() const {  // forward, then dx and dh, then the weights' gradients
    const double B = u.n.B, T = static_cast<double>(u.n.S + 1), D = u.n.D, H = u.n.H;
    return 3 * 8 * H * (D + H) * B * T;
  }
};

struct Step {
  Update u;
  std::int64_t E;
  Floats h, c;
  Step(std::int64_t E_, std::int64_t D, std::int64_t H) : u({E_, 1, D, H}, false), E(E_), h(E_ * H), c(E_ * H) {
    u.pack(u.net);
  }
  void run() {
    townlet::StepProblem problem{};
    problem.E = E;
    problem.net = {1, u.n.D, u.n.H, u.n.H, 1, false, false};
    problem.packed = u.packed.data();
    problem.packed_stride = static_cast<std::int64_t>(u.packed.size());
    problem.x = u.x.data();
    problem.h = u.h0.data();
    problem.c = u.c0.data();
    problem.h_out = h.data();
    problem.c_out = c.data();
    kernels().step(problem, kSerial);
  }
  double flops() const { return 8.0 * static_cast<double>(u.n.H * (u.n.D + u.n.H) * E); }
};

// ---- checks ---------------------------------------------------------------------------------------------------------

bool good = true;

// `most` is relative to the largest value expected.
void near(const std::string& what, const plain::Numbers& got, const plain::Numbers& want, double most) {
  double error = 0.0, size = 1e-12;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error = std::fmax(error, std::isfinite(got[i]) ? std::fabs(got[i] - want[i]) : HUGE_VAL);
    size = std::fmax(size, std::fabs(want[i]));
  }
  const bool ok = error <= most * size;
  std::printf("  %-44s%.1e  %s\n", what.c_str(), error / size, ok ? "ok" : "WRONG");
  good = good && ok;
}

plain::Numbers wide(const Floats& v) { return plain::Numbers(v.begin(), v.end()); }

plain::Net wide(const Floats* w) {
  plain::Net out;
  for (int p = 0; p < plain::kParts; ++p) out.part[p] = wide(w[p]);
  return out;
}

// d value / d (direction in one part of the weights): as `grad` says, and as the plain function's difference quotient.
void slope(const std::string& what, plain::Net net, int part, const Floats& grad, Update& u, double most,
           const std::function<double(const plain::Net&)>& value) {
  constexpr double kStep = 1e-5;
  const Floats direction = u.uniform(static_cast<std::int64_t>(grad.size()), 1.0f);
  double along = 0.0;
  for (std::size_t i = 0; i < grad.size(); ++i) along += static_cast<double>(grad[i]) * direction[i];
  double ends[2];
  for (int side = 0; side < 2; ++side) {
    plain::Net moved = net;
    for (std::size_t i = 0; i < grad.size(); ++i) moved.part[part][i] += (side ? kStep : -kStep) * direction[i];
    ends[side] = value(moved);
  }
  near(what, {along}, {(ends[1] - ends[0]) / (2 * kStep)}, most);
}

void check_update(Shape n, bool bf16) {
  Update u(n, bf16);
  u.run();
  const plain::Sizes sizes{n.B, n.S, n.D, n.H, kActions};
  const plain::Net net = wide(u.net);
  const plain::Numbers x = wide(u.x), h0 = wide(u.h0), c0 = wide(u.c0);
  const auto q = [&](const plain::Net& w) { return plain::head(sizes, w, plain::unroll(sizes, w, x, h0, c0)); };
  const plain::Net old = wide(u.older);
  const plain::Numbers q_target = plain::head(sizes, old, plain::unroll(sizes, old, wide(u.x_target), h0, c0));
  const plain::Numbers y = plain::targets(sizes, q(net), q_target, wide(u.reward), u.terminated, kGamma);
  const double most = bf16 ? 5e-2 : 1e-4;
  const std::string name = std::string("td_unroll ") + (bf16 ? "bf16" : "fp32") + " " + n.name();
  near(name + " loss", wide(u.loss), {plain::loss(sizes, q(net), y, u.action)}, most);
  const char* parts[] = {"w_ih", "w_hh", "bias", "w_q", "b_q"};
  for (int p = 0; p < plain::kParts; ++p)
    slope(name + " d " + parts[p], net, p, u.grad[p], u, most,
          [&](const plain::Net& w) { return plain::loss(sizes, q(w), y, u.action); });
}

void check_unroll(Shape n) {
  Unroll l(n);
  l.forward();
  l.backward();
  const plain::Sizes sizes{n.B, n.S, n.D, n.H, kActions};
  const plain::Net net = wide(l.u.net);
  const auto y = [&](const plain::Net& w) { return plain::unroll(sizes, w, wide(l.u.x), wide(l.u.h0), wide(l.u.c0)); };
  near("lstm_unroll " + n.name(), wide(l.y), y(net), 1e-5);
  const Floats* grads[] = {&l.dw_ih, &l.dw_hh, &l.dbias};
  for (int p = 0; p < 3; ++p)
    slope("lstm_unroll_backward " + n.name(), net, p, *grads[p], l.u, 1e-4, [&](const plain::Net& w) {
      const plain::Numbers out = y(w);
      double sum = 0.0;
      for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * static_cast<double>(l.dy[i]);
      return sum;
    });
  Step s(n.B, n.D, n.H);
  s.run();
  const plain::Sizes one{n.B, 0, n.D, n.H, kActions};
  plain::Numbers first(s.u.x.begin(), s.u.x.begin() + n.B * n.D);
  near("lstm_step " + n.name(), wide(s.h), plain::unroll(one, wide(s.u.net), first, wide(s.u.h0), wide(s.u.c0)), 1e-5);
}

// ---- benchmarks -----------------------------------------------------------------------------------------------------

void add(const std::string& name, double flops, double peak, const std::function<void()>& call) {
  auto* b = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const std::clock_t begun = std::clock();
    for (auto _ : state) call();
    const double seconds = static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC;
    if (flops <= 0) return;
    using benchmark::Counter;
    state.counters["FLOP/s"] = Counter(flops, Counter::kIsIterationInvariantRate);
    state.counters["of_peak"] = flops * static_cast<double>(state.iterations()) / seconds / peak;
  });
  b->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;

  std::printf("kernels: %s; largest error relative to the largest value:\n", kernels().name);
  for (const Shape& n : {Shape{5, 7, 19, 33}, Shape{16, 8, 64, 128}}) {
    check_update(n, false);
    check_update(n, true);
    check_unroll(n);
  }
  if (!good) {
    std::printf("WRONG: nothing is timed\n");
    return 1;
  }
  const townlet::Peak fp32 = townlet::measure_peak(false, 0.5), bf16 = townlet::measure_peak(true, 0.5);
  std::printf("peak of one core: %.1f GFLOP/s fp32 (%s), %.1f bf16 (%s)\n", fp32.flops / 1e9, fp32.isa,
              bf16.flops / 1e9, bf16.isa);

  for (const Shape& n : {Shape{16, 8, 64, 128}, Shape{16, 8, 256, 256}, Shape{32, 16, 64, 128}, Shape{64, 32, 128, 256},
                         Shape{64, 80, 128, 256}}) {
    for (const bool half : {false, true}) {
      const auto u = std::make_shared<Update>(n, half);
      const double peak = half && bf16.flops > 0 ? bf16.flops : fp32.flops;
      const std::string type = half ? "bf16/" : "fp32/";
      add("pack/" + type + n.name(), 0.0, 0.0, [u] { u->pack(u->older); });
      add("td_unroll/" + type + n.name(), u->flops(), peak, [u] { u->run(); });
    }
    const auto l = std::make_shared<Unroll>(n);
    add("lstm_unroll+backward/fp32/" + n.name(), l->flops(), fp32.flops, [l] {
      l->forward();
      l->backward();
    });
  }
  for (const std::int64_t E : {16, 128, 256, 1024}) {
    const auto s = std::make_shared<Step>(E, 128, 128);
    add("lstm_step/fp32/" + std::to_string(E) + "/128/128", s->flops(), fp32.flops, [s] { s->run(); });
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
