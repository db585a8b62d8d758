// The encoder of RecurrentSpatialQNetwork for P members: two 3x3 convolutions over maps, a ReLU layer over them, and
// ReLU layers over the other numbers.  This header is included inside the namespace of one instruction set.
//
// Images lie side by side in the lanes ("[channel][pixel][image]").  So weights are read as they are, one broadcast a
// product, taps that fall off the map are left out instead of multiplied by zero, and nothing is packed.  A block of at
// most kWide images goes through all layers while it is in cache.  Only the gradients of weights contract over images,
// and blocks are transposed for them.  Gradients of convolutions are summed by block, then over blocks in order:
// nothing depends on the number of threads.

template <int R, int N>
struct SpatialTile {
  V acc[R][N];

  // acc += sum_k a[r, k] b[k, :]; element (r, k) of a lies at a[r * a_row + k * a_k], row k of b at b + k * b_k
  __attribute__((always_inline)) inline void multiply(int64_t K, const float* a, int64_t a_row, int64_t a_k,
                                                      const float* b, int64_t b_k) {
    for (int64_t k = 0; k < K; ++k) {
      V bv[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) bv[n] = load(b + n * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V av = splat(a[r * a_row]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) acc[r][n] += av * bv[n];
      }
      a += a_k;
      b += b_k;
    }
  }
};

// dst [cols][out] = src [rows][cols] transposed, zeros from `rows` to `out`, a multiple of kLanes
static inline void transpose_block(int64_t rows, int64_t cols, const float* src, int64_t src_ld, int64_t out,
                                   float* dst, int64_t dst_ld) {
  for (int64_t r = 0; r < out; r += kLanes)
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int64_t n = lesser(kLanes, cols - c);
      V v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = src + (r + i) * src_ld + c;
        v[i] = r + i >= rows ? V{} : n == kLanes ? load(from) : load_part(from, n);
      }
      transpose(v);
      for (int64_t i = 0; i < n; ++i) store(dst + (c + i) * dst_ld + r, v[i]);
    }
}

// C [rows][lanes] = W B (+ bias) (then ReLU, or 0 where `positive` is not) for B [K][lanes]
struct SpatialLayer {
  int64_t K;
  const float* w;  // element (row, k) at w[row * w_row + k * w_k]
  int64_t w_row, w_k;
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  const float *bias, *positive;  // [rows] or null; like C or null
  bool relu;
  int64_t col = 0;

  template <int R, int N>
  inline void begin(int64_t row, SpatialTile<R, N>& t) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V first = bias ? splat(bias[row + r]) : V{};
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) t.acc[r][n] = first;
    }
  }
  template <int R, int N>
  inline void finish(int64_t row, SpatialTile<R, N>& t) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const int64_t at = (row + r) * ldc + col + n * kLanes;
        V v = t.acc[r][n];
        if (relu) v = select(v > 0.0f, v, V{});
        if (positive) v = select(load(positive + at) > 0.0f, v, V{});
        store(c + at, v);
      }
  }
  template <int R, int N>
  inline void run(int64_t row) const {
    SpatialTile<R, N> t;
    begin(row, t);
    t.multiply(K, w + row * w_row, w_row, w_k, b + col, ldb);
    finish(row, t);
  }
};

// The taps of a 3x3 window that lie on the map, for an output pixel: where in the weights, which pixel.  Mirrored for
// back-propagation: which output pixels an input pixel reaches.
struct Taps {
  int64_t n = 0, tap[9], pixel[9];
  Taps(int64_t height, int64_t width, int64_t at, bool mirrored) {
    for (int64_t dy = -1; dy <= 1; ++dy)
      for (int64_t dx = -1; dx <= 1; ++dx) {
        const int64_t y = at / width + dy, x = at % width + dx;
        if (y < 0 || y >= height || x < 0 || x >= width) continue;
        tap[n] = mirrored ? 4 - 3 * dy - dx : 4 + 3 * dy + dx;
        pixel[n++] = y * width + x;
      }
  }
};

// One output pixel of a convolution, or of its gradient: the layer over K channels, `plane` apart, at every tap.
struct SpatialConv {
  SpatialLayer layer;
  const Taps& taps;
  int64_t pixel_stride;
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) {
    SpatialTile<R, N> t;
    layer.col = col;
    layer.begin(row, t);
    for (int64_t i = 0; i < taps.n; ++i)
      t.multiply(layer.K, layer.w + row * layer.w_row + taps.tap[i], layer.w_row, layer.w_k,
                 layer.b + taps.pixel[i] * pixel_stride + col, layer.ldb);
    layer.finish(row, t);
  }
};

