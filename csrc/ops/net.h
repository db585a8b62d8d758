#pragma once
// A network's weights as the operators of every device take them.

#include <array>

#include "tensors.h"

namespace townlet {

// A network's weights, contiguous, with their sizes.
struct Net {
  Tensor w_ih, w_hh, bias, w_adv, b_adv;
  Optional w_fc, b_fc, w_val, b_val;
  NetSizes n{};

  Net(const Tensor& w_ih_, const Tensor& w_hh_, const Tensor& bias_, const Optional& w_fc_, const Optional& b_fc_,
      const Tensor& w_adv_, const Tensor& b_adv_, const Optional& w_val_, const Optional& b_val_)
      : w_ih(w_ih_), w_hh(w_hh_), bias(bias_), w_adv(w_adv_), b_adv(b_adv_) {
    STD_TORCH_CHECK(w_ih.dim() == 3 && w_hh.dim() == 3 && w_adv.dim() == 3, "weights: expected three dimensions");
    STD_TORCH_CHECK(w_fc_.has_value() == b_fc_.has_value() && w_val_.has_value() == b_val_.has_value(),
                    "weights and biases come in pairs");
    n.P = w_ih.size(0);
    n.D = w_ih.size(2);
    n.H = w_hh.size(2);
    n.A = w_adv.size(1);
    n.F = w_adv.size(2);
    n.fc = w_fc_.has_value();
    n.dueling = w_val_.has_value();
    STD_TORCH_CHECK(n.P > 0 && n.D > 0 && n.H > 0 && n.A > 0 && (n.fc || n.F == n.H), "weights: sizes do not fit");
    w_ih = need(w_ih, "w_ih", {n.P, 4 * n.H, n.D}, kFloat);
    w_hh = need(w_hh, "w_hh", {n.P, 4 * n.H, n.H}, kFloat);
    bias = need(bias, "bias", {n.P, 4 * n.H}, kFloat);
    if (n.fc) w_fc = need(*w_fc_, "w_fc", {n.P, n.F, n.H}, kFloat);
    if (n.fc) b_fc = need(*b_fc_, "b_fc", {n.P, n.F}, kFloat);
    w_adv = need(w_adv, "w_adv", {n.P, n.A, n.F}, kFloat);
    b_adv = need(b_adv, "b_adv", {n.P, n.A}, kFloat);
    if (n.dueling) w_val = need(*w_val_, "w_val", {n.P, 1, n.F}, kFloat);
    if (n.dueling) b_val = need(*b_val_, "b_val", {n.P, 1}, kFloat);
  }
  NetView view() const {
    return {fp(w_ih), fp(w_hh), fp(bias), fp(w_fc), fp(b_fc), fp(w_adv), fp(b_adv), fp(w_val), fp(b_val)};
  }
  std::array<Optional, 9> parts() const { return {w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val}; }
};

}  // namespace townlet
