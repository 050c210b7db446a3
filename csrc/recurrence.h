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
// where D, made by `derivative_matrix`, expresses p' in the basis of p; where that would cost digits, a walk over
// `Dual`s visits phi_k' itself. Where y alone is wanted, `expand` sums the series from its far end, which takes fewer
// operations.
// The text is free of torch and of vector types: CPU and CUDA kernels instantiate it alike.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
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

// The rows as the kernels read them. The walks with one factor read rows 0 and 1 alone, and apply row 0 to the factor:
// phi_1 = a_0 (a_1 x + b_1) + b_0, so that x need not be kept. `set_rows` makes them.
template <typename T>
struct Rows {
  const T* a;
  const T* b;
  const T* c;
};

// A degree as the loops below take it: blocks * block + tail, where tail is 1 .. block, or 0 for degree 0. Where the
// tail is a Constant, code for that tail alone, a block is of four steps and no test follows the blocks.
template <typename Tail = int>
struct Degree {
  static constexpr int block = std::is_same_v<Tail, int> ? 2 : 4;
  int blocks;
  Tail tail;
  SLAF_INLINE constexpr int value() const { return blocks * block + tail; }
};
template <int n>
struct Constant {
  SLAF_INLINE constexpr operator int() const { return n; }
};
template <typename Tail = int>
SLAF_INLINE constexpr Degree<Tail> in_blocks(int degree) {
  const int blocks = (degree - 1) / Degree<Tail>::block;
  if constexpr (std::is_same_v<Tail, int>) return {blocks, degree - blocks * Degree<Tail>::block};
  return {blocks, Tail{}};
}

// What the rows are applied to: x, or the one factor of all of them.
template <Walk kind, typename V, typename T>
SLAF_INLINE V point_of(const V& x, const Rows<T>& rows) {
  if constexpr (has_one_factor(kind)) return x * rows.a[1] + rows.b[1];
  return x;
}

// a_k x + b_k: for k = 0, and for k >= 1
template <typename V, typename T>
SLAF_INLINE V first_factor(const V& point, const Rows<T>& rows) {
  return point * rows.a[0] + rows.b[0];
}
template <Walk kind, typename V, typename T>
SLAF_INLINE V factor_at(int k, const V& point, const Rows<T>& rows) {
  if constexpr (has_one_factor(kind)) return point;
  return point * rows.a[k] + rows.b[k];
}

// t - c_k u, with what the kind of walk says of c_k, k >= 1. Where c_k is 0, an infinite u must not make a NaN.
template <Walk kind, typename V, typename T>
SLAF_INLINE V less_product(const V& t, int k, const Rows<T>& rows, const V& u) {
  if constexpr (kind == Walk::general) return rows.c[k] == T(0) ? t : t - u * rows.c[k];
  if constexpr (kind == Walk::scaled || kind == Walk::uniform) return t - u;
  return t;
}

// The k of the last visit, for those who treat phi_degree unlike the others.
struct Last {
  int degree;
  SLAF_INLINE constexpr operator int() const { return degree; }
};

// Calls visit(k, seed * phi_k(x)) for k = 0 .. degree, an int but for the last. V is a number, or a pack of numbers.
template <Walk kind, typename V, typename T, typename Tail, typename Visit>
SLAF_INLINE void walk(const V& x, const V& seed, const Rows<T>& rows, const Degree<Tail>& degree, Visit&& visit) {
  visit(0, seed);
  if (degree.tail == 0) return;
  const V point = point_of<kind>(x, rows);
  V even = seed, odd = first_factor(point, rows) * seed;
  // Visits phi_k = `now`, and turns phi_{k-1} into phi_{k+1}: two variables take turns, and no number moves.
  const auto step = [&](int k, const V& now, V& before) __attribute__((always_inline)) {
    visit(k, now);
    before = less_product<kind>(factor_at<kind>(k, point, rows) * now, k, rows, before);
  };
  int k = 1;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int block = 0; block < degree.blocks; ++block, k += Degree<Tail>::block) {
    step(k, odd, even);
    step(k + 1, even, odd);
    if constexpr (Degree<Tail>::block == 4) {
      step(k + 2, odd, even);
      step(k + 3, even, odd);
    }
  }
  if (degree.tail > 1) step(k, odd, even);
  if (degree.tail > 2) step(k + 1, even, odd);
  if (degree.tail > 3) step(k + 2, odd, even);
  if (degree.tail % 2 == 1) {
    visit(Last{k + degree.tail - 1}, odd);
  } else {
    visit(Last{k + degree.tail - 1}, even);
  }
}

