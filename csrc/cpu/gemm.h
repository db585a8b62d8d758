// The one matrix-product micro-kernel and the loops around it.  Included inside the namespace of one ISA.
//
// A tile of kRows x (4 * kLanes) accumulators stays in registers over the whole inner dimension: 24 of AVX-512's 32
// registers, 12 of the 16 of AVX2 and SSE.  The right operand is read in panels of four vectors, the left one by
// broadcast.  What a row computes does not depend on the rows beside it.

constexpr int kVecs = 4;
constexpr int kWide = kVecs * kLanes;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

template <int R, int N>
struct Tile {
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

// Calls body.run<R, N>(row) for tiles that cover `rows` rows, as even as the tile height allows.
template <int N, class Body>
static inline void for_row_tiles(int64_t rows, Body& body) {
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row;
    const int64_t r = left >= 2 * kRows ? kRows : left > kRows ? (left + 1) / 2 : left;
    switch (r) {
      case 1: body.template run<1, N>(row); break;
      case 2: body.template run<2, N>(row); break;
      case 3: body.template run<3, N>(row); break;
#if TOWNLET_ROWS > 3
      case 4: body.template run<4, N>(row); break;
      case 5: body.template run<5, N>(row); break;
      default: body.template run<6, N>(row); break;
#else
      default: __builtin_unreachable();
#endif
    }
    row += r;
  }
}

// Calls body.run<R, N>(row) with body.col set, over a rows x cols result; cols is a multiple of kLanes.
template <class Body>
static inline void for_tiles(int64_t rows, int64_t cols, Body& body) {
  for (body.col = 0; body.col < cols; body.col += kWide) {
    switch (lesser(kVecs, (cols - body.col) / kLanes)) {
      case 1: for_row_tiles<1>(rows, body); break;
      case 2: for_row_tiles<2>(rows, body); break;
      case 3: for_row_tiles<3>(rows, body); break;
      default: for_row_tiles<4>(rows, body); break;
    }
  }
}

// C = A B (+ bias) (then ReLU, then rounded): A row-major, B packed by pack_panels, C's width a multiple of kLanes.
struct Gemm {
  int64_t K;
  const float *a, *b;
  int64_t lda;
  float* c;
  int64_t ldc;
  const float* bias = nullptr;  // [cols]
  bool relu = false, round = false;
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    Tile<R, N> t;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const V first = bias ? load(bias + col + n * kLanes) : V{};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) t.acc[r][n] = first;
    }
    t.multiply(K, a + row * lda, lda, 1, b + col * K, N * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        V v = t.acc[r][n];
        if (relu) v = select(v > 0.0f, v, V{});
        if (round) v = round_bf16(v);
        store(c + (row + r) * ldc + col + n * kLanes, v);
      }
  }
};

static inline void gemm(int64_t rows, int64_t cols, Gemm g) { for_tiles(rows, cols, g); }

// C += A^T B over K shared rows: A [K][lda] gives C's rows, B [K][ldb] its columns.  Nothing is packed.
struct GemmAtB {
  int64_t K;
  const float *a, *b;
  int64_t lda, ldb;
  float* c;
  int64_t ldc;
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    Tile<R, N> t;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) t.acc[r][n] = load(c + (row + r) * ldc + col + n * kLanes);
    t.multiply(K, a + row, 1, lda, b + col, ldb);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) store(c + (row + r) * ldc + col + n * kLanes, t.acc[r][n]);
  }
};

static inline void gemm_at_b(int64_t rows, int64_t cols, GemmAtB g) {
  constexpr int64_t kBlock = 128;  // shared rows at a time: a column panel of B (128 x 64 floats) stays in cache
  const float *a = g.a, *b = g.b;
  const int64_t K = g.K;
  for (int64_t k = 0; k < K; k += kBlock) {
    g.K = lesser(kBlock, K - k);
    g.a = a + k * g.lda;
    g.b = b + k * g.ldb;
    for_tiles(rows, cols, g);
  }
}

// out[n] += sum_k a[k][n]
static inline void column_sums(int64_t K, int64_t cols, const float* a, int64_t lda, float* out) {
  for (int64_t n = 0; n < cols; n += kLanes) {
    V sum = load(out + n);
    for (int64_t k = 0; k < K; ++k) sum += load(a + k * lda + n);
    store(out + n, sum);
  }
}
