// The idea of this package, and the file to read first.
//
// Every basis here obeys a three-term recurrence
//
//     phi_0 = 1,   phi_{k+1}(x) = (a_k x + b_k) phi_k(x) - c_k phi_{k-1}(x),   c_0 = 0
//
// so a basis *is* the table of its rows (a_k, b_k, c_k), and `walk` below visits phi_0, phi_1, ...
// without knowing which basis it walks. The recurrence is linear: a walk that starts from a seed g
// instead of 1 visits g phi_k(x), which is all that the gradients need:
//
//     y = sum_k coeffs_k phi_k(x)          seed 1
//     dx = sum_k (D coeffs)_k g phi_k(x)   seed g = grad_output
//     dcoeffs_k = sum over elements of g phi_k(x)
//
// where D, made by `derivative_matrix`, expresses p' in the basis of p. Where y alone is wanted,
// `expand` sums the series from its far end, which takes fewer operations.
// The text is free of torch and of vector types: CPU and CUDA kernels instantiate it alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#ifdef __CUDACC__
#define SLAF_INLINE __host__ __device__ __forceinline__
#else
#define SLAF_INLINE __attribute__((always_inline)) inline
#endif

namespace slaf_ext {

// phi_{k+1} = (a x + b) phi_k - c phi_{k-1}
struct Row {
  double a, b, c;
};

// What a table allows a walk to leave out. `general` is always right, the others are it, shortened.
enum class Walk : int {
  general,  // a_k x + b_k, c_k
  scaled,   // c_k = 1 for k >= 1
  uniform,  // c_k = 1 and one a x + b for every k >= 1: Chebyshev
  power,    // c_k = 0 and one a x + b for every k >= 1: monomials
};
SLAF_INLINE constexpr bool has_one_factor(Walk kind) { return kind == Walk::uniform || kind == Walk::power; }

// The rows as the kernels read them: row 0 is the first step, the `uniform` and `power` walks
// read only row 1 after it.
template <typename T>
struct Rows {
  const T* a;
  const T* b;
  const T* c;
};

// a_k x + b_k
template <Walk kind, typename V, typename T>
SLAF_INLINE V factor_at(int k, const V& x, const Rows<T>& rows) {
  const int row = has_one_factor(kind) && k > 0 ? 1 : k;
  return x * rows.a[row] + rows.b[row];
}

// t - c_k u, with what the kind of walk says of c_k, k >= 1
template <Walk kind, typename V, typename T>
SLAF_INLINE V less_product(const V& t, int k, const Rows<T>& rows, const V& u) {
  if constexpr (kind == Walk::general) return t - u * rows.c[k];
  if constexpr (kind == Walk::scaled || kind == Walk::uniform) return t - u;
  return t;
}

// Calls visit(k, seed * phi_k(x)) for k = 0 .. degree. V is a number, or a pack of numbers.
template <Walk kind, typename V, typename T, typename Degree, typename Visit>
SLAF_INLINE void walk(const V& x, const V& seed, const Rows<T>& rows, Degree degree, Visit&& visit) {
  visit(0, seed);
  if (degree == 0) return;
  V even = seed, odd = factor_at<kind>(0, x, rows) * seed, factor = x;
  if (has_one_factor(kind) && degree > 1) factor = factor_at<kind>(1, x, rows);
  // Two steps at a time, so that no number moves from one variable to another.
  int k = 1;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (; k + 1 < degree; k += 2) {
    visit(k, odd);
    if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(k, x, rows);
    even = less_product<kind>(factor * odd, k, rows, even);
    visit(k + 1, even);
    if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(k + 1, x, rows);
    odd = less_product<kind>(factor * even, k + 1, rows, odd);
  }
  visit(k, odd);
  if (k == degree) return;
  if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(k, x, rows);
  visit(k + 1, less_product<kind>(factor * odd, k, rows, even));
}

// sum_k coeffs(k) phi_k(x) by Clenshaw's recurrence, the transpose of the walk: it is s_0 of
//
//     s_k = coeffs_k + (a_k x + b_k) s_{k+1} - c_{k+1} s_{k+2},   s_{degree+1} = s_{degree+2} = 0
template <Walk kind, typename V, typename T, typename Coeffs>
SLAF_INLINE V expand(const V& x, const Rows<T>& rows, int degree, Coeffs&& coeffs) {
  if (degree == 0) return coeffs(0);
  V later = coeffs(degree), factor = factor_at<kind>(degree - 1, x, rows);
  V current = factor * later + coeffs(degree - 1);
  if (degree == 1) return current;
  int k = degree - 2;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (; k > 1; k -= 2) {
    if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(k, x, rows);
    later = factor * current + less_product<kind>(coeffs(k), k + 1, rows, later);
    if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(k - 1, x, rows);
    current = factor * later + less_product<kind>(coeffs(k - 1), k, rows, current);
  }
  if (k == 1) {
    if constexpr (!has_one_factor(kind)) factor = factor_at<kind>(1, x, rows);
    const V sum = factor * current + less_product<kind>(coeffs(1), 2, rows, later);
    later = current;
    current = sum;
  }
  return factor_at<kind>(0, x, rows) * current + less_product<kind>(coeffs(0), 1, rows, later);
}

// A number, or a pack of them, and its derivative in x: a walk over these visits phi_k(x) and phi_k'(x).
template <typename V>
struct Dual {
  V value, slope;

