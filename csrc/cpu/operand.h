// How the operands of matrix products are stored, in 32-bit words.  This header is included inside the namespace of one
// instruction set.
//
// Float and Rounded keep one value in a word.  Pairs keeps two bfloat16 values that are neighbours along the inner
// dimension; AVX512-BF16 multiplies such a pair and adds it to a float in one instruction.  Sums, cell state and gates
// are floats in all of them.

struct Float {
  static constexpr int kPack = 1;  // values in a word
  static int64_t words(int64_t values) { return values; }
  static inline V mac(V sum, V a, V b) { return sum + a * b; }
  static inline V ones() { return splat(1.0f); }
  // kLanes values from `unit` on
  static inline void put(float* row, int64_t unit, V v) { store(row + unit, v); }
  static inline V get(const float* row, int64_t unit) { return load(row + unit); }
  static inline void put_one(float* row, int64_t unit, float v) { row[unit] = v; }
  // n values, and zeros up to a whole word
  static inline void put_row(float* row, const float* from, int64_t n) { memcpy(row, from, size_t(n) * sizeof(float)); }
  // kLanes words of consecutive values, of which only n are there
  static inline V gather(const float* from, int64_t n) { return n >= kLanes ? load(from) : load_part(from, n); }
  // the word of row a's values and, where a word holds two, row b's
  static inline V join(V a, V) { return a; }
  // rows of operands whose pairs of rows shall become words: nothing to do
  static inline void pair_rows(int64_t, int64_t, int64_t, float*, float*) {}
};

// The values of bfloat16 at the speed of float, for a CPU without instructions for it.
struct Rounded : Float {
  static inline void put(float* row, int64_t unit, V v) { store(row + unit, round_bf16(v)); }
  static inline void put_one(float* row, int64_t unit, float v) { row[unit] = round_bf16(splat(v))[0]; }
  static inline void put_row(float* row, const float* from, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(row, i, load(from + i));
    for (; i < n; ++i) put_one(row, i, from[i]);
  }
  static inline V gather(const float* from, int64_t n) { return round_bf16(Float::gather(from, n)); }
  static inline V join(V a, V) { return round_bf16(a); }
};

#if defined(TOWNLET_BF16)
struct Pairs {
  static constexpr int kPack = 2;
  static int64_t words(int64_t values) { return (values + 1) / 2; }
  static inline V mac(V sum, V a, V b) { return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
  static inline V ones() { return (V)(VU{} + 0x3f803f80u); }
  static inline __m256i* half(float* row, int64_t unit) { return reinterpret_cast<__m256i*>(row + unit / 2); }
  static inline void put(float* row, int64_t unit, V v) {
    _mm256_storeu_si256(half(row, unit), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
  static inline V get(const float* row, int64_t unit) {
    const __m256i h = _mm256_loadu_si256(half(const_cast<float*>(row), unit));
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
  }
  static inline void put_one(float* row, int64_t unit, float v) {
    const uint32_t bits = ((VU)round_bf16(splat(v)))[0];
    const uint16_t high = uint16_t(bits >> 16);
    memcpy(reinterpret_cast<char*>(row) + 2 * unit, &high, 2);
  }
  static inline void put_row(float* row, const float* from, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(row, i, load(from + i));
    for (; i < n; ++i) put_one(row, i, from[i]);
    if (n % 2) put_one(row, n, 0.0f);
  }
  static inline V gather(const float* from, int64_t n) {
    const V a = Float::gather(from, n > 0 ? n : 0), b = Float::gather(from + kLanes, n > kLanes ? n - kLanes : 0);
    return (V)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  }
  static inline V join(V a, V b) { return (V)(((VU)round_bf16(a) >> 16) | (VU)round_bf16(b)); }

  // n rows of `words` words (a multiple of kLanes), `stride` apart, become n / 2 rows of 2 * words words, 2 * stride
  // apart, whose words hold a value of two rows; a last odd row is paired with zeros.  temp: 2 * words words
  static inline void pair_rows(int64_t n, int64_t words, int64_t stride, float* rows, float* temp) {
    for (int64_t i = 0; i < n; i += 2) {
      float* to = rows + i * stride;
      memcpy(temp, to, size_t(words) * sizeof(float));
      if (i + 1 < n)
        memcpy(temp + words, to + stride, size_t(words) * sizeof(float));
      else
        memset(temp + words, 0, size_t(words) * sizeof(float));
      for (int64_t w = 0; w < words; w += kLanes / 2) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(temp + w));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(temp + words + w));
        const __m512i pair = _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
        _mm512_storeu_si512(to + 2 * w, pair);
      }
    }
  }
};
using Bfloat16 = Pairs;
#else
using Bfloat16 = Rounded;
#endif
