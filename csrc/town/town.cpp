#include "town.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "../math/philox.h"

namespace townlet {

using namespace rules;

namespace {

constexpr std::uint32_t kStream = 0;  // of math/philox.h
enum Slot : std::uint32_t {
  kSlotHour,
  kSlotEnergy,
  kSlotSatiation,
  kSlotMoney,
  kSlotStart,
  kSlotCells,
  kSlotRandomStart = kSlotCells + kBuildings
};

double draw(std::uint64_t key, std::uint64_t episode, std::uint32_t slot) {
  return philox_uniform_pair(key, kStream, episode, slot / 2)[slot % 2];
}

int draw_below(std::uint64_t key, std::uint64_t episode, std::uint32_t slot, int n) {
  return static_cast<int>(draw(key, episode, slot) * n);  // < n, because the draw is at most 1 - 2^-53
}

}  // namespace

Town::Town(int num_envs, const TownConfig& config, std::vector<double> depletion)
    : config_(config), num_envs_(num_envs) {
  for (int kind = 0; kind < kBuildings; ++kind) {
    if (!config.hamlet || kTown[kind].hamlet) {
      kinds_.push_back(kind);
    }
    const Building& b = kTown[kind];
    for (int m = 0; m < kMeters; ++m) {
      whole_[kind].meter[m] = b.ticks * b.tick.meter[m] + b.complete.meter[m];
    }
    whole_[kind].cents = b.ticks * b.tick.cents + b.complete.cents;
  }
  passive_ = kPassive;
  moving_ = kMoving;
  if (config.hamlet) {  // hygiene, mood, social and fitness stand still
    for (int m : {kHygiene, kMood, kSocial, kFitness}) {
      passive_[m] = moving_[m] = 0.0;
    }
  }
  pad_ = config.partial ? config.radius : 0;
  pitch_ = config.size + 2 * pad_;
  map_size_ = static_cast<std::size_t>(pitch_) * pitch_;
  const int window = config.partial ? (2 * config.radius + 1) * (2 * config.radius + 1) : config.size * config.size;
  const int planes = !config.partial ? kBuildings : (config.kinds ? kBuildings + 1 : 2);
  obs_size_ = planes * window + 2 + 2 * config.knots + (kMeters + 1) + (kBuildings + 1) + 3;
  for (int h = 0; h < kHours; ++h) {
    sin_[h] = static_cast<float>(std::sin(2.0 * std::numbers::pi * h / kHours));
    cos_[h] = static_cast<float>(std::cos(2.0 * std::numbers::pi * h / kHours));
  }

  const auto n = static_cast<std::size_t>(num_envs);
  state.key.resize(n);
  state.episode.resize(n);
  state.meters.assign(kMeters * n, 1.0);
  for (auto* v : {&state.cents, &state.x, &state.y, &state.hour, &state.progress, &state.survival}) {
    v->resize(n);
  }
  state.done.assign(n, 1);
  state.cells.resize(n * kinds_.size());
  state.depletion = std::move(depletion);
  map_.resize(n * map_size_);
  scratch_.resize(static_cast<std::size_t>(config.size) * config.size);
}

void Town::seed(int e, std::uint64_t key) {
  state.key[e] = key;
  state.episode[e] = 0;
}

void Town::rebuild_map(int e) {
  std::uint8_t* map = &map_[e * map_size_];
  std::fill_n(map, map_size_, static_cast<std::uint8_t>(kOffGrid));
  for (int y = 0; y < config_.size; ++y) {
    std::fill_n(map + (y + pad_) * pitch_ + pad_, config_.size, static_cast<std::uint8_t>(kNowhere));
  }
  for (std::size_t b = 0; b < kinds_.size(); ++b) {
    const int cell = state.cells[e * kinds_.size() + b];
    map[(cell / config_.size + pad_) * pitch_ + cell % config_.size + pad_] = static_cast<std::uint8_t>(kinds_[b]);
  }
}

void Town::reset(int e) {
  const std::uint64_t key = state.key[e];
  const std::uint64_t episode = state.episode[e]++;
  const int cells = config_.size * config_.size;
  const int buildings = num_buildings();
  std::int32_t* cell = &state.cells[static_cast<std::size_t>(e) * buildings];

  // The first draws of a Fisher-Yates shuffle give the buildings' cells; the cells left over are free.
  std::iota(scratch_.begin(), scratch_.end(), 0);
  for (int b = 0; b < buildings; ++b) {
    int from = 0;
    if (config_.random_layout) {
      from = b + draw_below(key, episode, kSlotCells + static_cast<std::uint32_t>(b), cells - b);
    } else {
      const Building& fixed = kTown[kinds_[b]];
      const auto at = std::find(scratch_.begin() + b, scratch_.end(), fixed.y * config_.size + fixed.x);
      from = static_cast<int>(at - scratch_.begin());
    }
    std::swap(scratch_[b], scratch_[from]);
    cell[b] = scratch_[b];
  }
  const int start = scratch_[buildings + draw_below(key, episode, kSlotStart, cells - buildings)];
  rebuild_map(e);

  for (int m = 0; m < kMeters; ++m) {
    state.meters[m * static_cast<std::size_t>(num_envs_) + e] = 1.0;
  }
  state.cents[e] = config_.start_cents;
  if (draw(key, episode, kSlotRandomStart) < config_.random_start) {
    const auto n = static_cast<std::size_t>(num_envs_);
    state.meters[kEnergy * n + e] = .3 + .7 * draw(key, episode, kSlotEnergy);
    state.meters[kSatiation * n + e] = .2 + .8 * draw(key, episode, kSlotSatiation);
    const double dollars = .05 + .45 * draw(key, episode, kSlotMoney);
    state.cents[e] = static_cast<std::int32_t>(std::floor(dollars * kFullMoney + .5));
  }
  state.x[e] = start % config_.size;
  state.y[e] = start / config_.size;
  state.hour[e] = config_.random_hour ? draw_below(key, episode, kSlotHour, kHours) : 0;
  state.progress[e] = 0;
  state.survival[e] = 0;
  state.done[e] = 0;
}

// Carries out an interact action on the cell underfoot.  The action is a wait where there is no building, the building
// is closed or the price is too high; the progress made so far is then kept.
void Town::interact(int e, double* meter) {
  const int kind = kind_at(e, state.x[e], state.y[e]);
  if (kind >= kBuildings || !open(kind, state.hour[e])) {
    return;
  }
  const Building& b = kTown[kind];
  const int price = config_.temporal ? b.price : b.price * b.ticks;
  if (state.cents[e] < price) {
    return;
  }
  state.cents[e] -= price;
  const auto apply = [&](const Effect& effect) {
    for (int m = 0; m < kMeters; ++m) {
      meter[m] += effect.meter[m];
    }
    state.cents[e] += effect.cents;
  };
  if (!config_.temporal) {
    apply(whole_[kind]);
    return;
  }
  apply(b.tick);
  if (++state.progress[e] == b.ticks) {
    apply(b.complete);
    state.progress[e] = 0;
  }
}

double Town::tick(int e, int action, bool& terminated, bool& truncated) {
  const auto n = static_cast<std::size_t>(num_envs_);
  std::array<double, kMeters> meter;
  for (int m = 0; m < kMeters; ++m) {
    meter[m] = state.meters[m * n + e];
  }

  // 1. The action.
  bool moved = false;
  if (action < kInteract) {
    constexpr std::array<int, 4> kDx{0, 0, -1, 1};
    constexpr std::array<int, 4> kDy{-1, 1, 0, 0};
    const int x = state.x[e] + kDx[action];
    const int y = state.y[e] + kDy[action];
    moved = x >= 0 && x < config_.size && y >= 0 && y < config_.size;
    if (moved) {
      state.x[e] = x;
      state.y[e] = y;
      state.progress[e] = 0;
    }
  } else if (action == kInteract) {
    interact(e, meter.data());
  }

  // 2. Passive and moving losses.
  const double depletion = state.depletion[e];
  const double health_lost = health_loss(meter[kFitness]);
  for (int m = 0; m < kMeters; ++m) {
    meter[m] -= depletion * (moved ? passive_[m] + moving_[m] : passive_[m]);
  }
  meter[kHealth] -= depletion * health_lost;

  // 3. Cascades, in order and in place.
  for (const Cascade& c : kCascades) {
    const double source = meter[c.source];
    if (source < kCascadeBelow) {
      meter[c.target] -= depletion * c.k * (kCascadeBelow - std::max(source, 0.0)) / kCascadeBelow;
    }
  }

  // 4. Clamp.
  for (int m = 0; m < kMeters; ++m) {
    meter[m] = std::clamp(meter[m], 0.0, 1.0);
    state.meters[m * n + e] = meter[m];
  }
  state.cents[e] =
      std::min(state.cents[e], kFullMoney);  // never below 0, because a price is only paid where there is enough

  // 5. Death, reward, clock.
  terminated = meter[kEnergy] <= 0.0 || meter[kHealth] <= 0.0;
  double reward = 0.0;
  if (!terminated) {
    ++state.survival[e];
    reward = config_.wellbeing ? (meter[kEnergy] + meter[kSatiation] + meter[kHealth]) / 3.0 : 1.0;
  }
  truncated = !terminated && state.survival[e] >= config_.max_steps;
  state.done[e] = terminated || truncated;
  if (++state.hour[e] == kHours) {
    state.hour[e] = 0;
  }
  return reward;
}

void Town::step(const std::int64_t* actions, const TownOutput& out) {
  for (int e = 0; e < num_envs_; ++e) {
    const auto i = static_cast<std::size_t>(e);
    if (state.done[e]) {
      reset(e);
      out.reward[i] = 0.0;
      out.terminated[i] = out.truncated[i] = false;
    } else {
      out.reward[i] = tick(e, static_cast<int>(actions[i]), out.terminated[i], out.truncated[i]);
    }
    out.survival[i] = state.survival[e];
    observe(e, out.obs + i * obs_size_, out.legal + i * kActions);
  }
}

void Town::observe(int e, float* obs, bool* legal) const {
  const auto n = static_cast<std::size_t>(num_envs_);
  const int x = state.x[e];
  const int y = state.y[e];
  const int hour = state.hour[e];
  const int size = config_.size;

  // What is seen of the map.
  if (config_.partial) {
    const int side = 2 * config_.radius + 1;
    const int cells = side * side;
    const std::uint8_t* corner = &map_[e * map_size_ + static_cast<std::size_t>(y) * pitch_ + x];
    const int planes = config_.kinds ? kBuildings : 1;
    float* off_grid = obs + planes * cells;
    if (config_.kinds) {
      std::fill_n(obs, planes * cells, 0.0f);
    }
    for (int row = 0, i = 0; row < side; ++row) {
      for (int column = 0; column < side; ++column, ++i) {
        const int code = corner[row * pitch_ + column];
        off_grid[i] = code == kOffGrid ? 1.0f : 0.0f;
        if (!config_.kinds) {
          obs[i] = code < kBuildings ? 1.0f : 0.0f;
        } else if (code < kBuildings) {
          obs[code * cells + i] = 1.0f;
        }
      }
    }
    obs = off_grid + cells;
  } else {
    const int cells = size * size;
    std::fill_n(obs, kBuildings * cells, 0.0f);
    for (std::size_t b = 0; b < kinds_.size(); ++b) {
      obs[kinds_[b] * cells + state.cells[e * kinds_.size() + b]] = 1.0f;
    }
    obs += kBuildings * cells;
  }

  // What is felt.
  *obs++ = static_cast<float>(static_cast<double>(x) / (size - 1));
  *obs++ = static_cast<float>(static_cast<double>(y) / (size - 1));
  for (const int at : {x, y}) {  // piecewise linear: the two knots beside a position share a weight of 1
    const double place = static_cast<double>(at) * (config_.knots - 1) / (size - 1);
    for (int k = 0; k < config_.knots; ++k) {
      *obs++ = static_cast<float>(std::max(0.0, 1.0 - std::abs(place - k)));
    }
  }
  for (int m = 0; m < kMeters; ++m) {
    if (m == kSatiation + 1) {
      *obs++ = static_cast<float>(static_cast<double>(state.cents[e]) / kFullMoney);
    }
    *obs++ = static_cast<float>(state.meters[m * n + e]);
  }
  const int kind = kind_at(e, x, y);
  std::fill_n(obs, kBuildings + 1, 0.0f);
  obs[kind] = 1.0f;  // kNowhere is the last of the 15
  obs += kBuildings + 1;
  *obs++ = sin_[hour];
  *obs++ = cos_[hour];
  *obs = kind < kBuildings ? static_cast<float>(static_cast<double>(state.progress[e]) / kTown[kind].ticks) : 0.0f;

  legal[kUp] = y > 0;
  legal[kDown] = y < size - 1;
  legal[kLeft] = x > 0;
  legal[kRight] = x < size - 1;
  legal[kInteract] = kind < kBuildings && open(kind, hour);
  legal[kWait] = true;
}

}  // namespace townlet
