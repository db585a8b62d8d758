// The LSTM over time for the rows (sequences) of one shard.  Included inside the namespace of one ISA.
//
// Scratch is time-major: X [T][R][ldx] holds each step's operand row, features then the state before the step (zero
// where the step starts an episode); G [T][R][4 Hp] the activated gates, later the gradients of their pre-activations;
// C [T + 1][R][Hp] the cell states, C[t] before step t; Y [T][R][Hp] the outputs.

struct LstmScratch {
  int64_t R, T, D, H, Hp, ldx;
  float *X, *G, *C, *Y;

  static int64_t row_stride(int64_t D, int64_t H) { return round_up(D + round_up(H, kLanes), kLanes); }
  // floats for one row; a shard of R rows takes R times as much
  static int64_t floats_per_row(int64_t T, int64_t D, int64_t H) {
    const int64_t Hp = round_up(H, kLanes);
    return T * (row_stride(D, H) + 4 * Hp + Hp) + (T + 1) * Hp;
  }
  LstmScratch(int64_t R_, int64_t T_, int64_t D_, int64_t H_, float* base)
      : R(R_), T(T_), D(D_), H(H_), Hp(round_up(H_, kLanes)), ldx(row_stride(D_, H_)) {
    X = base;
    G = X + R * T * ldx;
    C = G + R * T * 4 * Hp;
    Y = C + R * (T + 1) * Hp;
  }
  float* x(int64_t t) const { return X + t * R * ldx; }
  float* g(int64_t t) const { return G + t * R * 4 * Hp; }
  float* c(int64_t t) const { return C + t * R * Hp; }
  float* y(int64_t t) const { return Y + t * R * Hp; }
};

// Whether row r starts an episode at step t.
struct Resets {
  const bool* first;  // of row 0 at step 0, or null
  int64_t row_stride, t;
  bool at(int64_t r) const { return first && first[r * row_stride + t]; }
  Resets step(int64_t to) const { return {first, row_stride, to}; }
};

// Features of step t into the operand rows; source rows lie `stride` floats apart.  Zeroes what pads the rows.
static inline void load_features(int64_t R, int64_t D, int64_t Hp, const float* from, int64_t stride, float* x,
                                 int64_t ldx, bool bf16) {
  for (int64_t r = 0; r < R; ++r) {
    float* to = x + r * ldx;
    const float* f = from + r * stride;
    memset(to + D + Hp, 0, size_t(ldx - D - Hp) * sizeof(float));
    if (!bf16) {
      memcpy(to, f, size_t(D) * sizeof(float));
      continue;
    }
    int64_t d = 0;
    for (; d + kLanes <= D; d += kLanes) store(to + d, round_bf16(load(f + d)));
    for (; d < D; ++d) to[d] = maybe_round(f[d], true);
  }
}

// The state before step 0: h into the operand rows x, c into the cell rows (both as [R][H] with zero padding).
static inline void load_state(int64_t R, int64_t D, int64_t H, const float* h0, const float* c0, Resets reset0,
                              float* x, int64_t ldx, float* c, int64_t Hp, bool bf16) {
  for (int64_t r = 0; r < R; ++r) {
    float *h = x + r * ldx + D, *cr = c + r * Hp;
    memset(h, 0, size_t(ldx - D) * sizeof(float));
    memset(cr, 0, size_t(Hp) * sizeof(float));
    memcpy(cr, c0 + r * H, size_t(H) * sizeof(float));
    if (!reset0.at(r))
      for (int64_t u = 0; u < H; ++u) h[u] = maybe_round(h0[r * H + u], bf16);
  }
}

// One step for R rows: gates = bias + X W, activated while in registers.
struct GateStep {
  int64_t D, H, Hp, ldx;
  const float *x, *gates, *gate_bias;  // operand rows, packed panels
  const float* c_in;
  float* c_out;             // may be c_in
  float* y;                 // [R][Hp] outputs (rounded with bf16), or null
  float* g = nullptr;       // [R][4 Hp] activated gates, or null
  float* x_next = nullptr;  // operand rows of the next step, or null
  float* h_last = nullptr;  // [R][H] unrounded outputs, or null
  Resets reset, reset_next;
  bool bf16;
  int64_t block = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    static_assert(N == 4, "one vector per gate");
    const int64_t K = D + H, u = block * kLanes;
    Tile<R, 4> tile;
#pragma GCC unroll 8
    for (int n = 0; n < 4; ++n) {
      const V b = load(gate_bias + block * kWide + n * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) tile.acc[r][n] = b;
    }
    tile.multiply(K, x + row * ldx, ldx, 1, gates + block * K * kWide, kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t at = row + r;
      const V c = reset.at(at) ? V{} : load(c_in + at * Hp + u);
      const CellForward<V> s =
          lstm_cell_forward<Math>(tile.acc[r][0], tile.acc[r][1], tile.acc[r][2], tile.acc[r][3], c);
      if (g) {
        float* to = g + at * 4 * Hp + block * kWide;
        store(to, s.i);
        store(to + kLanes, s.f);
        store(to + 2 * kLanes, s.g);
        store(to + 3 * kLanes, s.o);
      }
      store(c_out + at * Hp + u, s.c);
      if (h_last) store_part(h_last + at * H + u, s.h, lesser(kLanes, H - u));
      const V h = bf16 ? round_bf16(s.h) : s.h;
      if (y) store(y + at * Hp + u, h);
      if (x_next) store(x_next + at * ldx + D + u, reset_next.at(at) ? V{} : h);
    }
  }
};

