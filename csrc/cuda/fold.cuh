// Folds the coefficients of the normalised form into those of the plain one.
#pragma once

#include "../problem.h"
#include "reduce.cuh"

namespace slaf_ext::cuda {

// A warp serves a group.
template <typename T>
__global__ void __launch_bounds__(max_threads) fold(const __grid_constant__ Fold f) {
  const int64_t group = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  if (group >= f.groups) return;
  const int64_t lane = threadIdx.x % 32, first = group * (f.degree + 1);
  T* const to = static_cast<T*>(f.folded) + first;
  double sum = 0;
  for (int64_t k = 1 + lane; k <= f.degree; k += 32) {
    const int64_t i = group * f.degree + k - 1;
    const double coeff = read(f.coeffs, f.coeffs_type, first + k);
    const double a = folded_coeff(coeff, f.moments.mean[i], f.moments.variance[i], f.moments.eps, f.epsilon);
    to[k] = static_cast<T>(a);
    sum += a * f.moments.mean[i];
  }
  sum = warp_sum(sum);
  if (lane == 0) to[0] = static_cast<T>(read(f.coeffs, f.coeffs_type, first) - sum);
}

template <typename Device>
void launch_fold(const Fold& f, Device& device) {
  device.launch(f.in_double ? fold<double> : fold<float>, ceil_div(f.groups, device.threads() / 32), device.threads(),
                0, f);
}

}  // namespace slaf_ext::cuda
