// The operators on CUDA devices: the plain form.
#include <iterator>

#include "stream.h"
#include "units.h"

namespace slaf_ext::cuda {
namespace {

Tensor slaf(const Tensor& x, const Tensor& coeffs, const Spec& spec) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, spec);
  const Tensor y = a.empty_like_x();
  Problem p = problem_of(a);
  p.out = y.mutable_data_ptr();
  dispatch_storage(a.x.scalar_type(), [&](auto s) { run_forward<decltype(s)>(p, device); });
  return y;
}

std::tuple<Tensor, Tensor> slaf_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                         const Spec& spec, bool need_x, bool need_coeffs) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, spec);
  const Tensor gy = a.lay_like_x(grad_output);
  const Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  const Tensor dcoeffs = empty(need_coeffs ? std::vector<int64_t>(shape.begin(), shape.end()) : std::vector<int64_t>{0},
                               coeffs, coeffs.scalar_type());
  if (!(need_x || need_coeffs)) return {dx, dcoeffs};
  Problem p = problem_of(a);
  p.layout.groups = coeffs.numel() / (a.degree() + 1);
  p.grad_output = gy.const_data_ptr();
  if (need_x) p.out = dx.mutable_data_ptr();
  if (need_coeffs) p.grad_coeffs = dcoeffs.mutable_data_ptr();
  const bool by_walk = need_x && usable_derivative_matrix(a.rows, a.lo - a.center, a.hi - a.center).empty();
  dispatch_storage(a.x.scalar_type(), [&](auto s) { run_backward<decltype(s)>(p, by_walk, device); });
  return {dx, dcoeffs};
}

}  // namespace
}  // namespace slaf_ext::cuda

// For `python -m slaf_ext`: the toolkit that built this, as 1000 major + 10 minor, and the i-th architecture, or 0.
extern "C" __attribute__((visibility("default"))) int slaf_ext_cuda_toolkit() { return CUDART_VERSION; }
extern "C" __attribute__((visibility("default"))) int slaf_ext_cuda_architecture(int i) {
  constexpr int architectures[] = {__CUDA_ARCH_LIST__};
  return i < static_cast<int>(std::size(architectures)) ? architectures[i] : 0;
}

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  slaf_ext::PlainForm<&slaf_ext::cuda::slaf, &slaf_ext::cuda::slaf_backward>::register_in(m);
}
