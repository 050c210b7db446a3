// The coefficients of the plain form with which it equals the normalised one,
//
//     a_k = coeffs_k / sqrt(variance_k + eps)        a_0 = coeffs_0 - sum_k a_k mean_k
//
// The text is free of torch: CPU and CUDA kernels instantiate it alike.
#pragma once

#include <cmath>

#include "recurrence.h"

namespace slaf_ext {

// a_k, k >= 1, where `rounding` is that of the dtype computed in. A phi_k that is constant as far as it tells gets no
// weight: what is left of it would be rounding. A variance beyond float64 makes NaN, as 0 would drop the term unsaid.
SLAF_INLINE double folded(double coeff, double mean, double variance, double eps, double rounding) {
  const double constant = rounding * mean;
  if (variance <= constant * constant) return 0;
  return std::isinf(variance) ? NAN : coeff / sqrt(variance + eps);
}

}  // namespace slaf_ext
