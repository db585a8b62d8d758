// The fused operator unrolls both networks, forms the TD target and the loss, and back-propagates through time.  This
// header is included inside the namespace of one instruction set.
//
// It has three parallel regions.  (1) Pack the online weights and count each member's valid transitions.  (2) One work
// item per (member, shard of sequences) runs the target unroll, the online unroll, the head, the TD target and the
// gradient of the loss, and goes back through time; rows never meet, so there is no barrier inside time.  (3) One work
// item per block of output rows computes weight gradients and sums them over shards in a fixed order.  Nothing depends
// on the number of threads or on the other members.

// The number of sequences in a shard depends on the sizes alone.  Larger weights want more rows for each pass over
// them.
static inline int64_t shard_rows(int64_t B, int64_t D, int64_t H) {
  const int64_t most = 4 * H * (D + H) > 192 * 1024 ? 16 : 8;
  const int64_t shards = (B + most - 1) / most;
  return (B + shards - 1) / shards;
}

// The head takes n rows of outputs y to Q in out [n][outputs_p]; advantages become Q in place.  y and the hidden layer
// are stored as operands.
template <class Op>
static inline void q_values(const NetLayout<Op>& net, const float* w, int64_t n, const float* y, float* hidden,
                            float* out) {
  const int64_t ldy = LstmScratch<Op>::output_stride(net.H), ldf = net.ldf();
  if (net.has_fc) {
    Gemm<Op> fc{Op::words(net.H), y, w + net.fc, ldy, hidden, ldf, w + net.fc_bias};
    fc.relu = fc.operands = true;
    gemm(n, net.Fp, fc);
  }
  const float* last = net.has_fc ? hidden : y;
  gemm(n, net.outputs_p,
       Gemm<Op>{Op::words(net.F), last, w + net.out, net.has_fc ? ldf : ldy, out, net.outputs_p, w + net.out_bias});
  if (!net.dueling) return;
  for (int64_t i = 0; i < n; ++i) {
    float* o = out + i * net.outputs_p;
    float mean = 0.0f;
    for (int64_t a = 0; a < net.A; ++a) mean += o[a];
    const float lift = o[net.A] - mean / float(net.A);
    for (int64_t a = 0; a < net.A; ++a) o[a] += lift;
  }
}

template <class Op>
struct TDRun {
  const TDProblem& problem;
  Parallel parallel;
  NetLayout<Op> net;
  int64_t P, B, S, T, D, H, A, L;
  int64_t rows, shards, chunk;  // rows: of a full shard
  int64_t ldo, ldf;             // strides of the head's operands: gradients of the outputs, hidden layer
  int64_t gate_steps, lstm_floats, head_floats, row_floats, gate_blocks, gate_group, gate_items, fc_blocks;
  bool backward;
  float *packed = nullptr, *scratch = nullptr, *row_loss = nullptr, *count = nullptr, *buffers = nullptr;

  TDRun(const TDProblem& problem_, Parallel parallel_)
      : problem(problem_),
        parallel(parallel_),
        net(problem.net),
        P(problem.net.P),
        B(problem.B),
        S(problem.S),
        T(problem.S + 1),
        D(problem.net.D),
        H(problem.net.H),
        A(problem.net.A),
        L(problem.td.burn_in) {
    rows = shard_rows(B, D, H);
    shards = (B + rows - 1) / rows;
    chunk = lesser(T, chunk_steps(rows));
    backward = problem.param_grads || problem.feature_grad;
    ldo = round_up(Op::words(net.outputs), kLanes);
    ldf = net.ldf();
    gate_steps = backward ? T : chunk;
    lstm_floats = LstmScratch<Op>::floats_per_row(T, gate_steps, D, H);
    // what pair_all_rows takes: two of the widest rows that it pairs
    const int64_t paired = Op::kPack > 1 ? Op::words(kWide) : 0,
                  widest = larger(larger(LstmScratch<Op>::row_stride(D, H), paired), larger(ldo, ldf));
    // both Q tables, the head's hidden layer; its three gradients; carried gradients; one value row; dx of a chunk
    head_floats = T * (2 * net.outputs_p + ldf) + T * (ldo + ldf + net.Hp) + 2 * net.Hp + round_up(T, kLanes) +
                  (problem.feature_grad ? chunk * net.Dp : 0) + 2 * widest;
    row_floats = lstm_floats + head_floats;
    gate_blocks = net.Hp / kLanes;
    gate_group = LstmWeightGrad<Op>::group(H, shards);
    gate_items = (gate_blocks + gate_group - 1) / gate_group;
    fc_blocks = net.has_fc ? panels(net.F) : 0;
  }

