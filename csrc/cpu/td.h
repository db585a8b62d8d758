// The fused operator: unroll both networks, form the TD target and the loss, back-propagate through time.
// Included inside the namespace of one ISA.
//
// Three parallel regions.  (1) Pack the online weights and count each member's valid transitions.  (2) One work item
// per (member, shard of sequences): target unroll, online unroll, head, TD target, gradient of the loss, back through
// time; rows never meet, so there is no barrier inside time.  (3) Weight gradients, one work item per block of output
// rows, summed over shards in a fixed order.  Nothing depends on the number of threads or on the other members.

// Sequences per shard: a function of the sizes alone.  Larger weights want more rows for each pass over them.
static inline int64_t shard_rows(int64_t B, int64_t D, int64_t H) {
  const int64_t most = 4 * H * (D + H) > 192 * 1024 ? 16 : 8;
  const int64_t shards = (B + most - 1) / most;
  return (B + shards - 1) / shards;
}

// The head for n rows: outputs y [n][Hp] to Q in out [n][Op] (advantages become Q in place), by way of hidden [n][Fp].
static inline void q_values(const NetLayout& net, const float* w, int64_t n, const float* y, float* hidden, float* out,
                            bool bf16) {
  const float* last = y;
  int64_t ld = net.Hp;
  if (net.has_fc) {
    gemm(n, net.Fp, Gemm{net.H, y, w + net.fc, net.Hp, hidden, net.Fp, w + net.fc_bias, true, bf16});
    last = hidden;
    ld = net.Fp;
  }
  gemm(n, net.Op, Gemm{net.F, last, w + net.out, ld, out, net.Op, w + net.out_bias});
  if (!net.dueling) return;
  for (int64_t i = 0; i < n; ++i) {
    float* o = out + i * net.Op;
    float mean = 0.0f;
    for (int64_t a = 0; a < net.A; ++a) mean += o[a];
    const float lift = o[net.A] - mean / float(net.A);
    for (int64_t a = 0; a < net.A; ++a) o[a] += lift;
  }
}

struct TDRun {
  const TDProblem& q;
  Parallel parallel;
  NetLayout net;
  int64_t P, B, S, T, D, H, A, L;
  int64_t rows, shards;  // rows: of a full shard
  int64_t lstm_floats, head_floats, row_floats, gate_blocks, fc_blocks;
  bool backward;
  float *packed = nullptr, *scratch = nullptr, *row_loss = nullptr, *count = nullptr, *buffers = nullptr;

  TDRun(const TDProblem& problem, Parallel par)
      : q(problem),
        parallel(par),
        net(problem.net),
        P(q.net.P),
        B(q.B),
        S(q.S),
        T(q.S + 1),
        D(q.net.D),
        H(q.net.H),
        A(q.net.A),
        L(q.td.burn_in) {
    rows = shard_rows(B, D, H);
    shards = (B + rows - 1) / rows;
    backward = q.param_grads || q.feature_grad;
    lstm_floats = LstmScratch::floats_per_row(T, D, H);
    // both Q tables, the head's hidden layer; its three gradients; carried gradients; one value row; dx of a step
    head_floats = T * (2 * net.Op + net.Fp) + S * (net.Op + net.Fp + net.Hp) + 2 * net.Hp + round_up(T, kLanes) +
                  round_up(D, kLanes);
    row_floats = lstm_floats + head_floats;
    gate_blocks = net.Hp / kLanes;
    fc_blocks = net.has_fc ? (net.Fp + kWide - 1) / kWide : 0;
  }

  // The head's part of a shard's scratch, time-major like the LSTM's.
  struct Head {
    float *target, *out, *hidden, *d_out, *d_hidden, *dy, *carry_h, *carry_c, *value, *dx;
    Head(const TDRun& r, int64_t R, float* base) {
      const auto take = [&](int64_t floats) {
        float* p = base;
        base += R * floats;
        return p;
      };
      target = take(r.T * r.net.Op);
      out = take(r.T * r.net.Op);
      hidden = take(r.T * r.net.Fp);
      d_out = take(r.S * r.net.Op);
      d_hidden = take(r.S * r.net.Fp);
      dy = take(r.S * r.net.Hp);
      carry_h = take(r.net.Hp);
      carry_c = take(r.net.Hp);
      value = take(round_up(r.T, kLanes));
      dx = take(round_up(r.D, kLanes));
    }
  };
  struct Shard {
    int64_t p, b0, R;
    LstmScratch lstm;
    Head head;
  };
  Shard shard(int64_t p, int64_t s) const {
    const int64_t b0 = s * rows, R = lesser(rows, B - b0);
    float* base = scratch + (p * B + b0) * row_floats;
    return {p, b0, R, LstmScratch(R, T, D, H, base), Head(*this, R, base + R * lstm_floats)};
  }

