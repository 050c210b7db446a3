// The operators: their schemas. Kernels register themselves at the foot of cpu/slaf.cpp and
// cuda/slaf.cu; fakes and autograd live in slaf_ext/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(slaf_ext, m) {
  // y = sum_k coeffs[g, k] phi_k(x), with phi from `recurrence` = A_0, B_0, C_0, A_1, ... walked at x - center.
  m.def(
      "slaf(Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo, float hi, int outside)"
      " -> Tensor");
  // The gradients in x and coeffs, from one sweep; the one that is not needed comes back empty.
  m.def(
      "slaf_backward(Tensor grad_output, Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo,"
      " float hi, int outside, bool need_x, bool need_coeffs) -> (Tensor, Tensor)");
  // The same two for calls from within PyTorch's autograd, which passes them by: the spec is one tensor, since a call
  // costs by the argument.
  m.def("_slaf(Tensor x, Tensor coeffs, Tensor spec) -> Tensor");
  m.def(
      "_slaf_backward(Tensor grad_output, Tensor x, Tensor coeffs, Tensor spec, bool need_x, bool need_coeffs)"
      " -> (Tensor, Tensor)");
  // The mean and the biased variance of phi_1(x), phi_2(x), ... over the elements of a group, in float64.
  m.def(
      "slaf_moments(Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo, float hi,"
      " int outside) -> (Tensor, Tensor)");
  // The coefficients of the plain form with which it equals the normalised one, in float64 or float32.
  m.def("slaf_fold(Tensor coeffs, Tensor mean, Tensor variance, float eps, bool in_double) -> Tensor");
  // The gradients of coeffs[g, 0] + sum_k coeffs[g, k] (phi_k(x) - mean_k) / sqrt(variance_k + eps).
  m.def(
      "slaf_normalized_backward(Tensor grad_output, Tensor x, Tensor coeffs, Tensor mean, Tensor variance,"
      " float[] recurrence, int dim, float center, float lo, float hi, int outside, float eps, bool need_x)"
      " -> (Tensor, Tensor)");
  // The terms phi_1(x) .. phi_n(x) of a panel, (rows, n, columns), from x, (rows, columns). Beneath kan_linear, which
  // slaf_ext/kan_ops.py makes of these two and of matrix products.
  m.def("kan_expand(Tensor x, Tensor spec, Tensor(a!) terms) -> ()");
  // The gradient in x from that in the terms.
  m.def("kan_contract(Tensor x, Tensor spec, Tensor grad_terms, Tensor(a!) grad_x) -> ()");
}
