// The operators on CUDA devices: the normalised form, in a file of its own so that both compile at the same time.
#include "normalized.h"

#include "stream.h"

namespace slaf_ext::cuda {
namespace {

// The sizes of the statistics: coeffs without its first column.
std::vector<int64_t> statistics_sizes(const Tensor& coeffs) {
  std::vector<int64_t> sizes(coeffs.sizes().begin(), coeffs.sizes().end());
  sizes.back() -= 1;
  return sizes;
}

void check_normalized(const Arguments& a) {
  if (a.outside != Outside::extrapolate && a.outside != Outside::clamp)
    throw std::invalid_argument("the fused normalised form knows the outsides 0 (extrapolate) and 2 (clamp) alone");
}

// Kernels read them where they lie.
void check_statistics(const Tensor& t, const char* name, const Tensor& coeffs) {
  const auto sizes = statistics_sizes(coeffs);
  if (t.scalar_type() != ScalarType::Double || !t.is_contiguous() || !t.is_cuda() ||
      t.get_device_index() != coeffs.get_device_index() ||
      !std::equal(t.sizes().begin(), t.sizes().end(), sizes.begin(), sizes.end()))
    throw std::invalid_argument(
        std::string(name) + " is not what slaf_moments returns for this x and these coeffs: " +
        "contiguous, float64, on their device, of the shape of coeffs without its first column");
}

std::tuple<Tensor, Tensor> slaf_moments(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence,
                                        int64_t dim, double center, double lo, double hi, int64_t outside) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  check_normalized(a);
  if (a.x.numel() == 0) throw std::invalid_argument("x has no elements, and so no moments");
  const auto sizes = statistics_sizes(coeffs);
  const Tensor mean = empty(sizes, coeffs, ScalarType::Double), variance = empty(sizes, coeffs, ScalarType::Double);
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
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  check_normalized(a);
  check_statistics(mean, "mean", coeffs);
  check_statistics(variance, "variance", coeffs);
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

}  // namespace
}  // namespace slaf_ext::cuda

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  m.impl("slaf_moments", TORCH_BOX(&slaf_ext::cuda::slaf_moments));
  m.impl("slaf_normalized_backward", TORCH_BOX(&slaf_ext::cuda::slaf_normalized_backward));
}