  // --- region 1 ---
  void prepare(int64_t p, int64_t part) const {
    float* out = packed + p * net.size_with_backward;
    const float *w_ih = q.online.w_ih + p * 4 * H * D, *w_hh = q.online.w_hh + p * 4 * H * H;
    if (part < gate_blocks) {
      pack_gate_block(net, w_ih, w_hh, q.online.bias + p * 4 * H, part, q.bf16, out);
    } else if (part == gate_blocks) {
      pack_head(net, q.online, p, q.bf16, backward, out);
      int64_t n = 0;
      for (int64_t b = 0; b < B; ++b)
        for (int64_t t = L; t < S; ++t) n += td_valid(sequence(p, b), int(t));
      count[p] = n > 0 ? float(n) : 1.0f;
    } else if (part == gate_blocks + 1) {
      if (backward) pack_gates_backward(H, net.Hp, H, w_hh, q.bf16, out + net.w_hh_back);
    } else if (q.feature_grad) {
      pack_gates_backward(H, net.Hp, D, w_ih, q.bf16, out + net.w_ih_back);
    }
  }

  TDSequence sequence(int64_t p, int64_t b) const {
    const int64_t at = p * B + b;
    TDSequence s{};
    s.action = q.action + at * S;
    s.reward = q.reward + at * S;
    s.terminated = q.terminated + at * S;
    s.reset = q.reset + at * T;
    s.mask = q.mask + at * S;
    s.legal = q.legal ? q.legal + at * T * A : nullptr;
    s.S = int(S);
    s.A = int(A);
    s.gamma = q.gamma[p];
    return s;
  }

  // --- region 2 ---
  // Q of `steps` time steps from outputs y [steps R][Hp] into out [steps R][Op]
  void head_forward(const float* w, int64_t n, const float* y, float* hidden, float* out) const {
    q_values(net, w, n, y, hidden, out, q.bf16);
  }

  GateStep gate_args(const Shard& s, const float* w, int64_t t) const {
    const Resets reset{q.reset + (s.p * B + s.b0) * T, T, t};
    GateStep g{};
    g.D = D;
    g.H = H;
    g.Hp = net.Hp;
    g.ldx = s.lstm.ldx;
    g.gates = w;
    g.gate_bias = w + net.gate_bias;
    g.reset = reset;
    g.reset_next = reset.step(t + 1);
    g.bf16 = q.bf16;
    return g;
  }
  void load_step(const Shard& s, const float* features, int64_t t, float* x) const {
    load_features(s.R, D, net.Hp, features + ((s.p * B + s.b0) * T + t) * D, T * D, x, s.lstm.ldx, q.bf16);
  }
  void load_initial(const Shard& s, float* x, float* c) const {
    const int64_t at = (s.p * B + s.b0) * H;
    load_state(s.R, D, H, q.h0 + at, q.c0 + at, {q.reset + (s.p * B + s.b0) * T, T, 0}, x, s.lstm.ldx, c, net.Hp,
               q.bf16);
  }

  // The target network under its own weights and its own state; keeps nothing but Q.  Borrows the online scratch.
  void target_unroll(const Shard& s) const {
    const float* w = q.target + s.p * net.size;
    float* x[2] = {s.lstm.x(0), s.lstm.x(1)};
    load_initial(s, x[0], s.lstm.C);
    for (int64_t t = 0; t < T; ++t) {
      load_step(s, q.features_target, t, x[t & 1]);
      GateStep g = gate_args(s, w, t);
      g.x = x[t & 1];
      g.c_in = g.c_out = s.lstm.C;
      g.y = s.lstm.Y;
      g.x_next = t + 1 < T ? x[(t + 1) & 1] : nullptr;
      gate_step(s.R, g);
      head_forward(w, s.R, s.lstm.Y, s.head.hidden, s.head.target + t * s.R * net.Op);
    }
  }

  void online_unroll(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    load_initial(s, s.lstm.x(0), s.lstm.c(0));
    for (int64_t t = 0; t < T; ++t) {
      load_step(s, q.features_online, t, s.lstm.x(t));
      GateStep g = gate_args(s, w, t);
      g.x = s.lstm.x(t);
      g.c_in = s.lstm.c(t);
      g.c_out = s.lstm.c(t + 1);
      g.y = s.lstm.y(t);
      g.g = backward && t < S ? s.lstm.g(t) : nullptr;
      g.x_next = t + 1 < T ? s.lstm.x(t + 1) : nullptr;
      g.h_last = t == S ? q.h_final + (s.p * B + s.b0) * H : nullptr;
      gate_step(s.R, g);
    }
    for (int64_t r = 0; r < s.R; ++r)
      memcpy(q.c_final + (s.p * B + s.b0 + r) * H, s.lstm.c(T) + r * net.Hp, size_t(H) * sizeof(float));
    head_forward(w, T * s.R, s.lstm.Y, s.head.hidden, s.head.out);
  }