  // The head's part of a shard's scratch, time-major like the LSTM's.
  struct Head {
    float *target, *out, *hidden, *d_out, *d_hidden, *dy, *carry_h, *carry_c, *value, *dx, *temp;
    Head(const TDRun& r, int64_t R, float* base) {
      const auto take = [&](int64_t floats) {
        float* p = base;
        base += R * floats;
        return p;
      };
      target = take(r.T * r.net.outputs_p);
      out = take(r.T * r.net.outputs_p);
      hidden = take(r.T * r.ldf);
      d_out = take(r.T * r.ldo);
      d_hidden = take(r.T * r.ldf);
      dy = take(r.T * r.net.Hp);
      carry_h = take(r.net.Hp);
      carry_c = take(r.net.Hp);
      value = take(round_up(r.T, kLanes));
      dx = take(r.problem.feature_grad ? r.chunk * r.net.Dp : 0);
      temp = base;
    }
  };
  struct Shard {
    int64_t p, b0, R;
    LstmScratch<Op> lstm;
    Head head;
  };
  Shard shard(int64_t p, int64_t s) const {
    const int64_t b0 = s * rows, R = lesser(rows, B - b0);
    float* base = scratch + (p * B + b0) * row_floats;
    return {p, b0, R, LstmScratch<Op>(R, T, gate_steps, D, H, base), Head(*this, R, base + R * lstm_floats)};
  }

