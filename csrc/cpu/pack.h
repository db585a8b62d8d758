// Rearranges weights into the panels that the micro-kernel reads.  This header is included inside the namespace of one
// instruction set.
//
// A K x N matrix becomes panels of kWide columns, [words of K][kWide], the last one as narrow as it can be.  The
// columns of the gates' matrices come in the order (block of kLanes units, gate i f g o, unit).  So a panel is a block,
// and a tile holds the four gates of a unit in neighbouring registers.  Units beyond H are zero: their state stays
// zero.

// Sizes and offsets (in floats) of one network's panels.  "p": rounded up to whole vectors.
template <class Op>
struct NetLayout {
  int64_t D, H, F, A, Hp, Fp, Dp, outputs, outputs_p;
  int64_t hh, gate_bias, fc, fc_bias, out, out_bias, size;          // W_ih's panels come first
  int64_t hh_back, ih_back, fc_back, out_back, size_with_backward;  // for back-propagation, online network only
  bool has_fc, dueling;

  explicit NetLayout(const NetSizes& n)
      : D(n.D), H(n.H), F(n.fc ? n.F : n.H), A(n.A), Hp(round_up(n.H, kLanes)), has_fc(n.fc), dueling(n.dueling) {
    Fp = round_up(F, kLanes);
    Dp = round_up(D, kLanes);
    outputs = A + (dueling ? 1 : 0);  // advantages (or Q), then the value
    outputs_p = round_up(outputs, kLanes);
    hh = 4 * Hp * Op::words(D);
    gate_bias = hh + 4 * Hp * Op::words(H);
    fc = gate_bias + 4 * Hp;
    fc_bias = fc + (has_fc ? Op::words(H) * Fp : 0);
    out = fc_bias + (has_fc ? Fp : 0);
    out_bias = out + Op::words(F) * outputs_p;
    size = out_bias + outputs_p;
    hh_back = size;
    ih_back = hh_back + Op::words(4 * Hp) * Hp;
    fc_back = ih_back + Op::words(4 * Hp) * Dp;
    out_back = fc_back + (has_fc ? Op::words(F) * Hp : 0);
    size_with_backward = out_back + Op::words(outputs) * Fp;
  }
  int64_t ldf() const { return round_up(Op::words(F), kLanes); }  // from row to row of the head's hidden layer
};

// Panels [from, to) of a matrix given by its columns: column(n) points at K consecutive floats, or is null (zeros).
template <class Op, class Column>
static inline void pack_columns(int64_t K, int64_t N, int64_t from, int64_t to, float* out, Column column) {
  const int64_t Kw = Op::words(K), Np = round_up(N, kLanes);
  for (int64_t n0 = from * kWide; n0 < lesser(Np, to * kWide); n0 += kLanes) {
    const int64_t first = n0 / kWide * kWide, width = lesser(kWide, Np - first);
    float* panel = out + first * Kw + n0 - first;
    const float* columns[kLanes];
    for (int n = 0; n < kLanes; ++n) columns[n] = n0 + n < N ? column(n0 + n) : nullptr;
    for (int64_t k = 0; k < Kw; k += kLanes) {
      V words[kLanes];
      const int64_t left = K - k * Op::kPack;
      for (int n = 0; n < kLanes && left > 4 * kLanes * Op::kPack; ++n)
        if (columns[n]) __builtin_prefetch(columns[n] + (k + 4 * kLanes) * Op::kPack);
      for (int n = 0; n < kLanes; ++n) words[n] = columns[n] ? Op::gather(columns[n] + k * Op::kPack, left) : V{};
      transpose(words);
      for (int64_t i = 0; i < lesser(kLanes, Kw - k); ++i) store(panel + (k + i) * width, words[i]);
    }
  }
}

// Panels [from, to) of a matrix given by its rows: row(k) points at N consecutive floats, or is null (zeros).
template <class Op, class Row>
static inline void pack_rows(int64_t K, int64_t N, int64_t from, int64_t to, float* out, Row row) {
  const int64_t Kw = Op::words(K), Np = round_up(N, kLanes);
  for (int64_t n0 = from * kWide; n0 < lesser(Np, to * kWide); n0 += kWide) {
    const int64_t width = lesser(kWide, Np - n0);
    float* panel = out + n0 * Kw;
    for (int64_t k = 0; k < Kw; ++k) {
      const float* a = row(k * Op::kPack);
      const float* b = (k + 1) * Op::kPack <= K ? row((k + 1) * Op::kPack - 1) : nullptr;
      for (int64_t n = 0; n < width; n += kLanes) {
        const int64_t left = N - n0 - n;
        const V va = a ? Float::gather(a + n0 + n, left) : V{}, vb = b ? Float::gather(b + n0 + n, left) : V{};
        store(panel + k * width + n, Op::join(va, vb));
      }
    }
  }
}

