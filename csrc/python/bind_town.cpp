// The Town for numpy.  townlet/envs/town/args.py validates the arguments that users give.  This file checks again only
// what memory safety needs: shapes, dtypes, and the ranges of numbers that are used as indices.
#include "bind_town.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../town/town.h"

namespace py = pybind11;

namespace townlet {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;  // never converts silently: arguments are declared noconvert

template <typename Sizes>
std::string in_brackets(const Sizes& sizes) {
  std::string out;
  for (const py::ssize_t s : sizes) {
    out += (out.empty() ? "" : ", ") + std::to_string(s);
  }
  return "[" + out + "]";
}

// Throws unless the array has this shape.
void need_shape(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  const std::vector<py::ssize_t> held(array.shape(), array.shape() + array.ndim());
  if (!std::equal(held.begin(), held.end(), shape.begin(), shape.end())) {
    throw std::invalid_argument(std::string(name) + " has shape " + in_brackets(held) + "; expected " +
                                in_brackets(shape));
  }
}

template <typename T>
T* writable(Array<T>& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  need_shape(array, name, shape);
  return array.mutable_data();
}

// Throws an error of the form "state['x'] HOLDS; expected EXPECTED".
[[noreturn]] void bad_state(const char* name, const std::string& holds, const std::string& expected) {
  throw std::invalid_argument(std::string("state['") + name + "'] " + holds + "; expected " + expected);
}

template <typename T>
void put(py::dict& to, const char* name, const std::vector<T>& from, std::vector<py::ssize_t> shape) {
  Array<T> array(std::move(shape));
  std::memcpy(array.mutable_data(), from.data(), from.size() * sizeof(T));
  to[name] = std::move(array);
}

// Reads one array of a saved state.  `lo` and `hi` bound numbers that are used as an index or must be finite.
template <typename T>
std::vector<T> take(const py::dict& from, const char* name, const std::vector<T>& like, T lo, T hi) {
  if (!from.contains(name)) {
    throw std::invalid_argument(std::string("state holds no '") + name + "'; expected an array of that name");
  }
  const py::object value = from[name];
  if (!py::isinstance<Array<T>>(value)) {
    const std::string dtype = py::str(py::dtype::of<T>());
    const std::string held = py::hasattr(value, "dtype")
                                 ? "an array of dtype " + std::string(py::str(value.attr("dtype")))
                                 : "of type " + std::string(py::str(py::type::of(value).attr("__name__")));
    bad_state(name, "is " + held, "a C-contiguous array of dtype " + dtype);
  }
  const auto array = py::cast<Array<T>>(value);
  if (static_cast<std::size_t>(array.size()) != like.size()) {
    bad_state(name, "holds " + std::to_string(array.size()) + " numbers",
              std::to_string(like.size()) + " (is it of another num_envs or level?)");
  }
  std::vector<T> out(array.data(), array.data() + array.size());
  for (const T v : out) {
    if (!(v >= lo && v <= hi)) {
      bad_state(name, "holds " + std::to_string(v), "numbers in " + std::to_string(lo) + ".." + std::to_string(hi));
    }
  }
  return out;
}

py::dict get_state(const Town& town) {
  const py::ssize_t n = town.num_envs();
  const auto& s = town.state;
  py::dict out;
  put(out, "key", s.key, {n});
  put(out, "episode", s.episode, {n});
  put(out, "meters", s.meters, {rules::kMeters, n});
  put(out, "cents", s.cents, {n});
  put(out, "x", s.x, {n});
  put(out, "y", s.y, {n});
  put(out, "hour", s.hour, {n});
  put(out, "progress", s.progress, {n});
  put(out, "survival", s.survival, {n});
  put(out, "done", s.done, {n});
  put(out, "cells", s.cells, {n, town.num_buildings()});
  put(out, "depletion", s.depletion, {n});
  return out;
}

void set_state(Town& town, const py::dict& from) {
  const auto& old = town.state;
  const int size = town.config().size;
  constexpr std::uint64_t kAny = ~std::uint64_t{0};
  Town::State s;  // read apart, so that a bad state leaves the simulator as it was
  s.key = take<std::uint64_t>(from, "key", old.key, 0, kAny);
  s.episode = take<std::uint64_t>(from, "episode", old.episode, 0, kAny);
  s.meters = take<double>(from, "meters", old.meters, 0.0, 1.0);
  s.cents = take<std::int32_t>(from, "cents", old.cents, 0, rules::kFullMoney);
  s.x = take<std::int32_t>(from, "x", old.x, 0, size - 1);
  s.y = take<std::int32_t>(from, "y", old.y, 0, size - 1);
  s.hour = take<std::int32_t>(from, "hour", old.hour, 0, rules::kHours - 1);
  s.progress = take<std::int32_t>(from, "progress", old.progress, 0, 4);
  s.survival = take<std::int32_t>(from, "survival", old.survival, 0, town.config().max_steps);
  s.done = take<std::uint8_t>(from, "done", old.done, 0, 1);
  s.cells = take<std::int32_t>(from, "cells", old.cells, 0, size * size - 1);
  s.depletion = take<double>(from, "depletion", old.depletion, 0.0, 1e9);
  const auto buildings = static_cast<std::size_t>(town.num_buildings());
  for (std::size_t e = 0; e < s.x.size(); ++e) {
    std::vector<std::int32_t> row(s.cells.begin() + e * buildings, s.cells.begin() + (e + 1) * buildings);
    std::sort(row.begin(), row.end());
    if (std::adjacent_find(row.begin(), row.end()) != row.end()) {
      bad_state("cells", "has two buildings on one cell", "a cell of its own for each building");
    }
  }
  town.state = std::move(s);
  for (int e = 0; e < town.num_envs(); ++e) {
    town.rebuild_map(e);
  }
}

void step(Town& town, const Array<std::int64_t>& actions, Array<float>& obs, Array<double>& reward,
          Array<bool>& terminated, Array<bool>& truncated, Array<bool>& legal, Array<std::int32_t>& survival) {
  const py::ssize_t n = town.num_envs();
  need_shape(actions, "actions", {n});
  const TownOutput out{writable(obs, "obs", {n, town.obs_size()}),     writable(reward, "reward", {n}),
                       writable(terminated, "terminated", {n}),        writable(truncated, "truncated", {n}),
                       writable(legal, "legal", {n, rules::kActions}), writable(survival, "survival", {n})};
  const std::int64_t* action = actions.data();
  py::ssize_t bad = -1;
  {
    py::gil_scoped_release nogil;
    for (py::ssize_t e = 0; e < n && bad < 0; ++e) {
      if (!town.state.done[e] && (action[e] < 0 || action[e] >= rules::kActions)) {
        bad = e;  // found before anything has moved
      }
    }
    if (bad < 0) {
      town.step(action, out);
    }
  }
  if (bad >= 0) {
    throw std::invalid_argument("actions[" + std::to_string(bad) + "] is " + std::to_string(action[bad]) +
                                "; expected 0..5");
  }
}

void observe(const Town& town, Array<float>& obs, Array<bool>& legal) {
  const py::ssize_t n = town.num_envs();
  float* obs_rows = writable(obs, "obs", {n, town.obs_size()});
  bool* legal_rows = writable(legal, "legal", {n, rules::kActions});
  py::gil_scoped_release nogil;
  for (int e = 0; e < town.num_envs(); ++e) {
    town.observe(e, obs_rows + static_cast<py::ssize_t>(e) * town.obs_size(), legal_rows + e * rules::kActions);
  }
}

py::list buildings() {
  py::list out;
  for (const auto& b : rules::kTown) {
    py::dict row;
    row["name"] = b.name;
    row["cell"] = py::make_tuple(b.x, b.y);
    row["ticks"] = b.ticks;
    row["price"] = b.price;
    row["hours"] = py::make_tuple(b.opens, b.closes);
    row["hamlet"] = b.hamlet;
    for (const auto& [key, effect] : {std::pair{"tick", &b.tick}, std::pair{"complete", &b.complete}}) {
      py::dict effects;
      for (int m = 0; m < rules::kMeters; ++m) {
        effects[rules::kMeterNames[m]] = effect->meter[m];
      }
      effects["cents"] = effect->cents;
      row[key] = effects;
    }
    out.append(row);
  }
  return out;
}

py::dict losses() {
  py::dict out;
  out["passive"] = std::vector<double>(rules::kPassive.begin(), rules::kPassive.end());
  out["moving"] = std::vector<double>(rules::kMoving.begin(), rules::kMoving.end());
  py::list cascades;
  for (const auto& c : rules::kCascades) {
    cascades.append(py::make_tuple(static_cast<int>(c.source), static_cast<int>(c.target), c.k));
  }
  out["cascades"] = cascades;
  out["cascade_below"] = rules::kCascadeBelow;
  return out;
}

}  // namespace

