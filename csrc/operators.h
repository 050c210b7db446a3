// The operators as ops.cpp declares them, for a backend that is given a Problem: arguments are checked and results
// allocated here, once for CPU and CUDA. A backend's functions also take x, which names the device.
#pragma once

#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace slaf_ext {

template <auto run_forward, auto run_backward>
struct PlainForm {
  static Tensor forward(const Tensor& x, const Tensor& coeffs, const Spec& spec) {
    Arguments a(x, coeffs, spec);
    const Tensor y = a.empty_like_x();
    a.problem.out = y.mutable_data_ptr();
    if (x.numel() > 0) run_forward(a.problem, a.x);
    return y;
  }

  static std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                             const Spec& spec, bool need_x, bool need_coeffs) {
    Arguments a(x, coeffs, spec);
    const Tensor gy = a.lay_like_x(grad_output);
    const auto [dx, dcoeffs] = a.empty_gradients(need_x, need_coeffs);
    if (!(need_x || need_coeffs)) return {dx, dcoeffs};
    Problem& p = a.problem;
    p.grad_output = gy.const_data_ptr();
    if (need_x) {
      p.out = dx.mutable_data_ptr();
      p.D = usable_derivative_matrix(p.rows, p.lo - p.center, p.hi - p.center);
    }
    if (need_coeffs) p.grad_coeffs = dcoeffs.mutable_data_ptr();
    run_backward(p, a.x);
    return {dx, dcoeffs};
  }

  static Tensor slaf(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence, int64_t dim,
                     double center, double lo, double hi, int64_t outside) {
    return forward(x, coeffs, {recurrence, dim, center, lo, hi, outside});
  }
  static Tensor packed_slaf(const Tensor& x, const Tensor& coeffs, const Tensor& spec) {
    return forward(x, coeffs, unpacked(spec));
  }
  static std::tuple<Tensor, Tensor> slaf_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                                  const std::vector<double>& recurrence, int64_t dim, double center,
                                                  double lo, double hi, int64_t outside, bool need_x,
                                                  bool need_coeffs) {
    return backward(grad_output, x, coeffs, {recurrence, dim, center, lo, hi, outside}, need_x, need_coeffs);
  }
  static std::tuple<Tensor, Tensor> packed_slaf_backward(const Tensor& grad_output, const Tensor& x,
                                                         const Tensor& coeffs, const Tensor& spec, bool need_x,
                                                         bool need_coeffs) {
    return backward(grad_output, x, coeffs, unpacked(spec), need_x, need_coeffs);
  }

  template <typename Library>
  static void register_in(Library& m) {
    m.impl("slaf", TORCH_BOX(&PlainForm::slaf));
    m.impl("_slaf", TORCH_BOX(&PlainForm::packed_slaf));
    m.impl("slaf_backward", TORCH_BOX(&PlainForm::slaf_backward));
    m.impl("_slaf_backward", TORCH_BOX(&PlainForm::packed_slaf_backward));
  }
};

// run_moments and run_backward return false where float32 does not hold what they compute, which then is float64.
template <auto run_moments, auto run_fold, auto run_backward>
struct NormalizedForm {
  static std::tuple<Tensor, Tensor> slaf_moments(const Tensor& x, const Tensor& coeffs,
                                                 const std::vector<double>& recurrence, int64_t dim, double center,
                                                 double lo, double hi, int64_t outside) {
    const Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
    a.check_normalized();
    const Tensor mean = empty_statistics(coeffs), variance = empty_statistics(coeffs);
    if (!run_moments(a.problem, static_cast<double*>(mean.mutable_data_ptr()),
                     static_cast<double*>(variance.mutable_data_ptr()), a.x))
      return slaf_moments(as_double(a.x), as_double(a.coeffs), recurrence, dim, center, lo, hi, outside);
    return {mean, variance};
  }

  static Tensor slaf_fold(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps,
                          bool in_double) {
    const Tensor contiguous = check_coeffs(coeffs);
    const auto [fold, folded] = folding_of(contiguous, mean, variance, eps, in_double);
    run_fold(fold, contiguous);
    return folded;
  }

  static std::tuple<Tensor, Tensor> slaf_normalized_backward(const Tensor& grad_output, const Tensor& x,
                                                             const Tensor& coeffs, const Tensor& mean,
                                                             const Tensor& variance,
                                                             const std::vector<double>& recurrence, int64_t dim,
                                                             double center, double lo, double hi, int64_t outside,
                                                             double eps, bool need_x) {
    Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
    a.check_normalized();
    const Moments moments = check_moments(mean, variance, eps, coeffs);
    const Tensor gy = a.lay_like_x(grad_output);
    auto [dx, dcoeffs] = a.empty_gradients(need_x, true);
    a.problem.grad_output = gy.const_data_ptr();
    if (need_x) a.problem.out = dx.mutable_data_ptr();
    a.problem.grad_coeffs = dcoeffs.mutable_data_ptr();
    if (!run_backward(a.problem, moments, a.x)) {
      const auto [wide_dx, wide_dcoeffs] =
          slaf_normalized_backward(as_double(gy), as_double(a.x), as_double(a.coeffs), mean, variance, recurrence, dim,
                                   center, lo, hi, outside, eps, need_x);
      if (need_x) torch::stable::copy_(dx, wide_dx);
      torch::stable::copy_(dcoeffs, wide_dcoeffs);
    }
    return {dx, dcoeffs};
  }

  template <typename Library>
  static void register_in(Library& m) {
    m.impl("slaf_moments", TORCH_BOX(&NormalizedForm::slaf_moments));
    m.impl("slaf_fold", TORCH_BOX(&NormalizedForm::slaf_fold));
    m.impl("slaf_normalized_backward", TORCH_BOX(&NormalizedForm::slaf_normalized_backward));
  }
};

template <auto run_expand, auto run_contract>
struct PanelForm {
  static void expand(const Tensor& x, const Tensor& spec, Tensor terms) {
    Panel panel = check_panel(x, unpacked(spec), terms, "terms");
    panel.out = terms.mutable_data_ptr();
    if (x.numel() > 0) run_expand(panel, x);
  }

  static void contract(const Tensor& x, const Tensor& spec, const Tensor& grad_terms, Tensor grad_x) {
    Panel panel = check_panel(x, unpacked(spec), grad_terms, "grad_terms");
    check_like(grad_x, "grad_x", x);
    panel.grad_terms = grad_terms.const_data_ptr();
    panel.out = grad_x.mutable_data_ptr();
    if (x.numel() > 0) run_contract(panel, x);
  }

  template <typename Library>
  static void register_in(Library& m) {
    m.impl("kan_expand", TORCH_BOX(&PanelForm::expand));
    m.impl("kan_contract", TORCH_BOX(&PanelForm::contract));
  }
};

}  // namespace slaf_ext
