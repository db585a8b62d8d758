#pragma once
// The TD target of one sequence: greedy successor values, n-step returns, value rescaling, the loss and its gradient.
// Host and device compile this one header (C++17).  Papers: double Q (van Hasselt et al. 2016), rescaling (Pohlen et
// al. 2018), sequence priority (R2D2, Kapturowski et al. 2019).

#include <math.h>
#include <stdint.h>

#include "lstm_cell.h"

namespace townlet {

struct TDSettings {
  int n_step;
  int burn_in;
  bool double_q;
  float rescale_eps;  // 0: off
  float huber_delta;  // 0: mse
  float eta;
};

// One sequence's view of the batch; time is the leading axis of every array.
struct TDSequence {
  const float* q_online;  // [S+1][q_stride], A values used
  const float* q_target;  // likewise; q_online itself in the detached variant
  int64_t q_stride, q_target_stride;
  const int64_t* action;   // [S]
  const float* reward;     // [S]
  const bool* terminated;  // [S]
  const bool* reset;       // [S+1]
  const bool* mask;        // [S]
  const bool* legal;       // [S+1][A] or null
  int S, A;
  float gamma;
};

TOWNLET_HD float td_rescale(float x, float eps) {
  if (eps == 0.0f) return x;
  const float m = sqrtf(fabsf(x) + 1.0f) - 1.0f;
  return (x < 0.0f ? -m : m) + eps * x;
}

// z^2 - 1 with z written so that nothing cancels in float32
TOWNLET_HD float td_rescale_inverse(float x, float eps) {
  if (eps == 0.0f) return x;
  const float u = fabsf(x) + 1.0f + eps;
  const float z = 2.0f * u / (1.0f + sqrtf(1.0f + 4.0f * eps * u));
  const float m = z * z - 1.0f;
  return x < 0.0f ? -m : m;
}

// Whether transition t is valid: it is real, and its successor is in the sequence unless it terminated.
TOWNLET_HD bool td_valid(const TDSequence& s, int t) { return s.mask[t] && (s.terminated[t] || !s.reset[t + 1]); }

// The value of the greedy legal action at observation u, in the units of reward.
TOWNLET_HD float td_greedy_value(const TDSequence& s, const TDSettings& settings, int u) {
  const float* target = s.q_target + u * s.q_target_stride;
  const float* choose = settings.double_q ? s.q_online + u * s.q_stride : target;
  const bool* legal = s.legal ? s.legal + int64_t(u) * s.A : nullptr;
  bool any = false;
  for (int a = 0; legal && a < s.A; ++a) any = any || legal[a];
  int best = -1;
  for (int a = 0; a < s.A; ++a) {
    if (any && !legal[a]) continue;
    if (best < 0 || choose[a] > choose[best]) best = a;  // ties: the lowest index
  }
  return td_rescale_inverse(target[best], settings.rescale_eps);
}

// y_t of a valid transition.  The return takes at most n valid transitions and none after a terminated one; it then
// adds the value of the observation reached, unless the last transition terminated.
TOWNLET_HD float td_target(const TDSequence& s, const TDSettings& settings, const float* value, int t) {
  float ret = 0.0f, discount = 1.0f;
  int u = t;
  bool terminated = false;
  while (u < s.S && u - t < settings.n_step && !terminated && td_valid(s, u)) {
    ret += discount * s.reward[u];
    discount *= s.gamma;
    terminated = s.terminated[u];
    ++u;
  }
  if (!terminated) ret += discount * value[u];
  return td_rescale(ret, settings.rescale_eps);
}

TOWNLET_HD float td_loss(float e, float delta) {
  const float m = fabsf(e);
  return delta == 0.0f || m <= delta ? 0.5f * e * e : delta * (m - 0.5f * delta);
}

// d loss / d error
TOWNLET_HD float td_loss_grad(float e, float delta) {
  if (delta == 0.0f) return e;
  return e > delta ? delta : e < -delta ? -delta : e;
}

struct TDTransition {
  float error, q_taken;  // 0 where not trained, where not valid
  bool trained, bad_action;
};

// Transition t of a sequence; value [S+1] holds td_greedy_value from 1 on.  The valid transitions from burn_in on are
// trained.
TOWNLET_HD TDTransition td_transition(const TDSequence& s, const TDSettings& settings, const float* value, int t) {
  TDTransition r{0.0f, 0.0f, false, false};
  if (!td_valid(s, t)) return r;
  const int64_t a = s.action[t];
  r.bad_action = a < 0 || a >= s.A;
  if (r.bad_action) return r;
  r.q_taken = s.q_online[t * s.q_stride + a];
  r.trained = t >= settings.burn_in;
  if (r.trained) r.error = td_target(s, settings, value, t) - r.q_taken;
  return r;
}

struct TDSums {
  float loss = 0.0f, sum = 0.0f, top = 0.0f;  // of the loss, unweighted, and of |error|
  int count = 0;
  TOWNLET_METHOD void add(float error, float huber_delta) {
    loss += td_loss(error, huber_delta);
    sum += fabsf(error);
    top = fabsf(error) > top ? fabsf(error) : top;
    ++count;
  }
  // eta * max |error| + (1 - eta) * mean |error|
  TOWNLET_METHOD float priority(float eta) const {
    return count ? eta * top + (1.0f - eta) * (sum / float(count)) : 0.0f;
  }
};

}  // namespace townlet