void bind_town(py::module_& m) {
  m.def("town_buildings", &buildings,
        "The rules' table of buildings as a list of dicts. Prices and wages are in cents.");
  m.def("town_losses", &losses, "Passive losses, moving losses and cascades (source, target, k), by meter index.");
  py::class_<Town>(m, "Town", "Many independent towns stepped together. townlet.envs has the Gymnasium environment.")
      .def(py::init([](int num_envs, bool hamlet, int size, bool random_layout, bool random_hour, int max_steps,
                       int start_cents, std::vector<double> depletion, bool temporal, bool partial, bool kinds,
                       int radius, int knots, bool wellbeing, double random_start) {
             const TownConfig c{.hamlet = hamlet,
                                .size = size,
                                .random_layout = random_layout,
                                .random_hour = random_hour,
                                .max_steps = max_steps,
                                .start_cents = start_cents,
                                .temporal = temporal,
                                .partial = partial,
                                .kinds = kinds,
                                .radius = radius,
                                .knots = knots,
                                .wellbeing = wellbeing,
                                .random_start = random_start};
             const int needed = (hamlet ? 3 : rules::kBuildings) + 1;
             if (num_envs < 1 || size < 2 || size > 4096 || size * size < needed || radius < 0 || radius > 4096 ||
                 knots < 0 || knots > 4096 || (!random_layout && size < rules::kFixedLayoutSize) ||
                 depletion.size() != static_cast<std::size_t>(num_envs)) {
               throw std::invalid_argument("Town is given sizes out of range; expected those of TownArgs");
             }
             return Town(num_envs, c, std::move(depletion));
           }),
           py::kw_only(), py::arg("num_envs"), py::arg("hamlet"), py::arg("size"), py::arg("random_layout"),
           py::arg("random_hour"), py::arg("max_steps"), py::arg("start_cents"), py::arg("depletion"),
           py::arg("temporal"), py::arg("partial"), py::arg("kinds"), py::arg("radius"), py::arg("knots"),
           py::arg("wellbeing"), py::arg("random_start"))
      .def_property_readonly("num_envs", &Town::num_envs)
      .def_property_readonly("obs_size", &Town::obs_size)
      .def_property_readonly("kinds", &Town::kinds, "The level's buildings, as indices of town_buildings().")
      .def(
          "seed",
          [](Town& town, const std::vector<std::uint64_t>& keys) {
            if (keys.size() != static_cast<std::size_t>(town.num_envs())) {
              throw std::invalid_argument("keys has length " + std::to_string(keys.size()) + "; expected " +
                                          std::to_string(town.num_envs()));
            }
            for (int e = 0; e < town.num_envs(); ++e) {
              town.seed(e, keys[e]);
            }
          },
          py::arg("keys"), "Gives each environment its key and sets its episode number to 0.")
      .def(
          "reset",
          [](Town& town, const Array<bool>& mask) {
            need_shape(mask, "mask", {town.num_envs()});
            for (int e = 0; e < town.num_envs(); ++e) {
              if (mask.data()[e]) {
                town.reset(e);
              }
            }
          },
          py::arg("mask").noconvert(), "Starts the next episode where mask [E] is true.")
      .def("step", &step, py::arg("actions").noconvert(), py::arg("obs").noconvert(), py::arg("reward").noconvert(),
           py::arg("terminated").noconvert(), py::arg("truncated").noconvert(), py::arg("legal").noconvert(),
           py::arg("survival").noconvert(), "Takes one tick in every environment and writes into the arrays given.")
      .def("observe", &observe, py::arg("obs").noconvert(), py::arg("legal").noconvert())
      .def("get_state", &get_state, "A dict of arrays from which set_state continues bit for bit.")
      .def("set_state", &set_state, py::arg("state"));
}

}  // namespace townlet