static inline int64_t panels(int64_t N) { return (N + kWide - 1) / kWide; }

// This column of the gates (block, gate, lane) is a row of w_ih and w_hh, or -1 for a unit beyond H.
static inline int64_t gate_row(int64_t H, int64_t column) {
  const int64_t unit = column / kWide * kLanes + column % kLanes, gate = column % kWide / kLanes;
  return unit < H ? gate * H + unit : -1;
}

// The gates of unit block j: its panels of W_ih and W_hh, and its biases.
template <class Op>
static inline void pack_gate_block(const NetLayout<Op>& l, const float* w_ih, const float* w_hh, const float* bias,
                                   int64_t j, float* out) {
  const auto columns_of = [H = l.H](const float* w, int64_t K) {
    return [=](int64_t column) {
      const int64_t row = gate_row(H, column);
      return row < 0 ? nullptr : w + row * K;
    };
  };
  pack_columns<Op>(l.D, 4 * l.Hp, j, j + 1, out, columns_of(w_ih, l.D));
  pack_columns<Op>(l.H, 4 * l.Hp, j, j + 1, out + l.hh, columns_of(w_hh, l.H));
  for (int64_t column = j * kWide; column < (j + 1) * kWide; ++column) {
    const int64_t row = gate_row(l.H, column);
    out[l.gate_bias + column] = row < 0 ? 0.0f : bias[row];
  }
}

// Panel i of one of the LSTM's matrices w [4H][cols] for back-propagation: inner dimension 4 Hp in the gates' order.
template <class Op>
static inline void pack_gates_backward(int64_t H, int64_t Hp, int64_t cols, const float* w, int64_t i, float* out) {
  pack_rows<Op>(4 * Hp, cols, i, i + 1, out, [=](int64_t column) {
    const int64_t row = gate_row(H, column);
    return row < 0 ? nullptr : w + row * cols;
  });
}

template <class Op>
static inline void pack_head(const NetLayout<Op>& l, const NetView& net, int64_t p, bool backward, float* out) {
  const int64_t F = l.F, H = l.H;
  if (l.has_fc) {
    const float* w = net.w_fc + p * F * H;
    const auto unit = [=](int64_t f) { return w + f * H; };
    pack_columns<Op>(H, F, 0, panels(F), out + l.fc, unit);
    for (int64_t n = 0; n < l.Fp; ++n) out[l.fc_bias + n] = n < F ? net.b_fc[p * F + n] : 0.0f;
    if (backward) pack_rows<Op>(F, H, 0, panels(H), out + l.fc_back, unit);
  }
  const float *adv = net.w_adv + p * l.A * F, *val = l.dueling ? net.w_val + p * F : nullptr;
  const auto output = [=, A = l.A](int64_t o) { return o < A ? adv + o * F : val; };
  pack_columns<Op>(F, l.outputs, 0, panels(l.outputs), out + l.out, output);
  for (int64_t n = 0; n < l.outputs_p; ++n)
    out[l.out_bias + n] = n < l.A ? net.b_adv[p * l.A + n] : n < l.outputs ? net.b_val[p] : 0.0f;
  if (backward) pack_rows<Op>(l.outputs, F, 0, panels(F), out + l.out_back, output);
}

template <class Op>
struct PackRun {
  NetLayout<Op> net;
  const NetView& view;
  float* out;

  void work(int64_t item) const {
    const int64_t blocks = net.Hp / kLanes, p = item / (blocks + 1), j = item % (blocks + 1), D = net.D, H = net.H;
    float* to = out + p * net.size;
    if (j == blocks)
      pack_head(net, view, p, false, to);
    else
      pack_gate_block(net, view.w_ih + p * 4 * H * D, view.w_hh + p * 4 * H * H, view.bias + p * 4 * H, j, to);
  }
  void run(int64_t P, Parallel parallel) {
    parallel.run(P * (net.Hp / kLanes + 1), this,
                 [](void* self, int64_t i) { static_cast<const PackRun*>(self)->work(i); });
  }
};

static void pack(const NetSizes& sizes, const NetView& view, bool bf16, float* out, Parallel parallel) {
  if (bf16)
    PackRun<Bfloat16>{NetLayout<Bfloat16>(sizes), view, out}.run(sizes.P, parallel);
  else
    PackRun<Float>{NetLayout<Float>(sizes), view, out}.run(sizes.P, parallel);
}

static int64_t pack_size(const NetSizes& n, bool bf16) {
  return bf16 ? NetLayout<Bfloat16>(n).size : NetLayout<Float>(n).size;
}
