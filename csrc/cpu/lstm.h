// The LSTM over time for the rows (sequences) of one shard.  This header is included inside the namespace of one
// instruction set.
//
// Scratch is time-major.  X [T][R][ldx] holds each step's operand row: features, then the state before the step (zero
// where the step starts an episode).  G [blocks][Tg][R][4 kLanes] has a run for each block of kLanes units.  It first
// holds the pre-activations, then the activated gates, then the gradients of the pre-activations as operands.  It has
// room for all steps (Tg = T), or where nothing goes back through them for the last Tg steps only.  C [T + 1][R][Hp]
// holds the cell states, C[t] before step t, and Y [T][R][ldy] holds the outputs as operands.

template <class Op>
struct LstmScratch {
  int64_t R, T, Tg, D, H, Hp, ldx, ldy;
  float *X, *G, *C, *Y;

  // The stride is an odd number of vectors, so that the rows of a step spread over all sets of the cache.
  static int64_t row_stride(int64_t D, int64_t H) {
    return (round_up(Op::words(D) + Op::words(round_up(H, kLanes)), kLanes) / kLanes | 1) * kLanes;
  }
  static int64_t output_stride(int64_t H) { return round_up(Op::words(H), kLanes); }
  // floats for one row; a shard of R rows takes R times as much
  static int64_t floats_per_row(int64_t T, int64_t Tg, int64_t D, int64_t H) {
    const int64_t Hp = round_up(H, kLanes);
    return T * (row_stride(D, H) + output_stride(H)) + Tg * 4 * Hp + (T + 1) * Hp;
  }
  LstmScratch(int64_t R_, int64_t T_, int64_t Tg_, int64_t D_, int64_t H_, float* base)
      : R(R_), T(T_), Tg(Tg_), D(D_), H(H_), Hp(round_up(H_, kLanes)), ldx(row_stride(D_, H_)), ldy(output_stride(H_)) {
    X = base;
    G = X + R * T * ldx;
    C = G + R * Tg * 4 * Hp;
    Y = C + R * (T + 1) * Hp;
  }
  // the same scratch with room for the gates of `steps` steps only
  LstmScratch with_gates_of(int64_t steps) const {
    LstmScratch s = *this;
    s.Tg = steps;
    return s;
  }
  int64_t block_stride() const { return Tg * R * kWide; }
  float* x(int64_t t) const { return X + t * R * ldx; }
  float* h(int64_t t) const { return x(t) + Op::words(D); }     // the state in the operand rows
  float* g(int64_t t) const { return G + t % Tg * R * kWide; }  // of block 0
  float* c(int64_t t) const { return C + t * R * Hp; }
  float* y(int64_t t) const { return Y + t * R * ldy; }
};

// Time steps whose inputs are projected together: enough rows to be worth a pass over W_ih, few enough to stay in
// cache.
static inline int64_t chunk_steps(int64_t rows) { return larger(1, 48 / rows); }

// Whether row r starts an episode at step t.
struct Resets {
  const bool* reset;  // of row 0 at step 0, or null
  int64_t row_stride, t;
  bool at(int64_t r) const { return reset && reset[r * row_stride + t]; }
  Resets step(int64_t to) const { return {reset, row_stride, to}; }
};

// Features of one step into the operand rows; source rows lie `stride` floats apart.  Zeroes what pads the rows.
template <class Op>
static inline void load_features(int64_t R, int64_t D, int64_t Hp, const float* from, int64_t stride, float* x,
                                 int64_t ldx) {
  const int64_t used = Op::words(D) + Op::words(Hp);
  for (int64_t r = 0; r < R; ++r) {
    Op::put_row(x + r * ldx, from + r * stride, D);
    memset(x + r * ldx + used, 0, size_t(ldx - used) * sizeof(float));
  }
}

// The state before step 0: h into the operand rows' state h, c into the cell rows (both as [R][H] with zero padding).
template <class Op>
static inline void load_state(int64_t R, int64_t H, const float* h0, const float* c0, Resets reset0, float* h,
                              int64_t ldx, float* c, int64_t Hp) {
  for (int64_t r = 0; r < R; ++r) {
    float *hr = h + r * ldx, *cr = c + r * Hp;
    memset(hr, 0, size_t(Op::words(Hp)) * sizeof(float));
    memset(cr, 0, size_t(Hp) * sizeof(float));
    memcpy(cr, c0 + r * H, size_t(H) * sizeof(float));
    if (!reset0.at(r)) Op::put_row(hr, h0 + r * H, H);
  }
}

