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

// What an operator is told beside tensors. The recurrence, the flat list A_0, B_0, C_0, A_1, ..., is walked at x -
// center.
struct Spec {
  std::vector<double> recurrence;
  int64_t dim;
  double center, lo, hi;
  int64_t outside;
};

// A spec from a float64 tensor on the CPU: dim, center, lo, hi, outside, A_0, B_0, C_0, A_1, ...
Spec unpacked(const Tensor& packed);

struct Arguments {
  // Throws std::invalid_argument, with a sentence, when anything is wrong.
  Arguments(const Tensor& x, const Tensor& coeffs, const Spec& spec);

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

// Throws unless `eps` can be added to a variance.
void check_eps(double eps);

// A float64 copy that lies in memory as the dense tensor does.
Tensor as_double(const Tensor& t);

// For the statistics of the normalised form: coeffs without its first column, in float64.
Tensor empty_statistics(const Tensor& coeffs);
// Throws if `statistics` is no such tensor; kernels read it where it lies.
void check_statistics(const Tensor& statistics, const char* name, const Tensor& coeffs);

// The arguments of `slaf_fold`, and a place for its result.
struct Folding {
  // Throws std::invalid_argument, with a sentence, when anything is wrong.
  Folding(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps, bool in_double);

  Tensor coeffs;  // contiguous, (groups, degree + 1)
  const double *mean, *variance;
  double eps, rounding;  // rounding: that of the dtype computed in
  int64_t groups, degree;
  Tensor folded;
};

// An uninitialised contiguous tensor on the device of `like`.
Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like, ScalarType dtype);

// The plain form's operators as ops.cpp declares them, for a backend's `forward(x, coeffs, spec)` and
// `backward(grad_output, x, coeffs, spec, need_x, need_coeffs)`.
template <auto forward, auto backward>
struct PlainForm {
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

}  // namespace slaf_ext