  template <typename T>
  SLAF_INLINE friend Dual operator*(const Dual& p, T t) {
    return {p.value * t, p.slope * t};
  }
  template <typename T>
  SLAF_INLINE friend Dual operator+(const Dual& p, T t) {
    return {p.value + t, p.slope};
  }
  SLAF_INLINE friend Dual operator*(const Dual& p, const Dual& q) {
    return {p.value * q.value, p.value * q.slope + p.slope * q.value};
  }
  SLAF_INLINE friend Dual operator-(const Dual& p, const Dual& q) { return {p.value - q.value, p.slope - q.slope}; }
};

// A table made ready for the kernels: phi_k = scale_k psi_k, and the walk visits psi_k. The scales
// solve scale_{k+1} = c_k scale_{k-1}, which turns every c_k into 1 and saves a product a step; where all
// c_k are 0, scale_{k+1} = a_k / a_1 scale_k, which turns every a_k into a_1.
struct Recurrence {
  Walk kind;
  std::vector<double> a, b, c, scale;
};

inline Recurrence prepare(const std::vector<Row>& rows) {
  const size_t degree = rows.size();
  Recurrence r{Walk::general, {}, {}, {}, std::vector<double>(degree + 1, 1.0)};
  bool no_c = true, scalable = true;
  for (size_t k = 1; k < degree; ++k) no_c = no_c && rows[k].c == 0.0;
  for (size_t k = 1; k < degree; ++k) {
    r.scale[k + 1] = no_c ? rows[k].a / rows[1].a * r.scale[k] : rows[k].c * r.scale[k - 1];
    // Scales beyond this would push psi_k towards the ends of fp32's range where phi_k is not.
    const double size = std::abs(r.scale[k + 1]);
    scalable = scalable && size > 0x1p-40 && size < 0x1p40;
  }
  if (!scalable) r.scale.assign(degree + 1, 1.0);
  // Equal but for the rounding of the scales.
  const auto equal = [](double t, double u) { return std::abs(t - u) <= 0x1p-50 * std::abs(u); };
  bool one_factor = true;
  for (size_t k = 0; k < degree; ++k) {
    const double s = r.scale[k] / r.scale[k + 1];
    r.a.push_back(rows[k].a * s);
    r.b.push_back(rows[k].b * s);
    r.c.push_back(k > 0 ? rows[k].c * (r.scale[k - 1] / r.scale[k + 1]) : 0.0);
    if (k > 1) one_factor = one_factor && equal(r.a[k], r.a[1]) && equal(r.b[k], r.b[1]);
  }
  if (scalable) r.kind = !one_factor ? (no_c ? Walk::general : Walk::scaled) : no_c ? Walk::power : Walk::uniform;
  return r;
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

// phi_0'(x) .. phi_degree'(x) at one point, by the differentiated recurrence.
inline std::vector<double> derivatives_at(double x, const std::vector<Row>& rows) {
  std::vector<double> phi{1.0}, slope{0.0};
  for (size_t k = 0; k < rows.size(); ++k) {
    const auto [a, b, c] = rows[k];
    const double factor = a * x + b;
    slope.push_back(a * phi[k] + factor * slope[k] - (k > 0 ? c * slope[k - 1] : 0.0));
    phi.push_back(factor * phi[k] - (k > 0 ? c * phi[k - 1] : 0.0));
  }
  return slope;
}

}  // namespace slaf_ext
