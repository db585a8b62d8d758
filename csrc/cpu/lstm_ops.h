// lstm_unroll, its backward pass and pack, on the parts that td_unroll uses.
// Included inside the namespace of one ISA.

struct UnrollRun {
  int64_t P, B, T, D, H, rows, shards, row_floats;
  NetLayout net;

  UnrollRun(int64_t P_, int64_t B_, int64_t T_, int64_t D_, int64_t H_)
      : P(P_), B(B_), T(T_), D(D_), H(H_), net(NetSizes{P_, D_, H_, H_, 1, false, false}) {
    rows = shard_rows(B, D, H);
    shards = (B + rows - 1) / rows;
    row_floats = LstmScratch::floats_per_row(T, D, H);
  }
  struct Shard {
    int64_t p, b0;
    LstmScratch lstm;
    Resets resets;
  };
  Shard shard(int64_t item, float* scratch, const bool* reset) const {
    const int64_t p = item / shards, b0 = item % shards * rows;
    return {p, b0, LstmScratch(lesser(rows, B - b0), T, D, H, scratch + (p * B + b0) * row_floats),
            Resets{reset ? reset + (p * B + b0) * T : nullptr, T, 0}};
  }
};

struct UnrollForward : UnrollRun {
  const UnrollProblem& q;
  float *packed = nullptr, *scratch = nullptr;

  explicit UnrollForward(const UnrollProblem& p) : UnrollRun(p.P, p.B, p.T, p.D, p.H), q(p) {}

  void work(int64_t item) const {
    const Shard s = shard(item, scratch, q.reset);
    const int64_t at = s.p * B + s.b0;
    const LstmScratch& l = s.lstm;
    const float* w = packed + s.p * net.gate_bias + s.p * 4 * net.Hp;
    load_state(l.R, D, H, q.h0 + at * H, q.c0 + at * H, s.resets, l.x(0), l.ldx, l.c(0), l.Hp, false);
    for (int64_t t = 0; t < T; ++t) {
      load_features(l.R, D, l.Hp, q.x + (at * T + t) * D, T * D, l.x(t), l.ldx, false);
      GateStep g{};
      g.D = D;
      g.H = H;
      g.Hp = l.Hp;
      g.ldx = l.ldx;
      g.x = l.x(t);
      g.gates = w;
      g.gate_bias = w + net.gate_bias;
      g.c_in = l.c(t);
      g.c_out = l.c(t + 1);
      g.y = l.y(t);
      g.g = q.saved ? l.g(t) : nullptr;
      g.x_next = t + 1 < T ? l.x(t + 1) : nullptr;
      g.h_last = t + 1 == T ? q.h_final + at * H : nullptr;
      g.reset = s.resets.step(t);
      g.reset_next = s.resets.step(t + 1);
      gate_step(l.R, g);
      for (int64_t r = 0; r < l.R; ++r)
        memcpy(q.y + ((at + r) * T + t) * H, l.y(t) + r * l.Hp, size_t(H) * sizeof(float));
    }
    for (int64_t r = 0; r < l.R; ++r) memcpy(q.c_final + (at + r) * H, l.c(T) + r * l.Hp, size_t(H) * sizeof(float));
  }
  void pack_item(int64_t item) const {
    const int64_t blocks = net.Hp / kLanes, p = item / blocks;
    pack_gate_block(net, q.w_ih + p * 4 * H * D, q.w_hh + p * 4 * H * H, q.bias + p * 4 * H, item % blocks, false,
                    packed + p * (net.gate_bias + 4 * net.Hp));
  }
  void run(Parallel parallel) {
    const int64_t packed_n = P * (net.gate_bias + 4 * net.Hp);
    Arena arena(packed_n + (q.saved ? 0 : P * B * row_floats));
    packed = arena.data;
    scratch = q.saved ? q.saved : packed + packed_n;
    parallel.run(P * (net.Hp / kLanes), this,
                 [](void* self, int64_t i) { static_cast<const UnrollForward*>(self)->pack_item(i); });
    parallel.run(P * shards, this, [](void* self, int64_t i) { static_cast<const UnrollForward*>(self)->work(i); });
  }
};

static void lstm_unroll(const UnrollProblem& q, Parallel parallel) { UnrollForward(q).run(parallel); }

struct UnrollBackward : UnrollRun {
  const UnrollGradProblem& q;
  float *w_hh_back = nullptr, *w_ih_back = nullptr, *carries = nullptr, *buffers = nullptr;
  int64_t carry_floats, buffer_floats;

  explicit UnrollBackward(const UnrollGradProblem& p) : UnrollRun(p.P, p.B, p.T, p.D, p.H), q(p) {
    carry_floats = 3 * net.Hp + round_up(D, kLanes);  // carried dh, dc; dy of a step; dx of a step
    buffer_floats = round_up(LstmWeightGrad::buffer_floats(D, H), 16);
  }

