// The one matrix-product micro-kernel and the loops around it.  This header is included inside the namespace of one
// instruction set.
//
// A tile of kRows x (4 * kLanes) accumulators stays in registers over the whole inner dimension.  It takes 24 of the 32
// registers of AVX-512, and 12 of the 16 of AVX2 and SSE. The right operand is read in panels of four vectors, the left
// one by broadcast.  What a row computes does not depend on the rows beside it.  Inner dimensions, strides of operands
// and panels are counted in words (see operand.h).

constexpr int kVecs = 4;
constexpr int kWide = kVecs * kLanes;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// How the micro-kernel walks over the left operand, in words: `blocks` runs of K inner indices, the runs `block` apart;
// word (r, k) of a run lies at r * stride + k, or where the operand is transposed at r + k * stride.
struct Left {
  const float* a;
  int64_t stride, K, blocks = 1, block = 0;
};

// The tile acc [R][acc_row] += a b, row k of b at b + k * b_k.  A function of its own, so that what surrounds it takes
// no register away.
template <class Op, int R, int N, bool kTransposed>
static __attribute__((noinline)) void multiply(Left left, const float* b, int64_t b_k, float* acc, int64_t acc_row) {
  V c[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) c[r][n] = load(acc + r * acc_row + n * kLanes);
  const int64_t a_row = kTransposed ? 1 : left.stride, a_k = kTransposed ? left.stride : 1;
  for (int64_t i = 0; i < left.blocks; ++i) {
    const float* a = left.a + i * left.block;
    for (int64_t k = 0; k < left.K; ++k) {
      V bv[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) bv[n] = load(b + n * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V av = splat(a[r * a_row]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) c[r][n] = Op::mac(c[r][n], av, bv[n]);
      }
      a += a_k;
      b += b_k;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(acc + r * acc_row + n * kLanes, c[r][n]);
}

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

// C = A B (+ bias) (then ReLU, or 0 where `positive` is not): rows of A hold `blocks` runs of K words, a_block apart;
// B is packed in panels; C's width is a multiple of kLanes.  C holds floats, its panels c_panel apart, or operands.
template <class Op>
struct Gemm {
  int64_t K;
  const float *a, *b;
  int64_t lda;
  float* c;
  int64_t ldc;
  const float* bias = nullptr;      // [cols]
  const float* positive = nullptr;  // operands, rows ldc apart, as wide as C
  bool relu = false, operands = false;
  int64_t blocks = 1, a_block = 0, c_panel = kWide;
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    const bool in_place = !relu && !positive && !operands;
    alignas(sizeof(V)) float own[R][N * kLanes];
    float* acc = in_place ? c + col / kWide * c_panel + row * ldc : own[0];
    const int64_t acc_row = in_place ? ldc : N * kLanes;
    for (int n = 0; n < N; ++n) {
      const V first = bias ? load(bias + col + n * kLanes) : V{};
      for (int r = 0; r < R; ++r) store(acc + r * acc_row + n * kLanes, first);
    }
    const Left left{a + row * lda, lda, K, blocks, a_block};
    multiply<Op, R, N, false>(left, b + col * K * blocks, N * kLanes, acc, acc_row);
    for (int r = 0; !in_place && r < R; ++r)
      for (int n = 0; n < N; ++n) {
        const int64_t unit = col + n * kLanes;
        V v = load(own[r] + n * kLanes);
        if (relu) v = select(v > 0.0f, v, V{});
        if (positive) v = select(Op::get(positive + (row + r) * ldc, unit) > 0.0f, v, V{});
        if (operands)
          Op::put(c + (row + r) * ldc, unit, v);
        else
          store(c + (row + r) * ldc + unit, v);
      }
  }
};

template <class Op>
static inline void gemm(int64_t rows, int64_t cols, Gemm<Op> g) {
  for_tiles(rows, cols, g);
}

// C += A^T B over K shared rows of words: A [K][lda] gives C's rows, B [K][ldb] its columns.  Nothing is packed.
template <class Op>
struct GemmAtB {
  int64_t K;
  const float *a, *b;
  int64_t lda, ldb;
  float* c;
  int64_t ldc;
  int64_t col = 0;

  template <int R, int N>
  inline void run(int64_t row) const {
    multiply<Op, R, N, true>({a + row, lda, K}, b + col, ldb, c + row * ldc + col, ldc);
  }
};

template <class Op>
static inline void gemm_at_b(int64_t rows, int64_t cols, GemmAtB<Op> g) {
  constexpr int64_t kBlock = 384;  // shared rows at a time: a column panel of B (384 x 64 words) stays in cache
  const float *a = g.a, *b = g.b;
  const int64_t K = g.K;
  for (int64_t k = 0; k < K; k += kBlock) {
    g.K = lesser(kBlock, K - k);
    g.a = a + k * g.lda;
    g.b = b + k * g.ldb;
    for_tiles(rows, cols, g);
  }
}

// out[n] += sum_k a[k][n] over K rows of words
template <class Op>
static inline void column_sums(int64_t K, int64_t cols, const float* a, int64_t lda, float* out) {
  for (int64_t n = 0; n < cols; n += kLanes) {
    V sum = load(out + n);
    for (int64_t k = 0; k < K; ++k) sum = Op::mac(sum, Op::ones(), load(a + k * lda + n));
    store(out + n, sum);
  }
}
