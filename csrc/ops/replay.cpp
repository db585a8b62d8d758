// The replay buffer's two inner loops: a step of many streams written into their rings, and windows read out of them.
// townlet/learning/replay.py says what the tables mean.  The loops only move memory, so one build serves all CPUs.

#include <atomic>
#include <cstring>
#include <tuple>

#include "tensors.h"

// A store has the shape [all streams * ring, ...], a table of states [all streams * ring / stride, H].
STABLE_TORCH_LIBRARY_FRAGMENT(townlet, m) {
  // writes `steps` steps to each of `streams` streams, the first of them number `first`
  m.def(
      "replay_write(Tensor(a!) obs_store, Tensor(b!) action_store, Tensor(c!) reward_store, "
      "Tensor(d!) terminated_store, Tensor(e!) reset_store, Tensor(f!) mask_store, Tensor(g!)? legal_store, "
      "Tensor(h!) h_store, Tensor(i!) c_store, Tensor(j!) start, Tensor(k!) priority, Tensor(l!) count, "
      "Tensor(m!) closed, Tensor max_priority, Tensor obs, Tensor action, Tensor reward, Tensor terminated, "
      "Tensor reset, Tensor mask, Tensor? legal, Tensor h, Tensor c, int first, int streams, int steps, int ring, "
      "int stride, int seq_len, bool closes) -> ()");
  // obs, h0, c0, action, reward, terminated, reset, mask, legal (empty where none are stored)
  m.def(
      "replay_windows(Tensor obs_store, Tensor action_store, Tensor reward_store, Tensor terminated_store, "
      "Tensor reset_store, Tensor mask_store, Tensor? legal_store, Tensor h_store, Tensor c_store, Tensor slot, "
      "Tensor start, int ring, int stride, int seq_len) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
}

namespace townlet {
namespace {

constexpr ScalarType kInt = ScalarType::Int, kDouble = ScalarType::Double;
constexpr int64_t kStreams = 32;  // streams that a thread takes at a time

// A table that is written in place must be the caller's own memory, never a copy.
template <class T>
T* place(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected contiguous memory");
  return need(t, name, shape, type).mutable_data_ptr<T>();
}

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

struct Write {
  int64_t first, streams, steps, ring, stride, seq_len, obs_size, A, H, envs;
  bool closes;
  float *obs_store, *reward_store, *h_store, *c_store;
  int32_t* action_store;
  bool *terminated_store, *reset_store, *mask_store, *legal_store, *closed;
  int64_t *start, *count;
  double* priority;
  const double* max_priority;
  const float *obs, *reward, *h, *c;
  const int64_t* action;
  const bool *terminated, *reset, *mask, *legal;
  std::atomic<bool> bad_obs, bad_reset;

  void check(int64_t chunk) {
    const int64_t from = chunk * kStreams, to = from + kStreams < streams ? from + kStreams : streams;
    if (!all_finite(obs + from * steps * obs_size, (to - from) * steps * obs_size)) bad_obs = true;
    for (int64_t m = from; m < to; ++m)
      if (closed[first + m] && !reset[m * steps]) bad_reset = true;
  }
  void write(int64_t chunk) const {
    const int64_t from = chunk * kStreams, to = from + kStreams < streams ? from + kStreams : streams;
    for (int64_t m = from; m < to; ++m) stream(m);
  }
  void stream(int64_t m) const {
    const int64_t s = first + m, slots = ring / stride, written = count[s], last = written + steps - 1;
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t step = written + i, at = step % ring, row = s * ring + at, from = m * steps + i;
      std::memcpy(obs_store + row * obs_size, obs + from * obs_size, static_cast<size_t>(obs_size) * sizeof(float));
      action_store[row] = static_cast<int32_t>(action[from]);
      reward_store[row] = reward[from];
      terminated_store[row] = terminated[from];
      reset_store[row] = reset[from];
      mask_store[row] = mask[from];
      if (legal)
        std::memcpy(legal_store + row * A, legal + from * A, static_cast<size_t>(A));
      else if (legal_store)
        std::memset(legal_store + row * A, 1, static_cast<size_t>(A));

      // The window that began at the step now written over is gone.  A new one begins here, and its state is stored.
      if (step % stride == 0) {
        const int64_t slot = s * slots + at / stride;
        std::memcpy(h_store + slot * H, h + from * H, static_cast<size_t>(H) * sizeof(float));
        std::memcpy(c_store + slot * H, c + from * H, static_cast<size_t>(H) * sizeof(float));
        start[slot] = -1;
      }
      // A window is complete once its last observation is there, if the ring still holds its start after this call.
      const int64_t begun = step - seq_len;
      if (begun >= 0 && begun % stride == 0 && begun > last - ring) {
        const int64_t slot = s * slots + begun % ring / stride;
        start[slot] = begun;
        priority[slot] = max_priority[s / envs];
      }
    }
    count[s] += steps;
    closed[s] = closes;
  }
};

[[noreturn]] void refuse_obs(const Tensor& obs) {
  int64_t at = 0;
  while (at + 1 < obs.numel() && all_finite(fp(obs) + at, 1)) ++at;
  refuse("obs holds NaN or infinity, first at ", position(obs, at), "; expected finite numbers");
}
[[noreturn]] void refuse_reset(const Write& w) {
  int64_t m = 0;
  while (m + 1 < w.streams && !(w.closed[w.first + m] && !w.reset[m * w.steps])) ++m;
  const int64_t member = (w.first + m) / w.envs, env = (w.first + m) % w.envs;
  refuse("reset is False in a stream whose last step ended an added episode, that of member ", member,
         " and environment ", env, "; expected True there");
}

void replay_write_cpu(const Tensor& obs_store, const Tensor& action_store, const Tensor& reward_store,
                      const Tensor& terminated_store, const Tensor& reset_store, const Tensor& mask_store,
                      const Optional& legal_store, const Tensor& h_store, const Tensor& c_store, const Tensor& start,
                      const Tensor& priority, const Tensor& count, const Tensor& closed, Tensor max_priority,
                      Tensor obs, Tensor action, Tensor reward, Tensor terminated, Tensor reset, Tensor mask,
                      Optional legal, Tensor h, Tensor c, int64_t first, int64_t streams, int64_t steps, int64_t ring,
                      int64_t stride, int64_t seq_len, bool closes) {
  STD_TORCH_CHECK(obs_store.dim() == 2 && h_store.dim() == 2 && count.dim() == 1 && max_priority.dim() == 1,
                  "obs_store: expected two dimensions");
  Write w{};
  w.streams = streams;
  w.steps = steps;
  w.obs_size = obs_store.size(1);
  w.H = h_store.size(1);
  w.first = first;
  w.ring = ring;
  w.stride = stride;
  w.seq_len = seq_len;
  w.closes = closes;
  const int64_t all = count.size(0), members = max_priority.size(0);
  STD_TORCH_CHECK(streams > 0 && steps > 0 && steps <= ring && stride > 0 && ring % stride == 0 && seq_len > 0 &&
                      first >= 0 && first + streams <= all && members > 0 && all % members == 0,
                  "replay_write: sizes do not fit");
  w.envs = all / members;
  const int64_t rows = all * ring, states = all * (ring / stride);
  w.obs_store = place<float>(obs_store, "obs_store", {rows, w.obs_size}, kFloat);
  w.action_store = place<int32_t>(action_store, "action_store", {rows}, kInt);
  w.reward_store = place<float>(reward_store, "reward_store", {rows}, kFloat);
  w.terminated_store = place<bool>(terminated_store, "terminated_store", {rows}, kBool);
  w.reset_store = place<bool>(reset_store, "reset_store", {rows}, kBool);
  w.mask_store = place<bool>(mask_store, "mask_store", {rows}, kBool);
  STD_TORCH_CHECK(legal_store.has_value() || !legal.has_value(), "legal: nothing to store it in");
  if (legal_store) {
    STD_TORCH_CHECK(legal_store->dim() == 2, "legal_store: expected two dimensions");
    w.A = legal_store->size(1);
    w.legal_store = place<bool>(*legal_store, "legal_store", {rows, w.A}, kBool);
  }
  w.h_store = place<float>(h_store, "h_store", {states, w.H}, kFloat);
  w.c_store = place<float>(c_store, "c_store", {states, w.H}, kFloat);
  w.start = place<int64_t>(start, "start", {states}, kLong);
  w.priority = place<double>(priority, "priority", {states}, kDouble);
  w.count = place<int64_t>(count, "count", {all}, kLong);
  w.closed = place<bool>(closed, "closed", {all}, kBool);
  max_priority = need(max_priority, "max_priority", {members}, kDouble);
  w.max_priority = dp(max_priority);
  // A field holds `width` values for each step; its leading dimensions may be anything.
  const auto given = [&](const Tensor& t, const char* name, int64_t width, ScalarType type) {
    STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == streams * steps * width, name,
                    ": unexpected dtype or size");
    return torch::stable::contiguous(t);
  };
  obs = given(obs, "obs", w.obs_size, kFloat);
  action = given(action, "action", 1, kLong);
  reward = given(reward, "reward", 1, kFloat);
  terminated = given(terminated, "terminated", 1, kBool);
  reset = given(reset, "reset", 1, kBool);
  mask = given(mask, "mask", 1, kBool);
  if (legal) legal = given(*legal, "legal", w.A, kBool);
  h = given(h, "h", w.H, kFloat);
  c = given(c, "c", w.H, kFloat);
  w.obs = fp(obs);
  w.action = ip(action);
  w.reward = fp(reward);
  w.terminated = bp(terminated);
  w.reset = bp(reset);
  w.mask = bp(mask);
  w.legal = bp(legal);
  w.h = fp(h);
  w.c = fp(c);

  const int64_t chunks = (streams + kStreams - 1) / kStreams;
  run_parallel(chunks, &w, [](void* self, int64_t i) { static_cast<Write*>(self)->check(i); });
  if (w.bad_obs) refuse_obs(obs);
  if (w.bad_reset) refuse_reset(w);
  run_parallel(chunks, &w, [](void* self, int64_t i) { static_cast<Write*>(self)->write(i); });
}

struct Windows {
  int64_t P, B, S, obs_size, A, H, ring, stride, slots, envs;
  const float *obs_store, *reward_store, *h_store, *c_store;
  const int32_t* action_store;
  const bool *terminated_store, *reset_store, *mask_store, *legal_store;
  const int64_t *slot, *start;
  float *obs, *h0, *c0, *reward;
  int64_t* action;
  bool *terminated, *reset, *mask, *legal;

  // Copies `n` rows of `width` values, from the stream's row `at` on and round the ring.
  template <class T>
  void take(const T* stream, int64_t at, int64_t n, int64_t width, T* to) const {
    const int64_t head = ring - at < n ? ring - at : n;
    std::memcpy(to, stream + at * width, static_cast<size_t>(head * width) * sizeof(T));
    if (head < n) std::memcpy(to + head * width, stream, static_cast<size_t>((n - head) * width) * sizeof(T));
  }
  void window(int64_t w) const {
    const int64_t p = w / B, s = p * envs + slot[w] / slots, at = start[w] % ring, base = s * ring;
    take(obs_store + base * obs_size, at, S + 1, obs_size, obs + w * (S + 1) * obs_size);
    take(reward_store + base, at, S, 1, reward + w * S);
    take(terminated_store + base, at, S, 1, terminated + w * S);
    take(reset_store + base, at, S + 1, 1, reset + w * (S + 1));
    take(mask_store + base, at, S, 1, mask + w * S);
    if (legal_store) take(legal_store + base * A, at, S + 1, A, legal + w * (S + 1) * A);
    for (int64_t i = 0; i < S; ++i) action[w * S + i] = action_store[base + (at + i) % ring];
    const int64_t state = (p * envs * slots + slot[w]) * H;
    std::memcpy(h0 + w * H, h_store + state, static_cast<size_t>(H) * sizeof(float));
    std::memcpy(c0 + w * H, c_store + state, static_cast<size_t>(H) * sizeof(float));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> replay_windows_cpu(
    Tensor obs_store, Tensor action_store, Tensor reward_store, Tensor terminated_store, Tensor reset_store,
    Tensor mask_store, Optional legal_store, Tensor h_store, Tensor c_store, Tensor slot, Tensor start, int64_t ring,
    int64_t stride, int64_t seq_len) {
  STD_TORCH_CHECK(obs_store.dim() == 2 && h_store.dim() == 2 && slot.dim() == 2, "slot: expected [P, B]");
  Windows w{};
  w.P = slot.size(0);
  w.B = slot.size(1);
  w.S = seq_len;
  w.obs_size = obs_store.size(1);
  w.H = h_store.size(1);
  w.ring = ring;
  w.stride = stride;
  const int64_t rows = obs_store.size(0);
  STD_TORCH_CHECK(w.P > 0 && w.B > 0 && stride > 0 && ring % stride == 0 && seq_len > 0 && seq_len < ring &&
                      rows % (w.P * ring) == 0,
                  "replay_windows: sizes do not fit");
  w.slots = ring / stride;
  w.envs = rows / (w.P * ring);
  const int64_t P = w.P, B = w.B, S = w.S, states = P * w.envs * w.slots;
  obs_store = need(obs_store, "obs_store", {rows, w.obs_size}, kFloat);
  action_store = need(action_store, "action_store", {rows}, kInt);
  reward_store = need(reward_store, "reward_store", {rows}, kFloat);
  terminated_store = need(terminated_store, "terminated_store", {rows}, kBool);
  reset_store = need(reset_store, "reset_store", {rows}, kBool);
  mask_store = need(mask_store, "mask_store", {rows}, kBool);
  h_store = need(h_store, "h_store", {states, w.H}, kFloat);
  c_store = need(c_store, "c_store", {states, w.H}, kFloat);
  slot = need(slot, "slot", {P, B}, kLong);
  start = need(start, "start", {P, B}, kLong);
  if (legal_store) {
    STD_TORCH_CHECK(legal_store->dim() == 2, "legal_store: expected two dimensions");
    w.A = legal_store->size(1);
    legal_store = need(*legal_store, "legal_store", {rows, w.A}, kBool);
  }
  w.obs_store = fp(obs_store);
  w.action_store = action_store.const_data_ptr<int32_t>();
  w.reward_store = fp(reward_store);
  w.terminated_store = bp(terminated_store);
  w.reset_store = bp(reset_store);
  w.mask_store = bp(mask_store);
  w.legal_store = bp(legal_store);
  w.h_store = fp(h_store);
  w.c_store = fp(c_store);
  w.slot = ip(slot);
  w.start = ip(start);
  for (int64_t i = 0; i < P * B; ++i)
    STD_TORCH_CHECK(w.slot[i] >= 0 && w.slot[i] < w.envs * w.slots && w.start[i] >= 0, "slot or start: out of range");

  const auto bools = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(obs_store, std::vector<int64_t>(shape), kBool);
  };
  Tensor obs = empty(obs_store, {P, B, S + 1, w.obs_size}), h0 = empty(obs_store, {P, B, w.H}),
         c0 = empty(obs_store, {P, B, w.H}),
         action = torch::stable::new_empty(obs_store, std::vector<int64_t>{P, B, S}, kLong),
         reward = empty(obs_store, {P, B, S}), terminated = bools({P, B, S}), reset = bools({P, B, S + 1}),
         mask = bools({P, B, S}), legal = legal_store ? bools({P, B, S + 1, w.A}) : bools({0});
  w.obs = obs.mutable_data_ptr<float>();
  w.h0 = h0.mutable_data_ptr<float>();
  w.c0 = c0.mutable_data_ptr<float>();
  w.action = action.mutable_data_ptr<int64_t>();
  w.reward = reward.mutable_data_ptr<float>();
  w.terminated = terminated.mutable_data_ptr<bool>();
  w.reset = reset.mutable_data_ptr<bool>();
  w.mask = mask.mutable_data_ptr<bool>();
  w.legal = legal.mutable_data_ptr<bool>();
  run_parallel(P * B, &w, [](void* self, int64_t i) { static_cast<const Windows*>(self)->window(i); });
  return {obs, h0, c0, action, reward, terminated, reset, mask, legal};
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CPU, m) {
  m.impl("replay_write", TORCH_BOX(&townlet::replay_write_cpu));
  m.impl("replay_windows", TORCH_BOX(&townlet::replay_windows_cpu));
}
