// lstm_unroll and its backward pass, for float operands only.  They are built from the parts that td_unroll uses.  This
// header is included inside the namespace of one instruction set.

struct UnrollRun {
  int64_t P, B, T, D, H, rows, shards, chunk, row_floats;
  NetLayout<Float> net;

  UnrollRun(int64_t P_, int64_t B_, int64_t T_, int64_t D_, int64_t H_)
      : P(P_), B(B_), T(T_), D(D_), H(H_), net(NetSizes{P_, D_, H_, H_, 1, false, false}) {
    rows = shard_rows(B, D, H);
    shards = (B + rows - 1) / rows;
    chunk = chunk_steps(rows);
    row_floats = LstmScratch<Float>::floats_per_row(T, T, D, H);
  }
  struct Shard {
    int64_t p, b0;
    LstmScratch<Float> lstm;
    Resets resets;
  };
  Shard shard(int64_t item, float* scratch, const bool* reset) const {
    const int64_t p = item / shards, b0 = item % shards * rows;
    return {p, b0, LstmScratch<Float>(lesser(rows, B - b0), T, T, D, H, scratch + (p * B + b0) * row_floats),
            Resets{reset ? reset + (p * B + b0) * T : nullptr, T, 0}};
  }
};

struct UnrollForward : UnrollRun {
  const UnrollProblem& problem;
  float *packed = nullptr, *scratch = nullptr;

  explicit UnrollForward(const UnrollProblem& p) : UnrollRun(p.P, p.B, p.T, p.D, p.H), problem(p) {}

  void work(int64_t item) const {
    const Shard s = shard(item, scratch, problem.reset);
    const int64_t at = s.p * B + s.b0;
    const LstmScratch<Float>& l = s.lstm;
    const float* w = packed + s.p * (net.gate_bias + 4 * net.Hp);
    load_state<Float>(l.R, H, problem.h0 + at * H, problem.c0 + at * H, s.resets, l.h(0), l.ldx, l.c(0), l.Hp);
    for (int64_t t = 0; t < T; ++t) {
      if (t % chunk == 0) {
        const int64_t n = lesser(chunk, T - t);
        for (int64_t i = t; i < t + n; ++i)
          load_features<Float>(l.R, D, l.Hp, problem.x + (at * T + i) * D, T * D, l.x(i), l.ldx);
        project_inputs(n * l.R, l, l.x(t), w, w + net.gate_bias, l.g(t));
      }
      GateStep<Float> g = step_of(l, t, w + net.hh, s.resets);
      g.keep = problem.saved != nullptr;
      g.h_next = t + 1 < T ? l.h(t + 1) : nullptr;
      g.h_last = t + 1 == T ? problem.h_final + at * H : nullptr;
      gate_step(l.R, g);
      for (int64_t r = 0; r < l.R; ++r)
        memcpy(problem.y + ((at + r) * T + t) * H, l.y(t) + r * l.ldy, size_t(H) * sizeof(float));
    }
    for (int64_t r = 0; r < l.R; ++r)
      memcpy(problem.c_final + (at + r) * H, l.c(T) + r * l.Hp, size_t(H) * sizeof(float));
  }
  void pack_item(int64_t item) const {
    const int64_t blocks = net.Hp / kLanes, p = item / blocks;
    pack_gate_block(net, problem.w_ih + p * 4 * H * D, problem.w_hh + p * 4 * H * H, problem.bias + p * 4 * H,
                    item % blocks, packed + p * (net.gate_bias + 4 * net.Hp));
  }
  void run(Parallel parallel) {
    const int64_t packed_n = P * (net.gate_bias + 4 * net.Hp);
    Arena arena(packed_n + (problem.saved ? 0 : P * B * row_floats));
    packed = arena.data;
    scratch = problem.saved ? problem.saved : packed + packed_n;
    parallel.run(P * (net.Hp / kLanes), this,
                 [](void* self, int64_t i) { static_cast<const UnrollForward*>(self)->pack_item(i); });
    parallel.run(P * shards, this, [](void* self, int64_t i) { static_cast<const UnrollForward*>(self)->work(i); });
  }
};

static void lstm_unroll(const UnrollProblem& problem, Parallel parallel) { UnrollForward(problem).run(parallel); }

struct UnrollBackward : UnrollRun {
  const UnrollGradProblem& problem;
  float *hh_back = nullptr, *ih_back = nullptr, *carries = nullptr, *buffers = nullptr;
  int64_t carry_floats, buffer_floats, group, grad_parts;

