// The normalised form on CUDA devices.
#include "../operators.h"
#include "fold.cuh"
#include "stream.h"
#include "units.h"

namespace slaf_ext::cuda {
namespace {

bool run_moments(const Problem& p, double* mean, double* variance, const Tensor& x) {
  CurrentStream device(x);
  dispatch_storage(p.type, [&](auto s) { Normalized<decltype(s)>::moments(p, mean, variance, device); });
  return true;
}

bool run_backward(const Problem& p, const Moments& moments, const Tensor& x) {
  CurrentStream device(x);
  dispatch_storage(p.type, [&](auto s) { Normalized<decltype(s)>::backward(p, moments, device); });
  return true;
}

void run_fold(const Fold& f, const Tensor& coeffs) {
  CurrentStream device(coeffs);
  launch_fold(f, device);
}

}  // namespace
}  // namespace slaf_ext::cuda

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  slaf_ext::NormalizedForm<&slaf_ext::cuda::run_moments, &slaf_ext::cuda::run_fold,
                           &slaf_ext::cuda::run_backward>::register_in(m);
}
