// A vector of kLanes floats, as GCC and Clang's vector extension: the same source for every ISA.
// Included inside the namespace of one ISA, which defines kLanes.

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef float VUnaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VU __attribute__((vector_size(4 * kLanes)));

static inline V load(const float* p) { return *reinterpret_cast<const VUnaligned*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<VUnaligned*>(p) = v; }
static inline V splat(float x) { return x - V{}; }
static inline V select(VI m, V a, V b) { return (V)((m & (VI)a) | (~m & (VI)b)); }

static inline V load_part(const float* p, int64_t n) {  // the first n lanes, zeros behind them
  V v{};
  memcpy(&v, p, size_t(n) * sizeof(float));
  return v;
}
static inline void store_part(float* p, V v, int64_t n) { memcpy(p, &v, size_t(n) * sizeof(float)); }

// to the nearest bfloat16, ties to even, NaN kept quiet
static inline V round_bf16(V v) {
  const VU u = (VU)v;
  const VU r = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return select(v != v, v, (V)r);
}

// the lower or upper halves of a and b, lane by lane in turn
static inline V interleave(V a, V b, int from) {
#if defined(__clang__)
  V out{};
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = lane % 2 ? b[from + lane / 2] : a[from + lane / 2];
  return out;
#else
  VI pick{};
  for (int lane = 0; lane < kLanes; ++lane) pick[lane] = from + lane / 2 + lane % 2 * kLanes;
  return __builtin_shuffle(a, b, pick);
#endif
}

// kLanes rows of kLanes words -> their transpose, in place, by perfect shuffles
static inline void transpose(V* rows) {
  for (int span = 1; span < kLanes; span *= 2) {
    V out[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      out[2 * i] = interleave(rows[i], rows[i + kLanes / 2], 0);
      out[2 * i + 1] = interleave(rows[i], rows[i + kLanes / 2], kLanes / 2);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = out[i];
  }
}

struct Math {
  // A rational minimax approximation on [-8.3, 8.3], constant beyond; absolute and relative error at most 4e-7.
  static inline V tanh(V x) {
    x = x > 8.3f ? splat(8.3f) : x;  // NaN passes
    x = x < -8.3f ? splat(-8.3f) : x;
    const V z = x * x;
    V p = splat(1.464829946229429e-08f), q = splat(8.295124303003831e-07f);
    p = p * z + 2.1508523786906153e-05f;
    q = q * z + 3.3739532227627933e-04f;
    p = p * z + 3.5491706803441048e-03f;
    q = q * z + 2.607995644211769e-02f;
    p = p * z + 1.342587172985077e-01f;
    q = q * z + 4.675919711589813e-01f;
    p = p * z + 1.0f;
    q = q * z + 1.0f;
    return x * p / q;
  }
  // absolute error at most 2e-7; exactly 0 below -16.6 and 1 above, so that a gate can be shut
  static inline V sigmoid(V x) {
    const V s = 0.5f + 0.5f * tanh(0.5f * x);
    return x < -16.6f ? V{} : x > 16.6f ? splat(1.0f) : s;
  }
};
