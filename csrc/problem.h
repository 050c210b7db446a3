// What an operator asks of a backend, free of torch: the arguments are checked, and the results allocated.
#pragma once

#include <vector>

#include "layout.h"
#include "storage.h"
#include "tables.h"

namespace slaf_ext {

struct Problem {
  const void *x = nullptr, *grad_output = nullptr;  // grad_output: null in a forward
  void* out = nullptr;                              // y, or the gradient in x; null where it is not needed
  Storage type{};                                   // of x, grad_output and out
  const void* coeffs = nullptr;                     // (groups, degree + 1)
  void* grad_coeffs = nullptr;                      // null where it is not needed
  Storage coeffs_type{};                            // of coeffs and grad_coeffs
  std::vector<Row> rows;                            // walked at x - center
  std::vector<double> D;  // for the gradient in x: the derivative matrix; empty where phi_k' is walked instead
  double center = 0, lo = 0, hi = 0;
  Outside outside{};
  Layout layout{};

  int degree() const { return static_cast<int>(rows.size()); }
  // The coefficients of a walk, or the sums that its gradient is made from, for each group: see tables.h.
  int slots() const { return degree() + (outside == Outside::linear ? 3 : 1); }
  // The elements of a group.
  double members() const { return static_cast<double>(layout.outer * layout.inner); }
};

// The weights of the map to the coefficients of the walk for y, see tables.h.
inline std::vector<double> value_weights(const Problem& p, const Recurrence& r) {
  if (p.outside != Outside::linear) return r.scale;
  return value_weights(p.rows, r, p.lo - p.center, p.hi - p.center);
}

// The moments of phi_1, phi_2, ... over each group: (groups, degree).
struct Moments {
  const double *mean, *variance;
  double eps;
};

// The coefficients of the plain form with which it equals the normalised one: folded(g, k) = coeffs / s_k for k >= 1.
struct Fold {
  const void* coeffs;
  Storage coeffs_type;
  Moments moments;
  double epsilon;  // the relative rounding of the type computed in
  int64_t groups, degree;
  void* folded;
  bool in_double;  // whether `folded` is double, or else float
};

}  // namespace slaf_ext
