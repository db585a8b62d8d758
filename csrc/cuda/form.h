#pragma once
// A form of the recurrent kernels that the environment asks for, in place of the one that the plan picks: for tests and
// comparisons.  TOWNLET_CUDA_UNROLL is "step", "single", "cluster:8" or "grid:4" (the number of blocks of a group), or
// with the rows of a tile "single:1x32", "cluster:8x32", "grid:4x32"; 16 rows where it names none.

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace townlet::cuda {

struct Form {
  std::string text;
  bool resident;
  Exchange exchange;
  int blocks, rows;
};

[[noreturn]] inline void wrong_form(const std::string& text, const std::string& expected) {
  throw std::runtime_error("TOWNLET_CUDA_UNROLL is '" + text + "'; expected " + expected);
}

inline Form read_form(const std::string& text) {
  const std::size_t none = std::string::npos, colon = text.find(':'), cross = text.find('x');
  const auto number = [&](std::size_t from, std::size_t to) {  // -1 where it is none
    const std::string digits = text.substr(from, to == none ? to : to - from);
    const bool good = !digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == none;
    return good ? std::atoi(digits.c_str()) : -1;
  };
  const std::string kind = text.substr(0, colon);
  const Exchange exchange = kind == "cluster" ? Exchange::kCluster
                            : kind == "grid"  ? Exchange::kGrid
                                              : Exchange::kSingle;
  Form form{text, kind != "step", exchange, 1, kRowTile};
  if (colon != none) form.blocks = number(colon + 1, cross);
  if (colon != none && cross != none) form.rows = number(cross + 1, none);

  bool good = form.rows == kRowTile || form.rows == 2 * kRowTile;
  if (kind == "step")
    good = good && colon == none;
  else if (kind == "single")
    good = good && form.blocks == 1;
  else if (kind == "cluster")
    good = good && form.blocks >= 2 && form.blocks <= kMaxCluster;
  else
    good = good && kind == "grid" && form.blocks >= 2;
  if (!good)
    wrong_form(
        text,
        "step, single, cluster:BLOCKS (2 to 16) or grid:BLOCKS (2 or more), or for tiles of 32 rows single:1x32, "
        "cluster:BLOCKSx32 or grid:BLOCKSx32");
  return form;
}

// The name of a plan's form: what `read_form` takes.
inline std::string form_of(const Plan& plan) {
  if (!plan.resident) return "step";
  const Resident& s = plan.how;
  const char* const kind = s.exchange == Exchange::kSingle    ? "single"
                           : s.exchange == Exchange::kCluster ? "cluster"
                                                              : "grid";
  if (s.rows != kRowTile) return kind + (":" + std::to_string(s.blocks)) + "x" + std::to_string(s.rows);
  return s.exchange == Exchange::kSingle ? kind : kind + (":" + std::to_string(s.blocks));
}

// None where the variable is not set, or empty.
inline std::optional<Form> forced_form() {
  const char* const text = std::getenv("TOWNLET_CUDA_UNROLL");
  return text == nullptr || *text == 0 ? std::nullopt : std::optional<Form>(read_form(text));
}

// The plan of a form that was asked for; it is an error where it does not fit.
inline Plan plan_form(const Form& form, const Gpu& gpu, const UnrollSizes& n) {
  if (!form.resident || n.T == 0) return {false, {}};
  const Resident s = Resident::of(form.exchange, n.H, form.blocks, form.rows, n.bf16);
  const bool cluster = form.exchange == Exchange::kCluster, grid = form.exchange == Exchange::kGrid;
  const auto number = [](int64_t v) { return std::to_string(v); };
  const std::string sizes = "P = " + number(n.P) + ", B = " + number(n.B) + ", T = " + number(n.T) +
                            ", H = " + number(n.H) + (n.bf16 ? ", bf16, " : ", fp32, ") +
                            (n.backward ? "backward" : "forward, chains = " + number(n.chains));
  if (cluster && gpu.arch < 90)
    wrong_form(form.text, "a form without clusters, which sm_" + number(gpu.arch) + " lacks");
  if (!has_offsets(n)) wrong_form(form.text, "step for so many numbers (" + sizes + ")");
  if (s.units > max_units(s.rows))
    wrong_form(form.text, "a form with at most " + number(max_units(s.rows)) + " units to a block; it has " +
                              number(s.units) + " (" + sizes + ")");
  if (!fits(gpu, n, s))
    wrong_form(form.text, "a form that this GPU can launch; it needs " + number(s.shared(n.backward) >> 10) + " of " +
                              number(shared_limit(gpu.arch) >> 10) + " KB of shared memory (" + sizes + ")");
  if (grid && !one_wave(gpu, n, s))
    wrong_form(form.text, "a form whose blocks run at the same time, each on an SM of its own; it has " +
                              number(s.groups(n.P, n.B, n.chains) * s.blocks) + " (" + sizes + ")");
  return {true, s};
}

}  // namespace townlet::cuda