// Pre-activations of n rows (of one step or several) from their features: bias + x W_ih^T, into the runs of G.
template <class Op>
static inline void project_inputs(int64_t n, const LstmScratch<Op>& s, const float* x, const float* panels,
                                  const float* bias, float* g) {
  Gemm<Op> m{Op::words(s.D), x, panels, s.ldx, g, kWide, bias};
  m.c_panel = s.block_stride();
  gemm(n, 4 * s.Hp, m);
}

// One step for R rows: gates = pre-activations + h W_hh^T, activated while at hand.
template <class Op>
struct GateStep {
  int64_t H, Hp, ldx, ldy;
  const float *h, *hh;  // states in the operand rows, panels of W_hh
  float* g;             // pre-activations of the step, block 0
  int64_t g_block;      // from one block's run to the next
  bool keep;            // leave the activated gates in g
  const float* c_in;
  float* c_out;             // may be c_in
  float* y = nullptr;       // [R][ldy] outputs as operands, or null
  float* h_next = nullptr;  // states in the operand rows of the next step, or null
  float* h_last = nullptr;  // [R][H] unrounded outputs, or null
  Resets reset, reset_next;
  int64_t block = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    static_assert(N == 4, "one vector per gate");
    const int64_t K = Op::words(H), u = block * kLanes;
    float* gates = g + block * g_block + row * kWide;
    multiply<Op, R, 4, false>({h + row * ldx, ldx, K}, hh + block * K * kWide, kWide, gates, kWide);
    for (int r = 0; r < R; ++r) {
      float* to = gates + r * kWide;
      const int64_t at = row + r;
      const V c = reset.at(at) ? V{} : load(c_in + at * Hp + u);
      const CellForward<V> s =
          lstm_cell_forward<Math>(load(to), load(to + kLanes), load(to + 2 * kLanes), load(to + 3 * kLanes), c);
      if (keep) {
        store(to, s.i);
        store(to + kLanes, s.f);
        store(to + 2 * kLanes, s.g);
        store(to + 3 * kLanes, s.o);
      }
      store(c_out + at * Hp + u, s.c);
      if (h_last) store_part(h_last + at * H + u, s.h, lesser(kLanes, H - u));
      if (y) Op::put(y + at * ldy, u, s.h);
      if (h_next) Op::put(h_next + at * ldx, u, reset_next.at(at) ? V{} : s.h);
    }
  }
};

template <class Op>
static inline void gate_step(int64_t rows, GateStep<Op> s) {
  for (s.block = 0; s.block * kLanes < s.Hp; ++s.block) for_row_tiles<4>(rows, s);
}

// The arguments that every step of an unroll from slot t of the scratch shares; what is left: h_next, h_last, keep.
template <class Op>
static inline GateStep<Op> step_of(const LstmScratch<Op>& l, int64_t t, const float* hh, Resets resets) {
  GateStep<Op> g{};
  g.H = l.H;
  g.Hp = l.Hp;
  g.ldx = l.ldx;
  g.ldy = l.ldy;
  g.h = l.h(t);
  g.hh = hh;
  g.g = l.g(t);
  g.g_block = l.block_stride();
  g.c_in = l.c(t);
  g.c_out = l.c(t + 1);
  g.y = l.y(t);
  g.reset = resets.step(t);
  g.reset_next = resets.step(t + 1);
  return g;
}

// The gradients carried back through time, [R][Hp] each: of the state after step t, then of the state before it.
struct BackScratch {
  float *carry_h, *carry_c;
};