// sum_k coeffs(k) phi_k(x) by Clenshaw's recurrence, the transpose of the walk: it is s_0 of
//
//     s_k = coeffs_k + (a_k x + b_k) s_{k+1} - c_{k+1} s_{k+2},   s_{degree+1} = s_{degree+2} = 0
template <Walk kind, typename V, typename T, typename Tail, typename Coeffs>
SLAF_INLINE V expand(const V& x, const Rows<T>& rows, const Degree<Tail>& degree, Coeffs&& coeffs) {
  if (degree.tail == 0) return coeffs(0);
  const V point = point_of<kind>(x, rows);
  // Turns s_{k+2} into s_k, given s_{k+1} = `next`.
  const auto step = [&](int k, const V& next, V& later) __attribute__((always_inline)) {
    later = factor_at<kind>(k, point, rows) * next + less_product<kind>(coeffs(k), k + 1, rows, later);
  };
  // After s_top and s_{top-1} the sums as far as s_1 are whole blocks, and the rest.
  const int top = degree.value(), rest = degree.tail == 1 ? Degree<Tail>::block - 1 : degree.tail - 2;
  V even = coeffs(top), odd = even;
  if (top > 1) {
    odd = factor_at<kind>(top - 1, point, rows) * even + coeffs(top - 1);
    int k = top - 2;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int block = degree.tail == 1; block < degree.blocks; ++block, k -= Degree<Tail>::block) {
      step(k, odd, even);
      step(k - 1, even, odd);
      if constexpr (Degree<Tail>::block == 4) {
        step(k - 2, odd, even);
        step(k - 3, even, odd);
      }
    }
    if (rest > 0) step(k, odd, even);
    if (rest > 1) step(k - 1, even, odd);
    if (rest > 2) step(k - 2, odd, even);
  }
  const auto last = [&](const V& next, const V& later) __attribute__((always_inline)) {
    return first_factor(point, rows) * next + less_product<kind>(coeffs(0), 1, rows, later);
  };
  return rest % 2 == 1 ? last(even, odd) : last(odd, even);
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
  for (auto* numbers : {&r.a, &r.b, &r.c}) numbers->reserve(degree + 1);
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

// The rows as a walk of some kind reads them, into arrays of r.a.size() numbers.
template <typename T>
void set_rows(const Recurrence& r, Walk walked, T* a, T* b, T* c) {
  for (size_t k = 0; k < r.a.size(); ++k) {
    Row row{r.a[k], r.b[k], r.c[k]};
    if (k == 0 && has_one_factor(walked)) row = {row.a / r.a[1], row.b - r.b[1] * (row.a / r.a[1]), 0.0};
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

// How much D amplifies rounding on [lo, hi]: the largest, over k, of the terms of phi_k' written in the basis to phi_k'
// itself, max_k (sum_j |D_kj| max|phi_j|) / max|phi_k'|. The classical families stay below 10; Newton's basis at
// Chebyshev nodes reaches 1e14 at degree 32.
inline double derivative_amplification(const std::vector<double>& D, const std::vector<Row>& rows, double lo,
                                       double hi) {
  constexpr int points = 17;
  using Values = std::array<double, points>;
  // Crowded at the ends, where polynomials are largest.
  static const Values nodes = [] {
    Values nodes;
    for (int i = 0; i < points; ++i) nodes[i] = 0.5 - 0.5 * std::cos(3.14159265358979323846 * i / (points - 1));
    return nodes;
  }();
  const auto largest = [](const Values& values) {
    double most = 0.0;
    for (const double t : values) most = std::max(most, std::abs(t));
    return most;
  };
  Values phi, phi_before{}, slope{}, slope_before{};
  phi.fill(1.0);
  std::vector<double> size{1.0};
  double worst = 1.0;
  for (size_t k = 0; k < rows.size(); ++k) {
    const auto [a, b, c] = rows[k];
    for (int i = 0; i < points; ++i) {
      const double factor = a * (lo * (1.0 - nodes[i]) + hi * nodes[i]) + b;
      const double next_slope = a * phi[i] + factor * slope[i] - c * slope_before[i];
      const double next = factor * phi[i] - c * phi_before[i];
      slope_before[i] = slope[i], phi_before[i] = phi[i];
      slope[i] = next_slope, phi[i] = next;
    }
    double terms = 0.0;
    for (size_t j = 0; j <= k; ++j) terms += std::abs(D[(k + 1) * (rows.size() + 1) + j]) * size[j];
    worst = std::max(worst, terms / largest(slope));  // which passes over NaN, from values that overflow
    size.push_back(largest(phi));
  }
  return worst;
}

// D where it serves for p' on [lo, hi]; empty where a walk over Duals is to visit phi_k' instead, since D would cost
// digits, or memory, of which it takes degree^2 numbers.
constexpr int longest_matrix = 256;
constexpr double most_amplification = 16;
inline std::vector<double> usable_derivative_matrix(const std::vector<Row>& rows, double lo, double hi) {
  if (rows.size() > longest_matrix) return {};
  std::vector<double> D = derivative_matrix(rows);
  if (derivative_amplification(D, rows, lo, hi) > most_amplification) D.clear();
  return D;
}

}  // namespace slaf_ext
