// The operators: their schemas. Kernels register themselves at the foot of cpu/slaf.cpp and
// cuda/slaf.cu; fakes and autograd live in slaf_ext/ops.py.
#include <torch/csrc/stable/library.h>

#include <string>

STABLE_TORCH_LIBRARY(slaf_ext, m) {
  // `slaf` and `slaf_backward` have a second name each, _slaf and _slaf_backward, which PyTorch's autograd passes by:
  // for calls from within it.
  for (const std::string prefix : {"", "_"}) {
    // y = sum_k coeffs[g, k] phi_k(x), with phi from `recurrence` = A_0, B_0, C_0, A_1, ... walked at x - center.
    const std::string slaf =
        prefix +
        "slaf(Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo, float hi, int outside)"
        " -> Tensor";
    // The gradients in x and coeffs, from one sweep; the one that is not needed comes back empty.
    const std::string slaf_backward =
        prefix +
        "slaf_backward(Tensor grad_output, Tensor x, Tensor coeffs, float[] recurrence, int dim, float center,"
        " float lo, float hi, int outside, bool need_x, bool need_coeffs) -> (Tensor, Tensor)";
    m.def(slaf.c_str());
    m.def(slaf_backward.c_str());
  }
  // The mean and the biased variance of phi_1(x), phi_2(x), ... over the elements of a group, in float64.
  m.def(
      "slaf_moments(Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo, float hi,"
      " int outside) -> (Tensor, Tensor)");
  // The gradients of coeffs[g, 0] + sum_k coeffs[g, k] (phi_k(x) - mean_k) / sqrt(variance_k + eps).
  m.def(
      "slaf_normalized_backward(Tensor grad_output, Tensor x, Tensor coeffs, Tensor mean, Tensor variance,"
      " float[] recurrence, int dim, float center, float lo, float hi, int outside, float eps, bool need_x)"
      " -> (Tensor, Tensor)");
}
