// The Town's rules as tables: meters, passive losses, cascades, buildings.  town.cpp carries them out, and
// docs/guides/town.md states them in words.  Money is in integer cents everywhere ($100 = 10000 = a full meter), so
// that sums of prices are exact.
#pragma once

#include <array>
#include <cstdint>

namespace townlet::rules {

// The meters that are float64.  Money is kept apart because it is an integer; observations put it at index 3.
enum Meter : int { kEnergy, kHygiene, kSatiation, kMood, kSocial, kHealth, kFitness, kMeters };

inline constexpr std::array<const char*, kMeters> kMeterNames{"energy", "hygiene", "satiation", "mood",
                                                              "social", "health",  "fitness"};

inline constexpr int kFullMoney = 10000;  // cents
inline constexpr int kHours = 24;

enum Action : int { kUp, kDown, kLeft, kRight, kInteract, kWait, kActions };

// What an agent loses at each tick, and what it loses on top when it moves.  The loss of health depends on fitness: see
// health_loss.
inline constexpr std::array<double, kMeters> kPassive{.005, .003, .004, .001, .006, 0., .002};
inline constexpr std::array<double, kMeters> kMoving{.005, .003, .004, 0., 0., 0., 0.};

constexpr double health_loss(double fitness) { return .001 * (0.5 + 2.5 * (1.0 - fitness)); }

// While the source is below kCascadeBelow, the target loses k * (kCascadeBelow - source) / kCascadeBelow.
// The cascades are carried out in this order, each on the values that the ones before have left.
struct Cascade {
  Meter source, target;
  double k;
};
inline constexpr double kCascadeBelow = 0.3;
inline constexpr std::array<Cascade, 10> kCascades{{
    {kSatiation, kHealth, .004},  // hunger and low spirits first
    {kSatiation, kEnergy, .005},
    {kMood, kEnergy, .005},
    {kHygiene, kSatiation, .002},  // then what wears the middle meters down
    {kHygiene, kFitness, .002},
    {kHygiene, kMood, .003},
    {kSocial, kMood, .004},
    {kHygiene, kHealth, .0005},  // the weak ones last
    {kHygiene, kEnergy, .0005},
    {kSocial, kEnergy, .0008},
}};

// The effects of one paid tick or of completion, in the order of Meter.  Cents are kept apart.
struct Effect {
  std::array<double, kMeters> meter{};
  int cents = 0;
};

struct Building {
  const char* name;
  int x, y;           // its cell in the fixed layout
  int ticks, price;   // paid ticks to completion, and the cents for each
  int opens, closes;  // half-open hours, which may wrap midnight; 0, 24 is always open
  Effect tick, complete;
  bool hamlet;  // whether it is part of the small level

  constexpr bool open_at(int hour) const {
    return opens < closes ? (hour >= opens && hour < closes) : (hour >= opens || hour < closes);
  }
};

inline constexpr int kBuildings = 14;
inline constexpr int kNowhere = kBuildings;      // map code: a cell without a building
inline constexpr int kOffGrid = kBuildings + 1;  // map code: beyond the edge

// Columns of an Effect:   energy hygiene satiation mood social health fitness, cents
inline constexpr std::array<Building, kBuildings> kTown{{
    {"Bed", 1, 1, 5, 100, 0, 24, {{.075}, 0}, {{.125, 0, 0, 0, 0, .02}, 0}, true},
    {"LuxuryBed", 2, 1, 5, 220, 0, 24, {{.1125}, 0}, {{.1875, 0, 0, 0, 0, .05}, 0}, false},
    {"Shower", 2, 2, 3, 100, 0, 24, {{0, .10}, 0}, {{0, .10}, 0}, false},
    {"HomeMeal", 1, 3, 2, 150, 0, 24, {{0, 0, .16875}, 0}, {{0, 0, .1125, 0, 0, .03}, 0}, true},
    {"FastFood", 5, 6, 1, 1000, 0, 24, {{.1125, 0, .3375}, 0}, {{.0375, 0, .1125, 0, 0, -.02, -.03}, 0}, false},
    {"Job", 6, 6, 4, 0, 8, 18, {{-.0375}, 420}, {{0, 0, 0, 0, .02, -.03}, 570}, true},
    {"Labor", 7, 6, 4, 0, 8, 18, {{-.05}, 560}, {{0, 0, 0, 0, .01, -.05, -.05}, 760}, false},
    {"Gym", 7, 3, 4, 200, 0, 24, {{-.02, 0, 0, 0, 0, 0, .05625}, 0}, {{0, 0, 0, .05, 0, 0, .075}, 0}, false},
    {"Bar", 7, 0, 2, 750, 18, 4, {{-.075, 0, .1, .075, .1875}, 0}, {{-.05, -.15, .1, .10, .125, -.05}, 0}, false},
    {"Park", 0, 4, 2, 0, 6, 22, {{-.05, 0, 0, .05, .05, 0, .075}, 0}, {{-.05, 0, 0, .05, .05, 0, .05}, 0}, false},
    {"Recreation", 0, 7, 2, 300, 8, 22, {{.04, 0, 0, .09, .04}, 0}, {{.04, 0, 0, .07, .02}, 0}, false},
    {"Therapist", 1, 7, 3, 500, 8, 18, {{0, 0, 0, .10}, 0}, {{0, 0, 0, .10, .05}, 0}, false},
    {"Doctor", 5, 1, 2, 400, 8, 18, {{0, 0, 0, 0, 0, .08}, 0}, {{0, 0, 0, 0, 0, .09}, 0}, false},
    {"Hospital", 6, 1, 3, 500, 0, 24, {{0, 0, 0, 0, 0, .10}, 0}, {{0, 0, 0, 0, 0, .10}, 0}, false},
}};
inline constexpr int kFixedLayoutSize = 8;  // the smallest grid that holds the fixed cells

}  // namespace townlet::rules
