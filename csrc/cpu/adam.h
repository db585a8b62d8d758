// Gradient clipping by global norm and Adam (Kingma & Ba 2015), for one row of weights per member.  The first pass over
// memory computes the norms, the second does everything else.  This header is included inside the namespace of one
// instruction set.
//
// A row is always cut into chunks of kAdamChunk numbers, so results do not depend on the number of threads.

constexpr int64_t kAdamChunk = 1 << 14;

struct AdamRun {
  const AdamProblem& problem;
  int64_t chunks;   // per member
  double* partial;  // [P][chunks] sums of squares

  int64_t begin(int64_t item) const { return item / chunks * problem.N + item % chunks * kAdamChunk; }
  int64_t length(int64_t item) const { return lesser(kAdamChunk, problem.N - item % chunks * kAdamChunk); }

  void square(int64_t item) const {
    const float* g = problem.grad + begin(item);
    const int64_t n = length(item);
    V sum[4] = {};
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide)
      for (int64_t j = 0; j < 4; ++j) {
        const V v = load(g + i + j * kLanes);
        sum[j] += v * v;
      }
    for (; i < n; i += kLanes) {
      const V v = load_part(g + i, lesser(kLanes, n - i));
      sum[0] += v * v;
    }
    const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) total += double(all[lane]);
    partial[item] = total;
  }

  void update(int64_t item) const {
    const int64_t p = item / chunks, at = begin(item), n = length(item);
    const float scale =
        problem.clip_norm && problem.norm[p] > problem.clip_norm[p] ? problem.clip_norm[p] / problem.norm[p] : 1.0f;
    const float decay1 = problem.decay1, decay2 = problem.decay2, eps = problem.eps;
    const float rate = problem.lr[p] * problem.first_correction, second = problem.second_correction;
    const float* __restrict grad = problem.grad + at;
    float* __restrict w = problem.weights + at, * __restrict m = problem.m + at, * __restrict v = problem.v + at;
    for (int64_t i = 0; i < n; ++i) {
      const float g = grad[i] * scale;
      const float first = m[i] + decay1 * (g - m[i]), square = v[i] + decay2 * (g * g - v[i]);
      m[i] = first;
      v[i] = square;
      w[i] -= rate * first / (__builtin_sqrtf(square * second) + eps);
    }
  }
};

static void adam_step(const AdamProblem& problem, Parallel parallel) {
  const int64_t chunks = (problem.N + kAdamChunk - 1) / kAdamChunk;
  const Arena sums(2 * problem.P * chunks);
  AdamRun run{problem, chunks, reinterpret_cast<double*>(sums.data)};
  parallel.run(problem.P * chunks, &run, [](void* self, int64_t i) { static_cast<const AdamRun*>(self)->square(i); });
  bool finite = true;
  for (int64_t p = 0; p < problem.P; ++p) {
    double total = 0.0;
    for (int64_t i = 0; i < chunks; ++i) total += run.partial[p * chunks + i];
    problem.norm[p] = float(__builtin_sqrt(total));
    finite = finite && __builtin_isfinite(problem.norm[p]);
  }
  if (finite)
    parallel.run(problem.P * chunks, &run, [](void* self, int64_t i) { static_cast<const AdamRun*>(self)->update(i); });
}