// Through the cell at step t; dh_above [R][Hp] is the loss's gradient of y_t.
template <class Op>
static inline void cell_backward(const LstmScratch<Op>& s, int64_t t, const float* dh_above, BackScratch b,
                                 Resets reset) {
  float* run = s.g(t);
  for (int64_t u = 0; u < s.Hp; u += kLanes, run += s.block_stride())
    for (int64_t r = 0; r < s.R; ++r) {
      const bool fresh = reset.at(r);
      float* g = run + r * kWide;
      const int64_t at = r * s.Hp + u;
      const CellBackward<V> d = lstm_cell_backward<Math>(
          load(g), load(g + kLanes), load(g + 2 * kLanes), load(g + 3 * kLanes), fresh ? V{} : load(s.c(t) + at),
          load(s.c(t + 1) + at), load(dh_above + at) + load(b.carry_h + at), load(b.carry_c + at));
      Op::put(g, 0, d.di);
      Op::put(g, kLanes, d.df);
      Op::put(g, 2 * kLanes, d.dg);
      Op::put(g, 3 * kLanes, d.d_o);
      store(b.carry_c + at, fresh ? V{} : d.dc_prev);
    }
}

// Gate gradients of n rows times a matrix packed by pack_gates_backward, cols wide, into c [n][cols].
template <class Op>
static inline void gates_backward(int64_t n, int64_t cols, const LstmScratch<Op>& s, const float* g,
                                  const float* panels, float* c) {
  Gemm<Op> m{Op::words(kWide), g, panels, kWide, c, cols};
  m.blocks = s.Hp / kLanes;
  m.a_block = s.block_stride();
  gemm(n, cols, m);
}

// carry_h = gate gradients of step t times W_hh, nothing into rows whose state the step had zeroed
template <class Op>
static inline void recurrent_backward(const LstmScratch<Op>& s, int64_t t, const float* hh_back, BackScratch b,
                                      Resets reset) {
  gates_backward(s.R, s.Hp, s, s.g(t), hh_back, b.carry_h);
  for (int64_t r = 0; r < s.R; ++r)
    if (reset.at(r)) memset(b.carry_h + r * s.Hp, 0, size_t(s.Hp) * sizeof(float));
}

// Weight gradients of unit blocks [first, last) over all shards of a member: steps [from, to) of each, rows paired.
template <class Op>
struct LstmWeightGrad {
  int64_t D, H;
  float *w_ih, *w_hh, *bias;  // outputs of this member
  int64_t first, last;
  float* buffer;  // for each block [kWide][columns], then [kWide]

  // features, up to a whole word, then the state
  static int64_t columns(int64_t D, int64_t H) {
    return round_up(Op::kPack * Op::words(D) + round_up(H, kLanes), kLanes);
  }
  static int64_t block_floats(int64_t D, int64_t H) { return kWide * columns(D, H) + kWide; }
  // Blocks that share a pass over the operand rows: as many as leave work for at least four threads, and at most four.
  static int64_t group(int64_t H, int64_t shards) {
    return larger(1, lesser(4, round_up(H, kLanes) / kLanes / larger(4, shards)));
  }

  void begin() const { memset(buffer, 0, size_t((last - first) * block_floats(D, H)) * sizeof(float)); }
  void add(const LstmScratch<Op>& s, int64_t from, int64_t to) const {
    constexpr int64_t kRowsAtOnce = 256;  // words of rows that stay in cache from one block to the next
    const int64_t words = Op::words((to - from) * s.R), cols = columns(D, H), ldg = Op::kPack * kWide,
                  ldx = Op::kPack * s.ldx;
    for (int64_t k = 0; k < words; k += kRowsAtOnce)
      for (int64_t j = first; j < last; ++j) {
        const int64_t K = lesser(kRowsAtOnce, words - k);
        const float* g = s.g(from) + j * s.block_stride() + k * ldg;
        float* c = buffer + (j - first) * block_floats(D, H);
        gemm_at_b(kWide, cols, GemmAtB<Op>{K, g, s.x(from) + k * ldx, ldg, ldx, c, cols});
        column_sums<Op>(K, kWide, g, ldg, c + kWide * cols);
      }
  }
  void finish() const {
    const int64_t cols = columns(D, H);
    for (int64_t column = first * kWide; column < last * kWide; ++column) {
      const int64_t row = gate_row(H, column);
      if (row < 0) continue;
      const float* c = buffer + (column / kWide - first) * block_floats(D, H);
      memcpy(w_ih + row * D, c + column % kWide * cols, size_t(D) * sizeof(float));
      memcpy(w_hh + row * H, c + column % kWide * cols + Op::kPack * Op::words(D), size_t(H) * sizeof(float));
      bias[row] = c[kWide * cols + column % kWide];
    }
  }
};