// C [rows][cols] = sum over output pixels of A^T B: A [pixel][K][a_k] at the pixel that is (dy, dx) away, B
// [pixel][K][b_k]. A dense layer has one pixel.
struct SpatialGrad {
  int64_t K;
  const float *a, *b;
  int64_t a_k, b_k;
  float* c;
  int64_t ldc;
  int64_t height = 1, width = 1, dy = 0, dx = 0, stride = 0;  // stride: shared rows from pixel to pixel
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    SpatialTile<R, N> t{};
    for (int64_t y = dy < 0 ? -dy : 0; y < lesser(height, height - dy); ++y)
      for (int64_t x = dx < 0 ? -dx : 0; x < lesser(width, width - dx); ++x) {
        const int64_t to = y * width + x, from = to + dy * width + dx;
        t.multiply(K, a + from * stride * a_k + row, 1, a_k, b + to * stride * b_k + col, b_k);
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) store(c + (row + r) * ldc + col + n * kLanes, t.acc[r][n]);
  }
};

// Sizes of one member, in floats.
struct SpatialLayout {
  int64_t G, N, blocks, w, features, obs, window;  // pixels, images, blocks of w images, widths of rows
  int64_t saved, partial;                          // per block: activations for the backward pass, gradients
  static constexpr int64_t kSmall = 3;             // layers beside the window's

  explicit SpatialLayout(const SpatialSizes& n) : G(n.height * n.width), N(n.N), window(n.C1 * G) {
    blocks = (N + kWide - 1) / kWide;
    w = round_up((N + blocks - 1) / blocks, kLanes);
    features = n.M;
    obs = n.planes * G;
    for (int i = 0; i < kSmall; ++i) features += n.out[i], obs += n.in[i];
    saved = (n.C0 + n.C1) * G * w;
    partial = 9 * n.C0 * n.C1 + 9 * n.planes * n.C0 + n.C1 + n.C0;
  }
};

struct SpatialForward {
  const SpatialProblem& problem;
  SpatialLayout l;
  float* scratch;  // per item: x [obs][w], features [features][w], and activations if they are not kept

  int64_t scratch_size() const { return (l.obs + l.features) * l.w + (problem.saved ? 0 : l.saved); }

  void work(int64_t item) const {
    const SpatialSizes& n = problem.n;
    const int64_t p = item / l.blocks, first = item % l.blocks * l.w, rows = lesser(l.w, n.N - first), w = l.w, G = l.G;
    if (rows <= 0) return;
    float *x = scratch + item * scratch_size(), *f = x + l.obs * w;
    float* y0 = problem.saved ? problem.saved + item * l.saved : f + l.features * w;
    float* y1 = y0 + n.C0 * G * w;
    transpose_block(rows, l.obs, problem.obs + (p * n.N + first) * l.obs, l.obs, w, x, w);
    for (int64_t at = 0; at < G; ++at) {
      const Taps taps(n.height, n.width, at, false);
      convolve(taps, n.planes, n.C0, problem.conv0_w, problem.conv0_b, p, x, y0 + at * w);
    }
    for (int64_t at = 0; at < G; ++at) {
      const Taps taps(n.height, n.width, at, false);
      convolve(taps, n.C0, n.C1, problem.conv1_w, problem.conv1_b, p, y0, y1 + at * w);
    }
    dense(n.M, l.window, problem.window_w + p * n.M * l.window, problem.window_b + p * n.M, y1, f);
    const float* in = x + n.planes * G * w;
    float* out = f + n.M * w;
    for (int i = 0; i < SpatialLayout::kSmall; ++i) {
      dense(n.out[i], n.in[i], problem.small_w[i] + p * n.out[i] * n.in[i], problem.small_b[i] + p * n.out[i], in, out);
      in += n.in[i] * w;
      out += n.out[i] * w;
    }
    // whole vectors of images are written where there are as many, so that rows beyond the last stay out
    for (int64_t r = 0; r < rows; r += kLanes) {
      const int64_t here = lesser(kLanes, rows - r);
      for (int64_t c = 0; c < l.features; c += kLanes) {
        V v[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) v[i] = load(f + (c + i) * w + r);
        transpose(v);
        for (int64_t i = 0; i < here; ++i) store(problem.features + (p * n.N + first + r + i) * l.features + c, v[i]);
      }
    }
  }

