// The normalised form on the CPU.
#include <cmath>

#include "../operators.h"
#include "launch.h"

namespace slaf_ext::cpu {
namespace {

// For every group, the mean of phi_k over a few of its elements. Unless the sample is unlucky, it is near enough to the
// mean of all that sums of what is left lose no digits when the square of their mean is subtracted.
template <typename S>
Table sample_means(const Problem& p) {
  const auto [outer, groups, inner] = p.layout;
  const int64_t members = outer * inner, samples = std::min<int64_t>(members, 32);
  Table means(p.degree() + 1, groups);
  const S* x = static_cast<const S*>(p.x);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t member = i * members / samples;
      double t = static_cast<double>(widen(x[(member / inner * groups + g) * inner + member % inner]));
      if (p.outside != Outside::extrapolate) t = t < p.lo ? p.lo : t > p.hi ? p.hi : t;
      plain_walk(t - p.center, 1.0, p.rows,
                 [&](size_t k, double phi) { means[k][g] += phi / static_cast<double>(samples); });
    }
  }
  return means;
}

// Writes the moments; false where a square overflowed.
template <typename S>
bool try_moments(const Problem& p, double* mean, double* variance) {
  using T = compute_t<S>;
  const int64_t K = p.degree() + 1, groups = p.layout.groups;
  const Recurrence r = prepare(p.rows);
  const Table means = sample_means<S>(p);
  Table shifts(2 * K, groups);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t g = 0; g < groups; ++g) shifts[k][g] = static_cast<T>(means[k][g] / r.scale[k]);
  }
  // Sums show where a sample missed the mean by far, and a second sweep starts from the mean that they give.
  bool far = true, overflowed = false;
  for (int attempt = 0; far && !overflowed && attempt < 2; ++attempt) {
    const Table sums = run_sweep<S>(moments, p, r, shifts, nullptr);
    far = false;
    for (int64_t k = 1; k < K; ++k) {
      for (int64_t g = 0; g < groups; ++g) {
        const double moved = sums[k][g] / p.members(), square = sums[K + k][g] / p.members();
        const double spread = std::max(square - moved * moved, 0.0);
        far = far || moved * moved > 16 * spread;
        overflowed = overflowed || !std::isfinite(square);
        mean[g * (K - 1) + k - 1] = r.scale[k] * (shifts[k][g] + moved);
        variance[g * (K - 1) + k - 1] = r.scale[k] * r.scale[k] * spread;
        shifts[k][g] = static_cast<T>(shifts[k][g] + moved);
      }
    }
  }
  return !overflowed;
}

// False where float32 holds a phi_k, but not its square.
bool run_moments(const Problem& p, double* mean, double* variance, const Tensor&) {
  bool done = false;
  dispatch_storage(p.type, [&](auto s) { done = try_moments<decltype(s)>(p, mean, variance); });
  return done || p.type == Storage::double_precision;
}

// With s_k = sqrt(variance_k + eps), z_k = (phi_k - mean_k) / s_k and m elements a group,
//     dbias = sum g,   dw_k = sum g z_k,   dx = sum_k phi_k' w_k / s_k (g - dbias / m - z_k dw_k / m).
template <typename S>
void differentiate(const Problem& p, const Moments& moments) {
  using T = compute_t<S>;
  const int64_t K = p.degree() + 1, groups = p.layout.groups;
  const Recurrence r = prepare(p.rows);
  const Table values = read_coeffs(p);
  Table shifts(K, groups);
  for (int64_t k = 1; k < K; ++k) {
    for (int64_t g = 0; g < groups; ++g) shifts[k][g] = static_cast<T>(moments.mean[g * (K - 1) + k - 1] / r.scale[k]);
  }
  const Table sums = run_sweep<S>(centered_gradient, p, r, shifts, nullptr);
  Table gradient(K, groups), factors(3 * K, groups);
  std::copy_n(sums[0], groups, gradient[0]);
  for (int64_t k = 1; k < K; ++k) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t i = g * (K - 1) + k - 1;
      const double mu = moments.mean[i], s_k = std::sqrt(moments.variance[i] + moments.eps);
      const double scale = r.scale[k], total = sums[0][g];
      // The sums were centred at a rounded mean.
      const double dw = scale * (sums[k][g] + (shifts[k][g] - mu / scale) * total) / s_k;
      const double weight = values[k][g] / s_k, v = -weight * dw / (p.members() * s_k);
      gradient[k][g] = dw;
      factors[k][g] = scale * weight;
      factors[K + k][g] = scale * (-weight * total / p.members() - v * mu);
      factors[2 * K + k][g] = scale * scale * v;
    }
  }
  write_coeffs(gradient, p.grad_coeffs, p.coeffs_type);
  if (p.out != nullptr) run_sweep<S>(normalized_gradient, p, r, factors, p.out);
}

bool run_backward(const Problem& p, const Moments& moments, const Tensor&) {
  constexpr double large_variance = 0x1p80;  // from here on, float32 does not hold what goes with its inverse
  const auto is_large = [](double t) { return t > large_variance; };
  if (p.type != Storage::double_precision &&
      std::any_of(moments.variance, moments.variance + p.layout.groups * p.degree(), is_large))
    return false;
  dispatch_storage(p.type, [&](auto s) { differentiate<decltype(s)>(p, moments); });
  return true;
}

void run_fold(const Fold& f, const Tensor&) {
  Table table = read_coeffs(f.coeffs, f.coeffs_type, f.degree + 1, f.groups);
  for (int64_t k = 1; k <= f.degree; ++k) {
    for (int64_t g = 0; g < f.groups; ++g) {
      const int64_t i = g * f.degree + k - 1;
      table[k][g] = folded_coeff(table[k][g], f.moments.mean[i], f.moments.variance[i], f.moments.eps, f.epsilon);
      table[0][g] -= table[k][g] * f.moments.mean[i];
    }
  }
  write_coeffs(table, f.folded, f.in_double ? Storage::double_precision : Storage::single_precision);
}

}  // namespace
}  // namespace slaf_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CPU, m) {
  slaf_ext::NormalizedForm<&slaf_ext::cpu::run_moments, &slaf_ext::cpu::run_fold,
                           &slaf_ext::cpu::run_backward>::register_in(m);
}
