// The Town simulator: many independent worlds, one agent in each, stepped together.
//
// State is a structure of arrays (one array per quantity, one element per environment), allocated once.  Random numbers
// are drawn at the start of an episode only.  They are a function of the environment's seed, its episode number and a
// slot, so what an environment does never depends on its neighbours.  The slots are 0 for the hour, 1 for energy, 2 for
// satiation, 3 for money, 4 for the start cell, 5 + i for the cell of the level's i-th building, and 5 + 14 for whether
// the start is random.  A slot is reserved whether or not the arguments use it, so the same seed gives the same map
// with and without random_start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rules.h"

namespace townlet {

struct TownConfig {
  bool hamlet = false;
  int size = 8;
  bool random_layout = true;
  bool random_hour = true;
  int max_steps = 500;
  int start_cents = 2000;
  bool temporal = true;
  bool partial = true;
  bool kinds = false;  // window="kind"
  int radius = 2;
  int knots = 0;              // knots of the position along each axis; 0 for none
  bool wellbeing = false;     // reward="wellbeing"
  double random_start = 0.0;  // share of the episodes whose meters are drawn
};

// Where one step writes.  Each array is row-major and its first axis is the environments, E = num_envs.
struct TownOutput {
  float* obs;              // [E, obs_size]
  double* reward;          // [E]
  bool* terminated;        // [E]
  bool* truncated;         // [E]
  bool* legal;             // [E, 6]
  std::int32_t* survival;  // [E] ticks survived in the episode that the observation belongs to
};

class Town {
 public:
  Town(int num_envs, const TownConfig& config, std::vector<double> depletion);

  int num_envs() const { return num_envs_; }
  int obs_size() const { return obs_size_; }
  int num_buildings() const { return static_cast<int>(kinds_.size()); }
  const std::vector<int>& kinds() const { return kinds_; }  // the level's buildings, as indices of rules::kTown
  const TownConfig& config() const { return config_; }
  double depletion(int e) const { return state.depletion[e]; }

  void seed(int e, std::uint64_t key);
  void reset(int e);  // starts the environment's next episode
  // Takes one tick in every environment.  An environment whose episode ended at the step before starts the next episode
  // instead (NEXT_STEP autoreset): its action is ignored and its reward is 0.
  void step(const std::int64_t* actions, const TownOutput& out);
  void observe(int e, float* obs, bool* legal) const;
  void rebuild_map(int e);  // to be called after `state.cells` was changed from outside

  // Everything that a continuation needs, with one element (or row) for each environment.
  struct State {
    std::vector<std::uint64_t> key, episode;  // episode: the number of the next one
    std::vector<double> meters;               // [kMeters, E]
    std::vector<std::int32_t> cents, x, y, hour, progress, survival;
    std::vector<std::uint8_t> done;   // the episode is over, and the next step starts another
    std::vector<std::int32_t> cells;  // [E, num_buildings], y * size + x
    std::vector<double> depletion;
  } state;

 private:
  double tick(int e, int action, bool& terminated, bool& truncated);
  void interact(int e, double* meter);
  int kind_at(int e, int x, int y) const { return map_[e * map_size_ + (y + pad_) * pitch_ + x + pad_]; }
  bool open(int kind, int hour) const { return !config_.temporal || rules::kTown[kind].open_at(hour); }

  TownConfig config_;
  int num_envs_, obs_size_;
  std::vector<int> kinds_;
  std::array<double, rules::kMeters> passive_{}, moving_{};  // losses in this level at depletion 1
  std::array<rules::Effect, rules::kBuildings> whole_{};  // with temporal=False: all ticks and the completion at once
  // Map codes.  The border is as wide as the window's radius, so reading a window needs no bounds check.
  std::vector<std::uint8_t> map_;  // [E, pitch, pitch]
  int pad_, pitch_;
  std::size_t map_size_;
  std::vector<std::int32_t> scratch_;  // the cells that buildings are drawn from
  std::array<float, rules::kHours> sin_{}, cos_{};
};

}  // namespace townlet