  void convolve(const Taps& taps, int64_t in, int64_t out, const float* weight, const float* bias, int64_t p,
                const float* x, float* y) const {
    SpatialConv body{
        {in, weight + p * out * in * 9, in * 9, 9, x, l.G * l.w, y, l.G * l.w, bias + p * out, nullptr, true},
        taps,
        l.w};
    for_tiles(out, l.w, body);
  }
  void dense(int64_t out, int64_t in, const float* weight, const float* bias, const float* x, float* y) const {
    SpatialLayer body{in, weight, in, 1, x, l.w, y, l.w, bias, nullptr, true};
    for_tiles(out, l.w, body);
  }
};

struct SpatialBackward {
  const SpatialGradProblem& problem;
  SpatialLayout l;
  float *df, *y1, *partial;  // [P][N][features], [P][N][window], [P][blocks][partial]
  float* scratch;            // per item

  int64_t scratch_size() const {
    return (l.features + 2 * (problem.n.C0 + problem.n.C1) * l.G + problem.n.planes * l.G) * l.w;
  }

  void work(int64_t item) const {
    const SpatialSizes& n = problem.n;
    const int64_t p = item / l.blocks, first = item % l.blocks * l.w, rows = lesser(l.w, n.N - first), w = l.w, G = l.G;
    if (rows <= 0) {
      memset(partial + item * l.partial, 0, size_t(l.partial) * sizeof(float));
      return;
    }
    const float *y0 = problem.saved + item * l.saved, *z1 = y0 + n.C0 * G * w;
    float *dft = scratch + item * scratch_size(), *d1 = dft + l.features * w, *d0 = d1 + n.C1 * G * w;
    float *d1t = d0 + n.C0 * G * w, *y0t = d1t + n.C1 * G * w, *xt = y0t + n.C0 * G * w;

    const int64_t at = (p * n.N + first) * l.features;
    float* d = df + at;
    for (int64_t i = 0; i < rows * l.features; i += kLanes)
      store(d + i, select(load(problem.features + at + i) > 0.0f, load(problem.grad + at + i), V{}));
    transpose_block(rows, n.M, d, l.features, w, dft, w);

    SpatialLayer window{n.M, problem.window_w + p * n.M * l.window, 1, l.window, dft, w, d1, w, nullptr, z1, false};
    for_tiles(l.window, w, window);
    for (int64_t px = 0; px < G; ++px) {
      const Taps taps(n.height, n.width, px, true);
      SpatialConv conv{{n.C1, problem.conv1_w + p * n.C1 * n.C0 * 9, 9, n.C0 * 9, d1, G * w, d0 + px * w, G * w,
                        nullptr, y0 + px * w, false},
                       taps,
                       w};
      for_tiles(n.C0, w, conv);
    }

    // activations and their gradients with images as rows: [pixel][image][channel]; the window's input [image][...]
    for (int64_t px = 0; px < G; ++px) {
      transpose_block(n.C1, w, d1 + px * w, G * w, n.C1, d1t + px * w * n.C1, n.C1);
      transpose_block(n.C0, w, y0 + px * w, G * w, n.C0, y0t + px * w * n.C0, n.C0);
    }
    transpose_block(l.window, rows, z1, w, l.window, y1 + (p * n.N + first) * l.window, l.window);
    float* c1 = partial + item * l.partial;
    float *c0 = c1 + 9 * n.C0 * n.C1, *b1 = c0 + 9 * n.planes * n.C0, *b0 = b1 + n.C1;
    conv_grad(n.C0, n.C1, w, y0t, n.C0, d1t, c1);
    sums(n.C1, d1t, b1);

    float* d0t = d1t;
    for (int64_t px = 0; px < G; ++px) transpose_block(n.C0, w, d0 + px * w, G * w, n.C0, d0t + px * w * n.C0, n.C0);
    const float* x = problem.obs + (p * n.N + first) * l.obs;
    for (int64_t px = 0; px < G; ++px)
      for (int64_t i = 0; i < w; ++i)
        for (int64_t c = 0; c < n.planes; ++c)
          xt[(px * w + i) * n.planes + c] = i < rows ? x[i * l.obs + c * G + px] : 0.0f;
    conv_grad(n.planes, n.C0, w, xt, n.planes, d0t, c0);
    sums(n.C0, d0t, b0);
  }

  // c [9][in][out]
  void conv_grad(int64_t in, int64_t out, int64_t w, const float* a, int64_t a_k, const float* b, float* c) const {
    for (int64_t tap = 0; tap < 9; ++tap) {
      SpatialGrad body{
          w, a, b, a_k, out, c + tap * in * out, out, problem.n.height, problem.n.width, tap / 3 - 1, tap % 3 - 1, w};
      for_tiles(in, out, body);
    }
  }
  void sums(int64_t cols, const float* a, float* out) const {
    memset(out, 0, size_t(cols) * sizeof(float));
    column_sums<Float>(l.G * l.w, cols, a, cols, out);
  }

