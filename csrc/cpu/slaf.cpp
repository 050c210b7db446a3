// The plain form on the CPU.
#include "../operators.h"
#include "launch.h"

namespace slaf_ext::cpu {
namespace {

// The coefficients of the walk for y, or for p'.
Table walk_coeffs(const Problem& p, const std::vector<double>& weights, bool of_value) {
  return read_coeffs(p).map(p.slots(), [&](int slot, const auto& coeff) {
    return walk_coeff(slot, p.degree(), of_value, weights.data(), coeff);
  });
}

void run_forward(const Problem& p, const Tensor&) {
  const Recurrence r = prepare(p.rows);
  const Table coeffs = walk_coeffs(p, value_weights(p, r), true);
  dispatch_storage(p.type, [&](auto s) { run_sweep<decltype(s)>(forward, p, r, coeffs, p.out); });
}

void run_backward(const Problem& p, const Tensor&) {
  const int64_t K = p.degree() + 1;
  if (p.layout.numel() == 0) {
    if (p.grad_coeffs != nullptr) write_coeffs(Table(K, p.layout.groups), p.grad_coeffs, p.coeffs_type);
    return;
  }
  const Recurrence r = prepare(p.rows);
  const std::vector<double> weights = value_weights(p, r);
  const bool by_walk = p.out != nullptr && p.D.empty(), by_matrix = p.out != nullptr && !by_walk;
  dispatch_storage(p.type, [&](auto s) {
    using S = decltype(s);
    if (by_walk) run_sweep<S>(walked_gradient, p, r, walk_coeffs(p, weights, true), p.out);
    unsigned pass = 0;
    if (by_matrix) pass |= input_gradient;
    // Half types have strips for both gradients only, which are faster than tiles even where the sums are not wanted.
    if (p.grad_coeffs != nullptr || (by_matrix && is_half_v<S>)) pass |= coeffs_gradient;
    if (pass == 0) return;
    const Table coeffs = by_matrix ? walk_coeffs(p, slope_weights(p.D, r), false) : Table(p.slots(), p.layout.groups);
    const Table sums = run_sweep<S>(pass, p, r, coeffs, p.out);
    if (p.grad_coeffs == nullptr) return;
    write_coeffs(
        sums.map(K,
                 [&](int k, const auto& sum) { return coeff_gradient(k, p.degree(), p.slots(), weights.data(), sum); }),
        p.grad_coeffs, p.coeffs_type);
  });
}

}  // namespace
}  // namespace slaf_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CPU, m) {
  slaf_ext::PlainForm<&slaf_ext::cpu::run_forward, &slaf_ext::cpu::run_backward>::register_in(m);
}
