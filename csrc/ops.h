// The arguments of the operators, checked and made ready for a backend. No kernel lives here.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "layout.h"
#include "recurrence.h"

namespace slaf_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What happens outside [lo, hi]. `zero` is the derivative of `clamp`, which is that of `linear`.
enum class Outside : int64_t { extrapolate, zero, clamp, linear };

// The operators take the recurrence as the flat list A_0, B_0, C_0, A_1, ... and walk it at x - center.
struct Arguments {
  // Throws std::invalid_argument, with a sentence, when anything is wrong.
  Arguments(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence, int64_t dim, double center,
            double lo, double hi, int64_t outside);

  // A tensor with the shape, strides and dtype of x, uninitialised.
  Tensor empty_like_x() const;
  // Throws where the fused normalised form does not serve.
  void check_normalized() const;
  // A tensor that lies in memory as x does; throws if its shape, dtype or device are not those of x.
  Tensor lay_like_x(const Tensor& grad_output) const;

  Tensor x;       // dense: the caller's, or a dense copy of it
  Tensor coeffs;  // contiguous, (groups, degree + 1)
  std::vector<Row> rows;
  Layout layout;
  double center, lo, hi;
  Outside outside;

  int degree() const { return static_cast<int>(rows.size()); }
};

// For the statistics of the normalised form: coeffs without its first column, in float64.
Tensor empty_statistics(const Tensor& coeffs);
// Throws if `statistics` is no such tensor; kernels read it where it lies.
void check_statistics(const Tensor& statistics, const char* name, const Tensor& coeffs);

// An uninitialised contiguous tensor on the device of `like`.
Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like, ScalarType dtype);

}  // namespace slaf_ext
