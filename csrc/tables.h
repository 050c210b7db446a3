// What the host makes of a basis and its coefficients before a sweep, free of torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "recurrence.h"

namespace slaf_ext {

// A basis made ready for the kernels: phi_k = scale_k psi_k, and the walk visits psi_k. The scales solve
// scale_{k+1} = c_k scale_{k-1}, which turns every c_k into 1 and saves a product a step; where all c_k are 0,
// scale_{k+1} = a_k / a_1 scale_k, which turns every a_k into a_1.
struct Recurrence {
  Walk kind;
  std::vector<double> a, b, c, scale;
};

inline Recurrence prepare(const std::vector<Row>& rows) {
  const size_t degree = rows.size();
  Recurrence r{Walk::general, {}, {}, {}, std::vector<double>(degree + 1, 1.0)};
  for (auto* column : {&r.a, &r.b, &r.c}) column->reserve(degree + 1);
  bool no_c = true, scalable = true;
  for (size_t k = 1; k < degree; ++k) no_c = no_c && rows[k].c == 0.0;
  for (size_t k = 1; k < degree; ++k) {
    r.scale[k + 1] = no_c ? rows[k].a / rows[1].a * r.scale[k] : rows[k].c * r.scale[k - 1];
    // Scales beyond this would push psi_k, or its row, towards the ends of fp32's range where phi_k is not.
    const double size = std::abs(r.scale[k + 1]), factor = std::abs(rows[k].a * r.scale[k] / r.scale[k + 1]);
    scalable = scalable && size > 0x1p-40 && size < 0x1p40 && factor > 0x1p-100 && factor < 0x1p100;
  }
  if (!scalable) r.scale.assign(degree + 1, 1.0);
  // Equal but for the rounding of the scales.
  const auto equal = [](double t, double u) { return std::abs(t - u) <= 0x1p-50 * std::abs(u); };
  bool one_factor = degree > 0;
  for (size_t k = 0; k < degree; ++k) {
    const double s = r.scale[k] / r.scale[k + 1];
    r.a.push_back(rows[k].a * s);
    r.b.push_back(rows[k].b * s);
    r.c.push_back(k == 0 || no_c ? 0.0 : scalable ? 1.0 : rows[k].c);
    if (k > 1) one_factor = one_factor && equal(r.a[k], r.a[1]) && equal(r.b[k], r.b[1]);
  }
  // By this factor t, psi_1 = (a_0 / a_1) t + (b_0 - b_1 a_0 / a_1), which must not be a difference of large terms.
  if (degree > 1) {
    one_factor = one_factor && std::abs(r.b[1] * (r.a[0] / r.a[1]) - r.b[0]) <= 4 * std::max(1.0, std::abs(r.b[0]));
  }
  if (degree == 1) {  // a second row, the factor x, so that this table has one factor too
    r.a.push_back(1.0);
    r.b.push_back(0.0);
    r.c.push_back(0.0);
  }
  if (scalable && one_factor) {
    r.kind = no_c ? Walk::power : Walk::uniform;
  } else if (scalable && !no_c) {
    r.kind = Walk::scaled;
  }
  return r;
}

// The rows as a walk of this kind reads them, into arrays of r.a.size() elements.
template <typename T>
void set_rows(const Recurrence& r, Walk kind, T* a, T* b, T* c) {
  for (size_t k = 0; k < r.a.size(); ++k) {
    Row row{r.a[k], r.b[k], r.c[k]};
    if (k == 0 && has_one_factor(kind)) row = {row.a / r.a[1], row.b - r.b[1] * (row.a / r.a[1]), 0.0};
    a[k] = static_cast<T>(row.a);
    b[k] = static_cast<T>(row.b);
    c[k] = static_cast<T>(row.c);
  }
}

// D, (degree + 1) x (degree + 1), row by row: phi_k' = sum_j D[k][j] phi_j, j < k. It follows from
//     phi_{k+1}' = a_k phi_k + (a_k x + b_k) phi_k' - c_k phi_{k-1}',
// with the product with x written in the basis: x phi_j = (phi_{j+1} - b_j phi_j + c_j phi_{j-1}) / a_j.
inline std::vector<double> derivative_matrix(const std::vector<Row>& rows) {
  const size_t K = rows.size() + 1;
  std::vector<double> D(K * K, 0.0);
  for (size_t k = 0; k + 1 < K; ++k) {
    const auto [a, b, c] = rows[k];
    const double *now = &D[k * K], *before = now - K;
    double* next = &D[(k + 1) * K];
    next[k] = a;
    for (size_t j = 0; j < k; ++j) {
      if (now[j] != 0.0) {
        const double d = now[j] / rows[j].a;
        next[j + 1] += a * d;
        next[j] += b * now[j] - a * rows[j].b * d;
        if (j > 0) next[j - 1] += a * rows[j].c * d;
      }
      next[j] -= c * before[j];
    }
  }
  return D;
}

// How much D amplifies rounding on [lo, hi]: max_k (sum_j |D_kj| max|phi_j|) / max|phi_k'|, the terms of phi_k' beside
// phi_k' itself. The classical families stay below 10; Newton's basis at Chebyshev nodes reaches 1e14 at degree 32.
inline double derivative_amplification(const std::vector<double>& D, const std::vector<Row>& rows, double lo,
                                       double hi) {
  const size_t K = rows.size() + 1;
  std::vector<double> values(K), slopes(K);  // the largest |phi_k| and |phi_k'|
  // Crowded at the ends, where polynomials are largest: (1 - cos(pi i / 16)) / 2
  static const auto nodes = [] {
    std::vector<double> t(17);
    for (size_t i = 0; i < t.size(); ++i)
      t[i] = 0.5 - 0.5 * std::cos(3.14159265358979323846 * static_cast<double>(i) / 16);
    return t;
  }();
  for (const double t : nodes) {
    const Dual<double> x{lo * (1 - t) + hi * t, 1};
    plain_walk(x, {1, 0}, rows, [&](size_t k, const Dual<double>& phi) {
      values[k] = std::max(values[k], std::abs(phi.value));  // which passes over NaN, from values that overflow
      slopes[k] = std::max(slopes[k], std::abs(phi.slope));
    });
  }
  double worst = 1;
  for (size_t k = 1; k < K; ++k) {
    double terms = 0;
    for (size_t j = 0; j < k; ++j) terms += std::abs(D[k * K + j]) * values[j];
    worst = std::max(worst, terms / slopes[k]);
  }
  return worst;
}

// D where it serves for p' on [lo, hi]; empty where phi_k' is to be walked instead, since D would cost digits or, with
// its degree^2 elements, memory.
inline std::vector<double> usable_derivative_matrix(const std::vector<Row>& rows, double lo, double hi) {
  constexpr size_t max_degree = 256;
  constexpr double max_amplification = 16;
  if (rows.size() > max_degree) return {};
  std::vector<double> D = derivative_matrix(rows);
  if (derivative_amplification(D, rows, lo, hi) > max_amplification) D.clear();
  return D;
}

// The weights of the linear map from the coefficients a of a polynomial to the coefficients w of its walk over psi_k,
// as `walk_coeff` applies it and `coeff_gradient` its adjoint. For y: the scales, and with linear edges the slopes
// phi_k' at lo and at hi,
//
//     w_k = scale_k a_k, k <= degree        w_{degree+1} = p'(lo)        w_{degree+2} = p'(hi)
inline std::vector<double> value_weights(const std::vector<Row>& rows, const Recurrence& r, double lo, double hi) {
  std::vector<double> weights = r.scale;
  for (const double edge : {lo, hi}) {
    plain_walk(Dual<double>{edge, 1}, {1, 0}, rows,
               [&](size_t, const Dual<double>& phi) { weights.push_back(phi.slope); });
  }
  return weights;
}

// And for p', D below its diagonal, row by row:
//
//     w_j = scale_j sum_{k > j} D_kj a_k
inline std::vector<double> slope_weights(const std::vector<double>& D, const Recurrence& r) {
  std::vector<double> weights;
  const size_t K = r.scale.size();
  weights.reserve(D.size() / 2);
  for (size_t k = 1; k < K && !D.empty(); ++k) {
    for (size_t j = 0; j < k; ++j) weights.push_back(D[k * K + j] * r.scale[j]);
  }
  return weights;
}

// The number of weights of either map.
constexpr int64_t weight_count(int64_t degree) { return std::max(3 * (degree + 1), degree * (degree + 1) / 2); }

// w_r, where coeff(k) is a_k, a value or a vector of those of several groups. The weights are those of y, or of p'.
template <typename Coeff>
SLAF_INLINE auto walk_coeff(int r, int degree, bool of_value, const double* weights, const Coeff& coeff) {
  if (of_value && r <= degree) return weights[r] * coeff(r);
  auto sum = decltype(coeff(0)){};
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
  for (int k = of_value ? 0 : r + 1; k <= degree; ++k) {
    const double weight = of_value ? weights[(r - degree) * (degree + 1) + k] : weights[k * (k - 1) / 2 + r];
    // D is half zeros where the basis respects parity, and 0 * inf must not make a NaN there.
    if (weight != 0) sum += weight * coeff(k);
  }
  return sum;
}

// The gradient in a_k, where sum(r) is the gradient in w_r, r < slots: the sum of grad_output psi_r or, beyond a linear
// edge, of grad_output times the distance. The weights are those of y.
template <typename Sum>
SLAF_INLINE auto coeff_gradient(int k, int degree, int slots, const double* weights, const Sum& sum) {
  auto gradient = weights[k] * sum(k);
  for (int r = degree + 1; r < slots; ++r) {
    const double slope = weights[(r - degree) * (degree + 1) + k];
    const auto beyond = sum(r);
    if (slope != 0) gradient += slope * beyond;  // which may be infinite
  }
  return gradient;
}

// The coefficient of the plain form that equals the normalised form's, k >= 1; epsilon is the relative rounding of the
// type computed in. A phi_k that is constant but for rounding gets no weight. A variance beyond float64 makes NaN, as 0
// would drop the term silently.
SLAF_INLINE double folded_coeff(double coeff, double mean, double variance, double eps, double epsilon) {
  const double constant = epsilon * mean;
  if (variance <= constant * constant) return 0;
  return std::isinf(variance) ? NAN : coeff / sqrt(variance + eps);
}

}  // namespace slaf_ext
