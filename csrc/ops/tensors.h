#pragma once
// The operators share this: they check torch's tensors, hand them to the kernels of cpu/, and run those on the caller's
// threads.  Only torch's stable ABI is used, so that one build loads in every torch from 2.11 on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/kernels.h"

namespace townlet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// The last item first: for tests, which hold the results of both orders to be the same in every bit.
inline std::atomic<bool> last_item_first{false};

// Runs n items on the caller's (torch's) threads.  Each thread takes the next item when it is free, and what an item
// computes depends neither on the thread nor on the order.  Exceptions must not cross parallel_for; the kernels throw
// none.
inline void run_parallel(int64_t n, void* context, void (*body)(void*, int64_t)) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  if (last_item_first.load(std::memory_order_relaxed)) {
    while (n-- > 0) body(context, n);
    return;
  }
  if (n <= 1 || threads <= 1) {
    for (int64_t i = 0; i < n; ++i) body(context, i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, n < threads ? n : threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(context, i);
  });
}
inline constexpr Parallel kParallel{&run_parallel};

// An argument of the shape and type that the operator expects, contiguous.
inline Tensor need(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": unexpected dtype");
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (int64_t n : shape) same = same && t.size(i++) == n;
  STD_TORCH_CHECK(same, name, ": unexpected shape");
  return torch::stable::contiguous(t);
}
inline Optional need(const Optional& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  return t ? Optional(need(*t, name, shape, type)) : t;
}

// Raises ValueError in Python, for a value in a tensor that people gave: torch's bindings translate this exception.
// What STD_TORCH_CHECK finds raises RuntimeError: the caller's own checks should have kept it out.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  throw std::invalid_argument(text.str());
}
// Where a tensor holds its element number `at`, for a person: "[1, 2, 0]".
inline std::string position(const Tensor& t, int64_t at) {
  std::string text = "]";
  for (int64_t axis = t.dim() - 1; axis >= 0; at /= t.size(axis--))
    text = (axis ? ", " : "[") + std::to_string(at % t.size(axis)) + text;
  return text;
}
// The shortest digits that mean this number alone.
inline std::string digits(double number) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, number).ptr};
}

inline constexpr ScalarType kFloat = ScalarType::Float, kBool = ScalarType::Bool, kLong = ScalarType::Long;

inline const float* fp(const Optional& t) { return t ? t->const_data_ptr<float>() : nullptr; }
inline const bool* bp(const Optional& t) { return t ? t->const_data_ptr<bool>() : nullptr; }
inline const int64_t* ip(const Optional& t) { return t ? t->const_data_ptr<int64_t>() : nullptr; }
inline const double* dp(const Optional& t) { return t ? t->const_data_ptr<double>() : nullptr; }
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), kFloat);
}

}  // namespace townlet