  explicit UnrollBackward(const UnrollGradProblem& p) : UnrollRun(p.P, p.B, p.T, p.D, p.H), problem(p) {
    carry_floats = 3 * net.Hp + net.Dp;  // carried dh, dc; dy of a step; dx of a step
    group = LstmWeightGrad<Float>::group(H, shards);
    grad_parts = (net.Hp / kLanes + group - 1) / group;
    buffer_floats = round_up(group * LstmWeightGrad<Float>::block_floats(D, H), 16);
  }

  void work(int64_t item) const {
    const Shard s = shard(item, problem.saved, problem.reset);
    const LstmScratch<Float>& l = s.lstm;
    const int64_t at = s.p * B + s.b0, n = l.R * l.Hp;
    float* base = carries + at * carry_floats;
    const BackScratch b{base, base + n};
    float *dy = base + 2 * n, *dx = base + 3 * n;
    memset(base, 0, size_t(3 * n) * sizeof(float));
    for (int64_t r = 0; r < l.R; ++r) {
      memcpy(b.carry_h + r * l.Hp, problem.dh + (at + r) * H, size_t(H) * sizeof(float));
      memcpy(b.carry_c + r * l.Hp, problem.dc + (at + r) * H, size_t(H) * sizeof(float));
    }
    for (int64_t t = T - 1; t >= 0; --t) {
      for (int64_t r = 0; r < l.R; ++r)
        memcpy(dy + r * l.Hp, problem.dy + ((at + r) * T + t) * H, size_t(H) * sizeof(float));
      const Resets reset = s.resets.step(t);
      cell_backward(l, t, dy, b, reset);
      recurrent_backward(l, t, hh_back + s.p * 4 * l.Hp * l.Hp, b, reset);
      gates_backward(l.R, net.Dp, l, l.g(t), ih_back + s.p * 4 * l.Hp * net.Dp, dx);
      for (int64_t r = 0; r < l.R; ++r)
        memcpy(problem.dx + ((at + r) * T + t) * D, dx + r * net.Dp, size_t(D) * sizeof(float));
    }
    for (int64_t r = 0; r < l.R; ++r) {
      memcpy(problem.dh0 + (at + r) * H, b.carry_h + r * l.Hp, size_t(H) * sizeof(float));
      memcpy(problem.dc0 + (at + r) * H, b.carry_c + r * l.Hp, size_t(H) * sizeof(float));
    }
  }
  int64_t pack_parts() const { return panels(H) + panels(D); }
  void pack_item(int64_t item) const {
    const int64_t p = item / pack_parts(), part = item % pack_parts(), d = part - panels(H);
    if (d < 0)
      pack_gates_backward<Float>(H, net.Hp, H, problem.w_hh + p * 4 * H * H, part, hh_back + p * 4 * net.Hp * net.Hp);
    else
      pack_gates_backward<Float>(H, net.Hp, D, problem.w_ih + p * 4 * H * D, d, ih_back + p * 4 * net.Hp * net.Dp);
  }
  void grad_item(int64_t item) const {
    const int64_t p = item / grad_parts, first = item % grad_parts * group;
    const LstmWeightGrad<Float> w{D,
                                  H,
                                  problem.dw_ih + p * 4 * H * D,
                                  problem.dw_hh + p * 4 * H * H,
                                  problem.dbias + p * 4 * H,
                                  first,
                                  lesser(first + group, net.Hp / kLanes),
                                  buffers + item * buffer_floats};
    w.begin();
    for (int64_t s = 0; s < shards; ++s) w.add(shard(p * shards + s, problem.saved, problem.reset).lstm, 0, T);
    w.finish();
  }
  void run(Parallel parallel) {
    const int64_t hh = P * 4 * net.Hp * net.Hp, ih = P * 4 * net.Hp * net.Dp,
                  carry = round_up(P * B * carry_floats, 16);
    Arena arena(hh + ih + carry + P * grad_parts * buffer_floats);
    hh_back = arena.data;
    ih_back = hh_back + hh;
    carries = ih_back + ih;
    buffers = carries + carry;
    parallel.run(P * pack_parts(), this,
                 [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->pack_item(i); });
    parallel.run(P * shards, this, [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->work(i); });
    parallel.run(P * grad_parts, this,
                 [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->grad_item(i); });
  }
};

static void lstm_unroll_backward(const UnrollGradProblem& problem, Parallel parallel) {
  UnrollBackward(problem).run(parallel);
}

static SavedSize lstm_saved(int64_t D, int64_t H) {
  const auto floats = [=](int64_t T) { return LstmScratch<Float>::floats_per_row(T, T, D, H); };
  return {floats(1) - floats(0), floats(0)};
}