  // TD errors of the shard's sequences and the gradient of the loss with respect to the head's outputs
  void td_rows(const Shard& s) const {
    if (backward) memset(s.head.d_out, 0, size_t(S * s.R * net.Op) * sizeof(float));
    for (int64_t r = 0; r < s.R; ++r) {
      const int64_t at = s.p * B + s.b0 + r;
      TDSequence seq = sequence(s.p, s.b0 + r);
      seq.q_stride = seq.q_target_stride = s.R * net.Op;
      seq.q_online = s.head.out + r * net.Op;
      seq.q_target = (q.target ? s.head.target : s.head.out) + r * net.Op;
      const TDResult res = td_sequence(seq, q.td, s.head.value, q.td_error + at * S, q.q_taken + at * S);
      row_loss[at] = res.loss;
      q.priority[at] = res.priority;
      if (res.bad_action) __atomic_store_n(q.bad_action, true, __ATOMIC_RELAXED);
      if (!backward) continue;
      const float scale = q.weight[at] / count[s.p];
      for (int64_t t = L; t < S; ++t) {
        const float e = q.td_error[at * S + t];
        if (e == 0.0f) continue;  // not trained, or nothing to learn
        const float d = -scale * td_loss_grad(e, q.td.huber_delta);
        float* o = s.head.d_out + (t * s.R + r) * net.Op;
        if (net.dueling) {
          for (int64_t a = 0; a < A; ++a) o[a] = -d / float(A);
          o[A] = d;
        }
        o[seq.action[t]] += d;
        if (q.bf16)
          for (int64_t a = 0; a < net.outputs; ++a) o[a] = maybe_round(o[a], true);
      }
    }
  }

  void head_backward(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    const int64_t from = L * s.R, n = (S - L) * s.R;
    const float* d_out = s.head.d_out + from * net.Op;
    float* dy = s.head.dy + from * net.Hp;
    if (!net.has_fc) {
      gemm(n, net.Hp, Gemm{net.outputs, d_out, w + net.out_back, net.Op, dy, net.Hp});
      return;
    }
    float* dh = s.head.d_hidden + from * net.Fp;
    const float* hidden = s.head.hidden + from * net.Fp;
    gemm(n, net.Fp, Gemm{net.outputs, d_out, w + net.out_back, net.Op, dh, net.Fp, nullptr, false, q.bf16});
    for (int64_t i = 0; i < n * net.Fp; i += kLanes) store(dh + i, select(load(hidden + i) > 0.0f, load(dh + i), V{}));
    gemm(n, net.Hp, Gemm{net.F, dh, w + net.fc_back, net.Fp, dy, net.Hp});
  }

  void time_backward(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    const Resets resets{q.reset + (s.p * B + s.b0) * T, T, 0};
    const BackScratch b{s.head.carry_h, s.head.carry_c};
    memset(b.carry_h, 0, size_t(s.R * net.Hp) * sizeof(float));
    memset(b.carry_c, 0, size_t(s.R * net.Hp) * sizeof(float));
    float* dx = q.feature_grad ? q.feature_grad + (s.p * B + s.b0) * T * D : nullptr;
    for (int64_t r = 0; dx && r < s.R; ++r) {  // burn-in and the last observation get exactly 0
      memset(dx + r * T * D, 0, size_t(L * D) * sizeof(float));
      memset(dx + (r * T + S) * D, 0, size_t(D) * sizeof(float));
    }
    for (int64_t t = S - 1; t >= L; --t) {
      const Resets reset = resets.step(t);
      cell_backward(s.lstm, t, s.head.dy + t * s.R * net.Hp, b, reset, q.bf16);
      if (t > L) recurrent_backward(s.lstm, t, w + net.w_hh_back, b, reset);
      if (dx) feature_backward(s.lstm, t, w + net.w_ih_back, s.head.dx, dx + t * D, T * D);
    }
  }

  void shard_work(int64_t item) const {
    const Shard s = shard(item / shards, item % shards);
    if (q.target) target_unroll(s);
    online_unroll(s);
    td_rows(s);
    if (!backward) return;
    head_backward(s);
    time_backward(s);
  }

  // --- region 3 ---
  int64_t grad_parts() const { return gate_blocks + fc_blocks + 1; }
  int64_t buffer_floats() const {
    const int64_t lstm = LstmWeightGrad::buffer_floats(D, H);
    const int64_t head = round_up(net.outputs, kRows) * (net.Fp + kLanes) + kWide * (net.Hp + kLanes);
    return round_up(lesser(lstm, head) == lstm ? head : lstm, 16);
  }

