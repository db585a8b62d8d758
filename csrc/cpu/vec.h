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
  // e^x, at most 2 ulp off for x in [-87, 88]; e^-87 below and infinity above.  NaN stays NaN.
  static inline V exp(V x) {
    const VI over = x > 88.0f;
    x = select(x < -87.0f, splat(-87.0f), x);
    const V shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
    const V n = shifted - 12582912.0f;
    const V r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p = (V)((VU)p + ((VU)shifted << 23));  // times 2^n
    return select(over, splat(__builtin_inff()), p);
  }
  // absolute error at most 1e-7; exactly 0 below -88, so that a gate can be shut
  static inline V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }
  // absolute error at most 2e-7, relative at most 4e-7: a polynomial near 0, where the quotient would cancel
  static inline V tanh(V x) {
    const V z = x * x;
    V p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const V near = p * z * x + x;
    const V far = 1.0f - 2.0f / (1.0f + exp(2.0f * x));
    return select(z < 0.390625f, near, far);  // |x| < 0.625
  }
};