  void work(int64_t item) const {
    const Shard s = shard(item, q.saved, q.reset);
    const LstmScratch& l = s.lstm;
    const int64_t at = s.p * B + s.b0, n = l.R * l.Hp;
    float* base = carries + at * carry_floats;
    const BackScratch b{base, base + n};
    float *dy = base + 2 * n, *dx = base + 3 * n;
    memset(base, 0, size_t(3 * n) * sizeof(float));
    for (int64_t r = 0; r < l.R; ++r) {
      memcpy(b.carry_h + r * l.Hp, q.dh_final + (at + r) * H, size_t(H) * sizeof(float));
      memcpy(b.carry_c + r * l.Hp, q.dc_final + (at + r) * H, size_t(H) * sizeof(float));
    }
    for (int64_t t = T - 1; t >= 0; --t) {
      for (int64_t r = 0; r < l.R; ++r) memcpy(dy + r * l.Hp, q.dy + ((at + r) * T + t) * H, size_t(H) * sizeof(float));
      const Resets reset = s.resets.step(t);
      cell_backward(l, t, dy, b, reset, false);
      recurrent_backward(l, t, w_hh_back + s.p * 4 * l.Hp * l.Hp, b, reset);
      feature_backward(l, t, w_ih_back + s.p * 4 * l.Hp * round_up(D, kLanes), dx, q.dx + (at * T + t) * D, T * D);
    }
    for (int64_t r = 0; r < l.R; ++r) {
      memcpy(q.dh0 + (at + r) * H, b.carry_h + r * l.Hp, size_t(H) * sizeof(float));
      memcpy(q.dc0 + (at + r) * H, b.carry_c + r * l.Hp, size_t(H) * sizeof(float));
    }
  }
  void pack_item(int64_t item) const {
    const int64_t p = item / 2, Dp = round_up(D, kLanes);
    if (item % 2)
      pack_gates_backward(H, net.Hp, H, q.w_hh + p * 4 * H * H, false, w_hh_back + p * 4 * net.Hp * net.Hp);
    else
      pack_gates_backward(H, net.Hp, D, q.w_ih + p * 4 * H * D, false, w_ih_back + p * 4 * net.Hp * Dp);
  }
  void grad_item(int64_t item) const {
    const int64_t blocks = net.Hp / kLanes, p = item / blocks, j = item % blocks;
    const LstmWeightGrad w{D,
                           H,
                           net.Hp,
                           LstmScratch::row_stride(D, H),
                           q.dw_ih + p * 4 * H * D,
                           q.dw_hh + p * 4 * H * H,
                           q.dbias + p * 4 * H,
                           buffers + item * buffer_floats};
    w.begin();
    for (int64_t s = 0; s < shards; ++s) w.add(shard(p * shards + s, q.saved, q.reset).lstm, 0, T, j);
    w.finish(j);
  }
  void run(Parallel parallel) {
    const int64_t blocks = net.Hp / kLanes, hh = P * 4 * net.Hp * net.Hp, ih = P * 4 * net.Hp * round_up(D, kLanes),
                  carry = round_up(P * B * carry_floats, 16);
    Arena arena(hh + ih + carry + P * blocks * buffer_floats);
    w_hh_back = arena.data;
    w_ih_back = w_hh_back + hh;
    carries = w_ih_back + ih;
    buffers = carries + carry;
    parallel.run(2 * P, this, [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->pack_item(i); });
    parallel.run(P * shards, this, [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->work(i); });
    parallel.run(P * blocks, this,
                 [](void* self, int64_t i) { static_cast<const UnrollBackward*>(self)->grad_item(i); });
  }
};

static void lstm_unroll_backward(const UnrollGradProblem& q, Parallel parallel) { UnrollBackward(q).run(parallel); }

struct PackRun {
  NetLayout net;
  const NetView& view;
  bool bf16;
  float* out;
};

static void pack(const NetSizes& sizes, const NetView& view, bool bf16, float* out, Parallel parallel) {
  PackRun run{NetLayout(sizes), view, bf16, out};
  parallel.run(sizes.P * (run.net.Hp / kLanes + 1), &run, [](void* self, int64_t i) {
    const PackRun& k = *static_cast<const PackRun*>(self);
    const int64_t blocks = k.net.Hp / kLanes, p = i / (blocks + 1), j = i % (blocks + 1), D = k.net.D, H = k.net.H;
    float* to = k.out + p * k.net.size;
    if (j == blocks)
      pack_head(k.net, k.view, p, k.bf16, false, to);
    else
      pack_gate_block(k.net, k.view.w_ih + p * 4 * H * D, k.view.w_hh + p * 4 * H * H, k.view.bias + p * 4 * H, j,
                      k.bf16, to);
  });
}