static inline void gate_step(int64_t rows, GateStep s) {
  for (s.block = 0; s.block * kLanes < s.Hp; ++s.block) for_row_tiles<4>(rows, s);
}

// Back through step t for all rows: dh_above [R][Hp] is the loss's gradient of y_t; carry_h and carry_c [R][Hp] hold
// the gradients of the state after the step and receive those of the state before it.
struct BackScratch {
  float *carry_h, *carry_c;
};

static inline void cell_backward(const LstmScratch& s, int64_t t, const float* dh_above, BackScratch b, Resets reset,
                                 bool bf16) {
  for (int64_t r = 0; r < s.R; ++r) {
    const bool fresh = reset.at(r);
    float* g = s.g(t) + r * 4 * s.Hp;
    const float *c_prev = s.c(t) + r * s.Hp, *c = s.c(t + 1) + r * s.Hp, *above = dh_above + r * s.Hp;
    float *dh = b.carry_h + r * s.Hp, *dc = b.carry_c + r * s.Hp;
    for (int64_t u = 0; u < s.Hp; u += kLanes, g += kWide) {
      const CellBackward<V> d = lstm_cell_backward<Math>(load(g), load(g + kLanes), load(g + 2 * kLanes),
                                                         load(g + 3 * kLanes), fresh ? V{} : load(c_prev + u),
                                                         load(c + u), load(above + u) + load(dh + u), load(dc + u));
      store(g, bf16 ? round_bf16(d.di) : d.di);
      store(g + kLanes, bf16 ? round_bf16(d.df) : d.df);
      store(g + 2 * kLanes, bf16 ? round_bf16(d.dg) : d.dg);
      store(g + 3 * kLanes, bf16 ? round_bf16(d.d_o) : d.d_o);
      store(dc + u, fresh ? V{} : d.dc_prev);
    }
  }
}

// carry_h = gate gradients of step t times W_hh, nothing into rows whose state the step had zeroed
static inline void recurrent_backward(const LstmScratch& s, int64_t t, const float* w_hh_back, BackScratch b,
                                      Resets reset) {
  gemm(s.R, s.Hp, Gemm{4 * s.Hp, s.g(t), w_hh_back, 4 * s.Hp, b.carry_h, s.Hp});
  for (int64_t r = 0; r < s.R; ++r)
    if (reset.at(r)) memset(b.carry_h + r * s.Hp, 0, size_t(s.Hp) * sizeof(float));
}

// dx [R][D], rows `stride` apart, of step t
static inline void feature_backward(const LstmScratch& s, int64_t t, const float* w_ih_back, float* buffer, float* dx,
                                    int64_t stride) {
  const int64_t Dp = round_up(s.D, kLanes);
  gemm(s.R, Dp, Gemm{4 * s.Hp, s.g(t), w_ih_back, 4 * s.Hp, buffer, Dp});
  for (int64_t r = 0; r < s.R; ++r) memcpy(dx + r * stride, buffer + r * Dp, size_t(s.D) * sizeof(float));
}

// Weight gradients of unit block j over all shards of a member: steps [from, to) of each.
struct LstmWeightGrad {
  int64_t D, H, Hp, ldx;
  float *w_ih, *w_hh, *bias;  // outputs of this member
  float* buffer;              // [kWide][ldx + 1], rounded up

  static int64_t buffer_floats(int64_t D, int64_t H) { return kWide * LstmScratch::row_stride(D, H) + kWide; }

  void begin() const { memset(buffer, 0, size_t(buffer_floats(D, H)) * sizeof(float)); }
  void add(const LstmScratch& s, int64_t from, int64_t to, int64_t j) const {
    const int64_t K = (to - from) * s.R;
    const float* g = s.g(from) + j * kWide;
    gemm_at_b(kWide, ldx, GemmAtB{K, g, s.x(from), 4 * Hp, ldx, buffer, ldx});
    column_sums(K, kWide, g, 4 * Hp, buffer + kWide * ldx);
  }
  void finish(int64_t j) const {
    for (int64_t q = 0; q < kWide; ++q) {
      const int64_t row = gate_row(H, j * kWide + q);
      if (row < 0) continue;
      memcpy(w_ih + row * D, buffer + q * ldx, size_t(D) * sizeof(float));
      memcpy(w_hh + row * H, buffer + q * ldx + D, size_t(H) * sizeof(float));
      bias[row] = buffer[kWide * ldx + q];
    }
  }
};