  // Rows [0, n) of dW = sum over shards of a^T b and of db = column sums of a; a's columns [col, col + n).
  // dst(i) says where row i goes.
  struct HeadRow {
    float *dw, *db;
  };
  template <class Left, class Right, class Dst>
  void head_grad(int64_t p, int64_t n, int64_t cols, int64_t cols_p, int64_t col, int64_t a_p, Left left, Right right,
                 float* buffer, Dst dst) const {
    float* bias = buffer + n * cols_p;
    memset(buffer, 0, size_t(n * cols_p + round_up(n, kLanes)) * sizeof(float));
    for (int64_t i = 0; i < shards; ++i) {
      const Shard s = shard(p, i);
      const int64_t K = (S - L) * s.R, from = L * s.R;
      const float *a = left(s) + from * a_p + col, *b = right(s) + from * cols_p;
      gemm_at_b(n, cols_p, GemmAtB{K, a, b, a_p, cols_p, buffer, cols_p});
      column_sums(K, round_up(n, kLanes), a, a_p, bias);
    }
    for (int64_t i = 0; i < n; ++i) {
      const HeadRow to = dst(i);
      memcpy(to.dw, buffer + i * cols_p, size_t(cols) * sizeof(float));
      *to.db = bias[i];
    }
  }

  void grad_work(int64_t item) const {
    const int64_t p = item / grad_parts(), part = item % grad_parts();
    float* buffer = buffers + item * buffer_floats();
    const NetGrad& g = q.grad;
    if (part < gate_blocks) {
      const LstmWeightGrad w{D,
                             H,
                             net.Hp,
                             LstmScratch::row_stride(D, H),
                             g.w_ih + p * 4 * H * D,
                             g.w_hh + p * 4 * H * H,
                             g.bias + p * 4 * H,
                             buffer};
      w.begin();
      for (int64_t s = 0; s < shards; ++s) w.add(shard(p, s).lstm, L, S, part);
      w.finish(part);
    } else if (part < gate_blocks + fc_blocks) {
      const int64_t col = (part - gate_blocks) * kWide, n = lesser(kWide, net.F - col);
      head_grad(
          p, n, H, net.Hp, col, net.Fp, [](const Shard& s) { return s.head.d_hidden; },
          [](const Shard& s) { return s.lstm.Y; }, buffer,
          [&](int64_t i) {
            const int64_t row = p * net.F + col + i;
            return HeadRow{g.w_fc + row * H, g.b_fc + row};
          });
    } else {
      head_grad(
          p, net.outputs, net.F, net.Fp, 0, net.Op, [](const Shard& s) { return s.head.d_out; },
          [fc = net.has_fc](const Shard& s) { return fc ? s.head.hidden : s.lstm.Y; }, buffer,
          [&](int64_t i) {
            const int64_t row = p * A + i;
            return i < A ? HeadRow{g.w_adv + row * net.F, g.b_adv + row} : HeadRow{g.w_val + p * net.F, g.b_val + p};
          });
    }
  }

  template <void (TDRun::*work)(int64_t) const>
  void in_parallel(int64_t n) {
    parallel.run(n, this, [](void* self, int64_t i) { (static_cast<const TDRun*>(self)->*work)(i); });
  }
  void prepare_item(int64_t i) const { prepare(i / (gate_blocks + 3), i % (gate_blocks + 3)); }

  void run() {
    const int64_t packed_n = P * net.size_with_backward, scratch_n = P * B * row_floats,
                  small = 2 * round_up(P * B + P, 16),
                  buffer_n = q.param_grads ? P * grad_parts() * buffer_floats() : 0;
    Arena arena(packed_n + small + scratch_n + buffer_n);
    packed = arena.data;
    row_loss = packed + packed_n;
    count = row_loss + P * B;
    scratch = row_loss + small;
    buffers = scratch + scratch_n;
    in_parallel<&TDRun::prepare_item>(P * (gate_blocks + 3));
    in_parallel<&TDRun::shard_work>(P * shards);
    if (q.param_grads) in_parallel<&TDRun::grad_work>(P * grad_parts());
    for (int64_t p = 0; p < P; ++p) {
      double sum = 0.0;
      for (int64_t b = 0; b < B; ++b) sum += double(q.weight[p * B + b]) * double(row_loss[p * B + b]);
      q.loss[p] = float(sum / double(count[p]));
    }
  }
};

static void td_unroll(const TDProblem& q, Parallel parallel) { TDRun(q, parallel).run(); }
