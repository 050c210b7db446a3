// The arguments of the operators, checked and made ready for a backend, and the allocation of results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "panel.h"

namespace slaf_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What an operator is told beside tensors. The recurrence is the flat list A_0, B_0, C_0, A_1, ...
struct Spec {
  std::vector<double> recurrence;
  int64_t dim;
  double center, lo, hi;
  int64_t outside;
};

// A spec from a float64 tensor on the CPU: dim, center, lo, hi, outside, A_0, B_0, C_0, A_1, ...
Spec unpacked(const Tensor& packed);

// The checks here throw std::invalid_argument, with a sentence.
struct Arguments {
  Arguments(const Tensor& x, const Tensor& coeffs, const Spec& spec);

  // Throws where the fused normalised form does not serve.
  void check_normalized() const;
  // A tensor with the shape, strides and dtype of x, uninitialised.
  Tensor empty_like_x() const;
  // The gradients in x and in coeffs, uninitialised; empty where they are not needed.
  std::tuple<Tensor, Tensor> empty_gradients(bool need_x, bool need_coeffs) const;
  // grad_output with the strides of x; throws if its shape, dtype or device are not those of x.
  Tensor lay_like_x(const Tensor& grad_output) const;

  Tensor x;         // dense: the caller's, or a dense copy of it
  Tensor coeffs;    // contiguous
  Problem problem;  // of a forward, without its result
};

// The moments of the normalised form have the shape of coeffs without its first column, in float64.
Tensor empty_statistics(const Tensor& coeffs);
// Throws if the tensors are not such moments.
Moments check_moments(const Tensor& mean, const Tensor& variance, double eps, const Tensor& coeffs);

// Coefficients that an operator takes, contiguous; throws if they are not.
Tensor check_coeffs(const Tensor& coeffs);
// The folding of checked coefficients, and the tensor of its result.
std::tuple<Fold, Tensor> folding_of(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps,
                                    bool in_double);

// A panel of x, of shape (rows, columns), whose terms are (rows, degree, columns); throws if they are not, or are not
// contiguous.
Panel check_panel(const Tensor& x, const Spec& spec, const Tensor& terms, const char* name);
// Throws if a tensor is not contiguous with the shape, dtype and device of another.
void check_like(const Tensor& t, const char* name, const Tensor& other);

// A float64 copy with the strides of a dense tensor.
Tensor as_double(const Tensor& t);
// An uninitialised contiguous tensor on the device of `like`.
Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like, ScalarType dtype);

}  // namespace slaf_ext
