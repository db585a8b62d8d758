// Acting runs the encoder, one LSTM step and the head for the rows of all members.  This header is included inside the
// namespace of one instruction set.
//
// Rows never meet, and what a row computes does not depend on the rows beside it.  So a shard may have whatever size
// shares out well, and results depend neither on the threads nor on how many environments there are.

// A member's panels lie layer after layer; in each the weights come first, then the biases.
struct EncoderLayout {
  const EncoderSizes& n;
  int64_t layer_floats(int64_t i) const { return (n.widths[i] + 1) * round_up(n.widths[i + 1], kLanes); }
  int64_t size() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < n.layers; ++i) sum += layer_floats(i);
    return sum;
  }
  int64_t widest() const {  // floats of a row that hold any hidden layer
    int64_t most = 0;
    for (int64_t i = 1; i < n.layers; ++i)
      if (round_up(n.widths[i], kLanes) > most) most = round_up(n.widths[i], kLanes);
    return most;
  }
};

struct EncoderPack {
  EncoderLayout layout;
  const float* const* weights;  // [layer][P][out][in]
  const float* const* biases;   // [layer][P][out]
  float* out;
  int64_t items;  // per member: the panels of all layers

  void work(int64_t item) const {
    const int64_t p = item / items;
    int64_t panel = item % items, i = 0;
    float* to = out + p * layout.size();
    for (; panel >= panels(layout.n.widths[i + 1]); ++i) {
      panel -= panels(layout.n.widths[i + 1]);
      to += layout.layer_floats(i);
    }
    const int64_t K = layout.n.widths[i], N = layout.n.widths[i + 1], n0 = panel * kWide, n = lesser(kWide, N - n0);
    const float *w = weights[i] + p * N * K, *b = biases[i] + p * N + n0;
    pack_columns<Float>(K, N, panel, panel + 1, to, [=](int64_t unit) { return w + unit * K; });
    float* bias = to + K * round_up(N, kLanes) + n0;
    for (int64_t u = 0; u < round_up(n, kLanes); ++u) bias[u] = u < n ? b[u] : 0.0f;
  }
};

static int64_t encoder_size(const EncoderSizes& n) { return EncoderLayout{n}.size(); }

static void pack_encoder(const EncoderSizes& n, const float* const* weights, const float* const* biases, float* out,
                         Parallel parallel) {
  EncoderPack run{{n}, weights, biases, out, 0};
  for (int64_t i = 0; i < n.layers; ++i) run.items += panels(n.widths[i + 1]);
  parallel.run(n.P * run.items, &run, [](void* self, int64_t i) { static_cast<const EncoderPack*>(self)->work(i); });
}

struct StepRun {
  const StepProblem& problem;
  NetLayout<Float> net;
  EncoderLayout encoder;
  int64_t rows, shards, lstm_floats, row_floats;

  explicit StepRun(const StepProblem& p)
      : problem(p),
        net(p.net),
        encoder{p.encoder},
        lstm_floats(LstmScratch<Float>::floats_per_row(1, 1, p.net.D, p.net.H)) {
    // A shard has few rows, so that all threads get their share, and the number of shards is even for two threads.
    // It has more rows where the weights would not stay in cache between shards.
    const int64_t most = 4 * net.Hp * (net.D + net.H) > 256 * 1024 ? 48 : 24;
    const int64_t wanted = round_up((p.E + most - 1) / most, 2);
    rows = (p.E + wanted - 1) / wanted;
    shards = (p.E + rows - 1) / rows;
    // the spare room holds two hidden layers of the encoder in turn, later the head's hidden layer and Q
    row_floats = lstm_floats + larger(2 * encoder.widest(), problem.q ? net.ldf() + net.outputs_p : 0);
  }

  void work(int64_t item) const {
    const int64_t p = item / shards, e0 = item % shards * rows, R = lesser(rows, problem.E - e0),
                  at = p * problem.E + e0;
    const int64_t D = net.D, H = net.H;
    const Arena scratch(R * row_floats);  // of a shard only: it stays in cache from one shard to the next
    const LstmScratch<Float> l(R, 1, 1, D, H, scratch.data);
    float* spare = scratch.data + R * lstm_floats;
    const float* w = problem.packed + p * problem.packed_stride;
    if (problem.encoder.layers)
      encode(p, at, l, spare);
    else
      load_features<Float>(R, D, net.Hp, problem.x + at * D, D, l.X, l.ldx);
    const Resets reset{problem.reset ? problem.reset + at : nullptr, 1, 0};
    load_state<Float>(R, H, problem.h + at * H, problem.c + at * H, reset, l.h(0), l.ldx, l.C, net.Hp);
    project_inputs(R, l, l.X, w, w + net.gate_bias, l.G);
    GateStep<Float> g = step_of(l, 0, w + net.hh, reset);
    g.h_last = problem.h_out + at * H;
    gate_step(R, g);
    for (int64_t r = 0; r < R; ++r)
      memcpy(problem.c_out + (at + r) * H, l.c(1) + r * net.Hp, size_t(H) * sizeof(float));
    if (problem.q) {
      float* out = spare + R * net.ldf();
      q_values(net, w, R, l.Y, spare, out);
      for (int64_t r = 0; r < R; ++r)
        memcpy(problem.q + (at + r) * net.A, out + r * net.outputs_p, size_t(net.A) * sizeof(float));
    }
    if (problem.done) problem.done(problem.context, at, R);
  }

  // Runs all layers into the operand rows x.  The last layer's padding spills over the state, which is written later.
  void encode(int64_t p, int64_t at, const LstmScratch<Float>& l, float* spare) const {
    const float *from = problem.x + at * problem.encoder.widths[0], *w = problem.encoder_packed + p * encoder.size();
    int64_t ld = problem.encoder.widths[0];
    for (int64_t i = 0; i < problem.encoder.layers; ++i) {
      const bool last = i + 1 == problem.encoder.layers;
      const int64_t K = problem.encoder.widths[i], Np = round_up(problem.encoder.widths[i + 1], kLanes),
                    ldc = last ? l.ldx : Np;
      float* to = last ? l.X : spare + (i & 1) * l.R * encoder.widest();
      Gemm<Float> layer{K, from, w, ld, to, ldc, w + K * Np};
      layer.relu = true;
      gemm(l.R, Np, layer);
      from = to;
      ld = ldc;
      w += encoder.layer_floats(i);
    }
  }
};

static void step(const StepProblem& problem, Parallel parallel) {
  StepRun run(problem);
  parallel.run(problem.net.P * run.shards, &run,
               [](void* self, int64_t i) { static_cast<const StepRun*>(self)->work(i); });
}
