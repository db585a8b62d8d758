// Weights rearranged into the panels that the micro-kernel reads.  Included inside the namespace of one ISA.
//
// Gates: for every block of kLanes units one panel [D + H][i f g o][kLanes], so that a tile holds the four gates of a
// unit in neighbouring registers.  Other matrices: panels of kWide columns, the last one as narrow as it can be.
// Units beyond H are zero: their state stays zero.

struct NetLayout {
  int64_t D, H, F, A, Hp, Fp, outputs, Op;                              // "p": rounded up to whole vectors
  int64_t gate_bias, fc, fc_bias, out, out_bias, size;                  // offsets in floats; the gates come first
  int64_t w_hh_back, w_ih_back, fc_back, out_back, size_with_backward;  // for back-propagation, online network only
  bool has_fc, dueling;

  explicit NetLayout(const NetSizes& n)
      : D(n.D), H(n.H), F(n.fc ? n.F : n.H), A(n.A), Hp(round_up(n.H, kLanes)), has_fc(n.fc), dueling(n.dueling) {
    Fp = round_up(F, kLanes);
    outputs = A + (dueling ? 1 : 0);  // advantages (or Q), then the value
    Op = round_up(outputs, kLanes);
    gate_bias = 4 * Hp * (D + H);
    fc = gate_bias + 4 * Hp;
    fc_bias = fc + (has_fc ? H * Fp : 0);
    out = fc_bias + (has_fc ? Fp : 0);
    out_bias = out + F * Op;
    size = out_bias + Op;
    w_hh_back = size;
    w_ih_back = w_hh_back + 4 * Hp * Hp;
    fc_back = w_ih_back + 4 * Hp * round_up(D, kLanes);
    out_back = fc_back + (has_fc ? F * Hp : 0);
    size_with_backward = out_back + outputs * Fp;
  }
};

static inline float maybe_round(float x, bool bf16) { return bf16 ? round_bf16(splat(x))[0] : x; }

// out: panels of a K x N matrix whose element (k, n) is at(k, n), 0 beyond N
template <class At>
static inline void pack_panels(int64_t K, int64_t N, float* out, bool bf16, At at) {
  const int64_t Np = round_up(N, kLanes);
  for (int64_t n0 = 0; n0 < Np; n0 += kWide) {
    const int64_t w = lesser(kWide, Np - n0);
    float* panel = out + n0 * K;
    for (int64_t n = 0; n < w; ++n)
      for (int64_t k = 0; k < K; ++k) panel[k * w + n] = n0 + n < N ? maybe_round(at(k, n0 + n), bf16) : 0.0f;
  }
}

// The gates of unit block j: forward panel and bias.
static inline void pack_gate_block(const NetLayout& l, const float* w_ih, const float* w_hh, const float* bias,
                                   int64_t j, bool bf16, float* out) {
  const int64_t K = l.D + l.H;
  float *panel = out + j * K * kWide, *b = out + l.gate_bias + j * kWide;
  for (int64_t gate = 0; gate < 4; ++gate)
    for (int64_t u = 0; u < kLanes; ++u) {
      const int64_t unit = j * kLanes + u, row = gate * l.H + unit, at = gate * kLanes + u;
      const bool real = unit < l.H;
      b[at] = real ? bias[row] : 0.0f;
      for (int64_t k = 0; k < l.D; ++k) panel[k * kWide + at] = real ? maybe_round(w_ih[row * l.D + k], bf16) : 0.0f;
      for (int64_t k = 0; k < l.H; ++k)
        panel[(l.D + k) * kWide + at] = real ? maybe_round(w_hh[row * l.H + k], bf16) : 0.0f;
    }
}

// Row q of a gate gradient (block, gate, lane) is this row of w_ih and w_hh, or -1 for a unit beyond H.
static inline int64_t gate_row(int64_t H, int64_t q) {
  const int64_t unit = q / kWide * kLanes + q % kLanes, gate = q % kWide / kLanes;
  return unit < H ? gate * H + unit : -1;
}

// Back-propagation through one of the LSTM's matrices w [4H][cols]: inner dimension 4 Hp in gate-gradient order.
static inline void pack_gates_backward(int64_t H, int64_t Hp, int64_t cols, const float* w, bool bf16, float* out) {
  pack_panels(4 * Hp, cols, out, bf16, [=](int64_t q, int64_t n) {
    const int64_t row = gate_row(H, q);
    return row < 0 ? 0.0f : w[row * cols + n];
  });
}

static inline void pack_head(const NetLayout& l, const NetView& net, int64_t p, bool bf16, bool backward, float* out) {
  const int64_t F = l.F, H = l.H;
  if (l.has_fc) {
    const float* w = net.w_fc + p * F * H;
    pack_panels(H, F, out + l.fc, bf16, [=](int64_t k, int64_t n) { return w[n * H + k]; });
    for (int64_t n = 0; n < l.Fp; ++n) out[l.fc_bias + n] = n < F ? net.b_fc[p * F + n] : 0.0f;
    if (backward) pack_panels(F, H, out + l.fc_back, bf16, [=](int64_t k, int64_t n) { return w[k * H + n]; });
  }
  const float *adv = net.w_adv + p * l.A * F, *val = l.dueling ? net.w_val + p * F : nullptr;
  const auto weight = [=, A = l.A](int64_t o, int64_t f) { return o < A ? adv[o * F + f] : val[f]; };
  pack_panels(F, l.outputs, out + l.out, bf16, [=](int64_t k, int64_t n) { return weight(n, k); });
  for (int64_t n = 0; n < l.Op; ++n)
    out[l.out_bias + n] = n < l.A ? net.b_adv[p * l.A + n] : n < l.outputs ? net.b_val[p] : 0.0f;
  if (backward) pack_panels(l.outputs, F, out + l.out_back, bf16, weight);
}