  // --- region 1 ---
  int64_t back_panels() const { return backward ? panels(H) : 0; }
  int64_t feature_panels() const { return problem.feature_grad ? panels(D) : 0; }
  int64_t prepare_parts() const { return gate_blocks + back_panels() + feature_panels() + 1; }
  void prepare(int64_t item) const {
    const int64_t p = item / prepare_parts();
    int64_t part = item % prepare_parts();
    float* out = packed + p * net.size_with_backward;
    const float *w_ih = problem.online.w_ih + p * 4 * H * D, *w_hh = problem.online.w_hh + p * 4 * H * H;
    if (part < gate_blocks) return pack_gate_block(net, w_ih, w_hh, problem.online.bias + p * 4 * H, part, out);
    part -= gate_blocks;
    if (part < back_panels()) return pack_gates_backward<Op>(H, net.Hp, H, w_hh, part, out + net.hh_back);
    part -= back_panels();
    if (part < feature_panels()) return pack_gates_backward<Op>(H, net.Hp, D, w_ih, part, out + net.ih_back);
    pack_head(net, problem.online, p, backward, out);
    int64_t n = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = L; t < S; ++t) n += td_valid(sequence(p, b), int(t));
    count[p] = n > 0 ? float(n) : 1.0f;
  }

  TDSequence sequence(int64_t p, int64_t b) const {
    const int64_t at = p * B + b;
    TDSequence s{};
    s.action = problem.action + at * S;
    s.reward = problem.reward + at * S;
    s.terminated = problem.terminated + at * S;
    s.reset = problem.reset + at * T;
    s.mask = problem.mask + at * S;
    s.legal = problem.legal ? problem.legal + at * T * A : nullptr;
    s.S = int(S);
    s.A = int(A);
    s.gamma = problem.gamma[p];
    return s;
  }

  // --- region 2 ---
  Resets resets(const Shard& s, int64_t t) const { return {problem.reset + (s.p * B + s.b0) * T, T, t}; }

  // Runs steps [t, t + n) of an unroll, in the operand rows' slots from `at` on.  Inputs are projected together, the
  // rest goes step by step; step(i) completes the arguments of step t + i.
  template <class Step>
  void unroll(const Shard& s, const LstmScratch<Op>& l, const float* w, const float* features, int64_t t, int64_t n,
              int64_t at, Step step) const {
    for (int64_t i = 0; i < n; ++i)
      load_features<Op>(s.R, D, net.Hp, features + ((s.p * B + s.b0) * T + t + i) * D, T * D, l.x(at + i), l.ldx);
    project_inputs(n * s.R, l, l.x(at), w, w + net.gate_bias, l.g(at));
    for (int64_t i = 0; i < n; ++i) {
      GateStep<Op> g = step_of(l, at + i, w + net.hh, resets(s, 0));
      g.h_next = t + i + 1 < T ? l.h(at + i + 1) : nullptr;
      g.reset = resets(s, t + i);
      g.reset_next = resets(s, t + i + 1);
      step(i, g);
      gate_step(s.R, g);
    }
  }
  void load_initial(const Shard& s) const {
    const int64_t from = (s.p * B + s.b0) * H;
    load_state<Op>(s.R, H, problem.h0 + from, problem.c0 + from, resets(s, 0), s.lstm.h(0), s.lstm.ldx, s.lstm.C,
                   net.Hp);
  }

  // Unrolls the target network under its own weights and with its own state.  It keeps nothing but Q and borrows the
  // online network's scratch.
  void target_unroll(const Shard& s) const {
    const float* w = problem.target + s.p * net.size;
    const LstmScratch<Op> l = s.lstm.with_gates_of(chunk);
    load_initial(s);
    for (int64_t t = 0; t < T; t += chunk) {
      const int64_t n = lesser(chunk, T - t);
      unroll(s, l, w, problem.features_target, t, n, 0, [&](int64_t, GateStep<Op>& g) { g.c_in = g.c_out = l.C; });
      q_values(net, w, n * s.R, l.Y, s.head.hidden, s.head.target + t * s.R * net.outputs_p);
      for (int64_t r = 0; t + n < T && r < s.R; ++r)
        memcpy(l.h(0) + r * l.ldx, l.h(n) + r * l.ldx, size_t(Op::words(net.Hp)) * sizeof(float));
    }
  }

  void online_unroll(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    const LstmScratch<Op>& l = s.lstm;
    load_initial(s);
    for (int64_t t = 0; t < T; t += chunk)
      unroll(s, l, w, problem.features_online, t, lesser(chunk, T - t), t, [&](int64_t i, GateStep<Op>& g) {
        g.keep = backward && t + i < S;
        g.h_last = t + i == S ? problem.h_final + (s.p * B + s.b0) * H : nullptr;
      });
    for (int64_t r = 0; r < s.R; ++r)
      memcpy(problem.c_final + (s.p * B + s.b0 + r) * H, l.c(T) + r * net.Hp, size_t(H) * sizeof(float));
    q_values(net, w, T * s.R, l.Y, s.head.hidden, s.head.out);
  }

  // TD errors of the shard's sequences and the gradient of the loss with respect to the head's outputs
  void td_rows(const Shard& s) const {
    if (backward) memset(s.head.d_out, 0, size_t(S * s.R * ldo) * sizeof(float));
    for (int64_t r = 0; r < s.R; ++r) {
      const int64_t at = s.p * B + s.b0 + r;
      TDSequence seq = sequence(s.p, s.b0 + r);
      seq.q_stride = seq.q_target_stride = s.R * net.outputs_p;
      seq.q_online = s.head.out + r * net.outputs_p;
      seq.q_target = (problem.target ? s.head.target : s.head.out) + r * net.outputs_p;
      for (int u = 1; u <= S; ++u) s.head.value[u] = td_greedy_value(seq, problem.td, u);
      TDSums sums;
      for (int t = 0; t < S; ++t) {
        const TDTransition d = td_transition(seq, problem.td, s.head.value, t);
        problem.td_error[at * S + t] = d.error;
        problem.q_taken[at * S + t] = d.q_taken;
        if (d.trained) sums.add(d.error, problem.td.huber_delta);
        if (d.bad_action) __atomic_store_n(problem.bad_action, true, __ATOMIC_RELAXED);
      }
      row_loss[at] = sums.loss;
      problem.priority[at] = sums.priority(problem.td.eta);
      if (!backward) continue;
      const float scale = problem.weight[at] / count[s.p];
      for (int64_t t = L; t < S; ++t) {
        const float e = problem.td_error[at * S + t];
        if (e == 0.0f) continue;  // not trained, or nothing to learn
        const float d = -scale * td_loss_grad(e, problem.td.huber_delta);
        float* o = s.head.d_out + (t * s.R + r) * ldo;
        const float others = net.dueling ? -d / float(A) : 0.0f;
        for (int64_t a = 0; net.dueling && a < A; ++a) Op::put_one(o, a, others);
        if (net.dueling) Op::put_one(o, A, d);
        Op::put_one(o, seq.action[t], others + d);
      }
    }
  }

  void head_backward(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    const int64_t from = L * s.R, n = (S - L) * s.R;
    const float* d_out = s.head.d_out + from * ldo;
    float* dy = s.head.dy + from * net.Hp;
    const Gemm<Op> outputs{Op::words(net.outputs), d_out, w + net.out_back, ldo, dy, net.Hp};
    if (!net.has_fc) return gemm(n, net.Hp, outputs);
    Gemm<Op> hidden = outputs;
    hidden.c = s.head.d_hidden + from * ldf;
    hidden.ldc = ldf;
    hidden.positive = s.head.hidden + from * ldf;
    hidden.operands = true;
    gemm(n, net.Fp, hidden);
    gemm(n, net.Hp, Gemm<Op>{Op::words(net.F), hidden.c, w + net.fc_back, ldf, dy, net.Hp});
  }

  void time_backward(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    const BackScratch b{s.head.carry_h, s.head.carry_c};
    memset(b.carry_h, 0, size_t(s.R * net.Hp) * sizeof(float));
    memset(b.carry_c, 0, size_t(s.R * net.Hp) * sizeof(float));
    for (int64_t t = S - 1; t >= L; --t) {
      cell_backward(s.lstm, t, s.head.dy + t * s.R * net.Hp, b, resets(s, t));
      if (t > L) recurrent_backward(s.lstm, t, w + net.hh_back, b, resets(s, t));
    }
  }

  void feature_backward(const Shard& s) const {
    const float* w = packed + s.p * net.size_with_backward;
    float* dx = problem.feature_grad + (s.p * B + s.b0) * T * D;
    for (int64_t r = 0; r < s.R; ++r) {  // burn-in and the last observation get exactly 0
      memset(dx + r * T * D, 0, size_t(L * D) * sizeof(float));
      memset(dx + (r * T + S) * D, 0, size_t(D) * sizeof(float));
    }
    for (int64_t t = L; t < S; t += chunk) {
      const int64_t n = lesser(chunk, S - t);
      gates_backward(n * s.R, net.Dp, s.lstm, s.lstm.g(t), w + net.ih_back, s.head.dx);
      for (int64_t i = 0; i < n * s.R; ++i)
        memcpy(dx + (i % s.R * T + t + i / s.R) * D, s.head.dx + i * net.Dp, size_t(D) * sizeof(float));
    }
  }

  // The rows are the inner dimension of the next products, so neighbouring rows come to share words.
  void pair_all_rows(const Shard& s) const {
    const LstmScratch<Op>& l = s.lstm;
    const Head& h = s.head;
    const int64_t from = L * s.R, n = (S - L) * s.R;
    for (int64_t j = 0; j < gate_blocks; ++j)
      Op::pair_rows(n, Op::words(kWide), kWide, l.g(L) + j * l.block_stride(), h.temp);
    Op::pair_rows(n, l.ldx, l.ldx, l.x(L), h.temp);
    Op::pair_rows(n, l.ldy, l.ldy, l.y(L), h.temp);
    Op::pair_rows(n, ldo, ldo, h.d_out + from * ldo, h.temp);
    if (!net.has_fc) return;
    Op::pair_rows(n, ldf, ldf, h.hidden + from * ldf, h.temp);
    Op::pair_rows(n, ldf, ldf, h.d_hidden + from * ldf, h.temp);
  }

  void shard_work(int64_t item) const {
    const Shard s = shard(item / shards, item % shards);
    if (problem.target) target_unroll(s);
    online_unroll(s);
    td_rows(s);
    if (!backward) return;
    head_backward(s);
    time_backward(s);
    if (problem.feature_grad) feature_backward(s);
    if (problem.param_grads) pair_all_rows(s);
  }

  // --- region 3 ---
  int64_t grad_parts() const { return gate_items + fc_blocks + 1; }
  int64_t buffer_floats() const {
    const int64_t outputs = net.outputs * net.Fp + net.outputs_p, hidden = kWide * (net.Hp + 1);
    return round_up(larger(gate_group * LstmWeightGrad<Op>::block_floats(D, H), larger(outputs, hidden)), 16);
  }

  // Rows of operands, all shards' alike.
  struct Rows {
    const float* (*of)(const Shard&);
    int64_t stride;
  };
  // Rows [0, n) of dW = sum over shards of left^T right and of db = column sums of left, taken from left's column `col`
  // on; to(i) says where row i goes.
  struct HeadRow {
    float *dw, *db;
  };
  template <class To>
  void head_grad(int64_t p, int64_t n, int64_t cols, int64_t col, Rows left, Rows right, float* buffer, To to) const {
    const int64_t cols_p = round_up(cols, kLanes), n_p = round_up(n, kLanes);
    float* bias = buffer + n * cols_p;
    memset(buffer, 0, size_t(n * cols_p + n_p) * sizeof(float));
    for (int64_t i = 0; i < shards; ++i) {
      const Shard s = shard(p, i);
      const int64_t K = Op::words((S - L) * s.R), from = L * s.R, lda = Op::kPack * left.stride;
      const float *a = left.of(s) + from * left.stride + col, *b = right.of(s) + from * right.stride;
      gemm_at_b(n, cols_p, GemmAtB<Op>{K, a, b, lda, Op::kPack * right.stride, buffer, cols_p});
      column_sums<Op>(K, n_p, a, lda, bias);
    }
    for (int64_t i = 0; i < n; ++i) {
      const HeadRow row = to(i);
      memcpy(row.dw, buffer + i * cols_p, size_t(cols) * sizeof(float));
      *row.db = bias[i];
    }
  }

  void grad_work(int64_t item) const {
    const int64_t p = item / grad_parts(), part = item % grad_parts();
    float* buffer = buffers + item * buffer_floats();
    const NetGrad& g = problem.grad;
    const Rows outputs{[](const Shard& s) -> const float* { return s.head.d_out; }, ldo};
    const Rows hidden{[](const Shard& s) -> const float* { return s.head.hidden; }, ldf};
    const Rows d_hidden{[](const Shard& s) -> const float* { return s.head.d_hidden; }, ldf};
    const Rows y{[](const Shard& s) -> const float* { return s.lstm.Y; }, LstmScratch<Op>::output_stride(H)};
    if (part < gate_items) {
      const int64_t first = part * gate_group;
      const LstmWeightGrad<Op> w{
          D, H, g.w_ih.of(p), g.w_hh.of(p), g.bias.of(p), first, lesser(first + gate_group, gate_blocks), buffer};
      w.begin();
      for (int64_t s = 0; s < shards; ++s) w.add(shard(p, s).lstm, L, S);
      w.finish();
    } else if (part < gate_items + fc_blocks) {
      const int64_t col = (part - gate_items) * kWide, n = lesser(kWide, net.F - col);
      head_grad(p, n, H, col, d_hidden, y, buffer,
                [&](int64_t i) { return HeadRow{g.w_fc.of(p) + (col + i) * H, g.b_fc.of(p) + col + i}; });
    } else {
      head_grad(p, net.outputs, net.F, 0, outputs, net.has_fc ? hidden : y, buffer, [&](int64_t i) {
        return i < A ? HeadRow{g.w_adv.of(p) + i * net.F, g.b_adv.of(p) + i} : HeadRow{g.w_val.of(p), g.b_val.of(p)};
      });
    }
  }

  // --- all three ---
  int64_t packed_floats() const { return P * net.size_with_backward; }
  int64_t small_floats() const { return 2 * round_up(P * B + P, 16); }
  int64_t scratch_floats() const { return P * B * row_floats; }
  int64_t buffers_floats() const { return problem.param_grads ? P * grad_parts() * buffer_floats() : 0; }
  int64_t floats() const { return packed_floats() + small_floats() + scratch_floats() + buffers_floats(); }

  template <void (TDRun::*work)(int64_t) const>
  void in_parallel(int64_t n) {
    parallel.run(n, this, [](void* self, int64_t i) { (static_cast<const TDRun*>(self)->*work)(i); });
  }

  void run() {
    Arena arena(floats());
    packed = arena.data;
    row_loss = packed + packed_floats();
    count = row_loss + P * B;
    scratch = row_loss + small_floats();
    buffers = scratch + scratch_floats();
    in_parallel<&TDRun::prepare>(P * prepare_parts());
    in_parallel<&TDRun::shard_work>(P * shards);
    if (problem.param_grads) in_parallel<&TDRun::grad_work>(P * grad_parts());
    for (int64_t p = 0; p < P; ++p) {
      double sum = 0.0;
      for (int64_t b = 0; b < B; ++b) sum += double(problem.weight[p * B + b]) * double(row_loss[p * B + b]);
      problem.loss[p] = float(sum / double(count[p]));
    }
  }
};

static void td_unroll(const TDProblem& problem, Parallel parallel) {
  if (problem.bf16)
    TDRun<Bfloat16>(problem, parallel).run();
  else
    TDRun<Float>(problem, parallel).run();
}

// Bytes of scratch that a call of td_unroll takes.
static int64_t td_unroll_scratch(const TDProblem& problem) {
  return int64_t(sizeof(float)) *
         (problem.bf16 ? TDRun<Bfloat16>(problem, {}).floats() : TDRun<Float>(problem, {}).floats());
}