  static constexpr int64_t kRowsPerItem = 24;  // of the window layer's weights
  int64_t window_items() const { return (problem.n.M + kRowsPerItem - 1) / kRowsPerItem; }

  // The window layer's weights, some rows an item; one more item for everything else.
  void gradients(int64_t item) const {
    const SpatialSizes& n = problem.n;
    const int64_t items = window_items(), p = item / (items + 1), j = item % (items + 1);
    const float* d = df + p * n.N * l.features;
    if (j < items) {
      const int64_t row = j * kRowsPerItem;
      SpatialGrad body{n.N,        d + row,  y1 + p * n.N * l.window,
                       l.features, l.window, problem.dwindow_w + (p * n.M + row) * l.window,
                       l.window};
      for_tiles(lesser(kRowsPerItem, n.M - row), l.window, body);
      return;
    }
    float* sum = partial + p * l.blocks * l.partial;
    for (int64_t b = 1; b < l.blocks; ++b)
      for (int64_t i = 0; i < l.partial; ++i) sum[i] += sum[b * l.partial + i];
    const float *c1 = sum, *c0 = c1 + 9 * n.C0 * n.C1, *b1 = c0 + 9 * n.planes * n.C0, *b0 = b1 + n.C1;
    spread(n.C0, n.C1, c1, problem.dconv1_w + p * 9 * n.C0 * n.C1);
    spread(n.planes, n.C0, c0, problem.dconv0_w + p * 9 * n.planes * n.C0);
    memcpy(problem.dconv1_b + p * n.C1, b1, size_t(n.C1) * sizeof(float));
    memcpy(problem.dconv0_b + p * n.C0, b0, size_t(n.C0) * sizeof(float));
    float* total = scratch + p * l.blocks * scratch_size();  // free by now; the weights' transposes follow
    memset(total, 0, size_t(l.features) * sizeof(float));
    column_sums<Float>(n.N, l.features, d, l.features, total);
    memcpy(problem.dwindow_b + p * n.M, total, size_t(n.M) * sizeof(float));
    float* c = total + l.features;
    const float* x = problem.obs + p * n.N * l.obs + n.planes * l.G;
    int64_t from = n.M;
    for (int i = 0; i < SpatialLayout::kSmall; ++i) {
      const int64_t in = n.in[i], out = n.out[i];
      memcpy(problem.dsmall_b[i] + p * out, total + from, size_t(out) * sizeof(float));
      SpatialGrad body{n.N, x, d + from, l.obs, l.features, c, out};
      for_tiles(in, out, body);
      for (int64_t o = 0; o < out; ++o)
        for (int64_t k = 0; k < in; ++k) problem.dsmall_w[i][(p * out + o) * in + k] = c[k * out + o];
      x += in;
      from += out;
    }
  }
  // [tap][in][out] -> [out][in][tap]
  static void spread(int64_t in, int64_t out, const float* from, float* to) {
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = 0; i < in; ++i)
        for (int64_t o = 0; o < out; ++o) to[(o * in + i) * 9 + tap] = from[(tap * in + i) * out + o];
  }
};

static int64_t spatial_saved(const SpatialSizes& n) {
  const SpatialLayout l(n);
  return l.blocks * l.saved;
}

static void spatial_encode(const SpatialProblem& problem, Parallel parallel) {
  SpatialForward run{problem, SpatialLayout(problem.n), nullptr};
  const int64_t items = problem.n.P * run.l.blocks;
  const Arena arena(items * run.scratch_size());
  run.scratch = arena.data;
  parallel.run(items, &run, [](void* self, int64_t i) { static_cast<const SpatialForward*>(self)->work(i); });
}

static void spatial_encode_backward(const SpatialGradProblem& problem, Parallel parallel) {
  SpatialBackward run{problem, SpatialLayout(problem.n), nullptr, nullptr, nullptr, nullptr};
  const SpatialLayout& l = run.l;
  const int64_t items = problem.n.P * l.blocks, rows = problem.n.P * problem.n.N;
  const Arena arena(rows * (l.features + l.window) + items * (round_up(l.partial, kLanes) + run.scratch_size()) +
                    kWide);
  run.df = arena.data;
  run.y1 = run.df + rows * l.features;
  run.scratch = run.y1 + rows * l.window;
  run.partial = run.scratch + items * run.scratch_size();
  parallel.run(items, &run, [](void* self, int64_t i) { static_cast<const SpatialBackward*>(self)->work(i); });
  parallel.run(problem.n.P * (run.window_items() + 1), &run,
               [](void* self, int64_t i) { static_cast<const SpatialBackward*>(self)->gradients(i); });
}
