// The operators on CUDA devices: the normalised form.
#include "normalized.h"

#include "stream.h"
#include "units.h"

namespace slaf_ext::cuda {
namespace {

std::tuple<Tensor, Tensor> slaf_moments(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence,
                                        int64_t dim, double center, double lo, double hi, int64_t outside) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
  a.check_normalized();
  const Tensor mean = empty_statistics(coeffs), variance = empty_statistics(coeffs);
  const Problem p = problem_of(a);
  dispatch_storage(a.x.scalar_type(), [&](auto s) {
    run_moments<decltype(s)>(p, static_cast<double*>(mean.mutable_data_ptr()),
                             static_cast<double*>(variance.mutable_data_ptr()), device);
  });
  return {mean, variance};
}

std::tuple<Tensor, Tensor> slaf_normalized_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                                    const Tensor& mean, const Tensor& variance,
                                                    const std::vector<double>& recurrence, int64_t dim, double center,
                                                    double lo, double hi, int64_t outside, double eps, bool need_x) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
  a.check_normalized();
  check_statistics(mean, "mean", coeffs);
  check_statistics(variance, "variance", coeffs);
  check_eps(eps);
  const Tensor gy = a.lay_like_x(grad_output);
  const Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  const Tensor dcoeffs = empty(std::vector<int64_t>(shape.begin(), shape.end()), coeffs, coeffs.scalar_type());
  Problem p = problem_of(a);
  p.layout.groups = coeffs.numel() / (a.degree() + 1);
  p.grad_output = gy.const_data_ptr();
  if (need_x) p.out = dx.mutable_data_ptr();
  p.grad_coeffs = dcoeffs.mutable_data_ptr();
  dispatch_storage(a.x.scalar_type(), [&](auto s) {
    run_normalized_backward<decltype(s)>(p, static_cast<const double*>(mean.const_data_ptr()),
                                         static_cast<const double*>(variance.const_data_ptr()), eps, device);
  });
  return {dx, dcoeffs};
}

Tensor slaf_fold(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps, bool in_double) {
  const Folding a(coeffs, mean, variance, eps, in_double);
  CurrentStream device(a.coeffs);
  const Storage type = storage_of(a.coeffs.scalar_type());
  const Fold f{a.coeffs.const_data_ptr(), type, a.mean, a.variance, a.eps, a.rounding, a.groups, a.degree};
  void* const to = a.folded.mutable_data_ptr();
  in_double ? launch_fold(f, static_cast<double*>(to), device) : launch_fold(f, static_cast<float*>(to), device);
  return a.folded;
}

}  // namespace
}  // namespace slaf_ext::cuda

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  m.impl("slaf_moments", TORCH_BOX(&slaf_ext::cuda::slaf_moments));
  m.impl("slaf_fold", TORCH_BOX(&slaf_ext::cuda::slaf_fold));
  m.impl("slaf_normalized_backward", TORCH_BOX(&slaf_ext::cuda::slaf_normalized_backward));
}
