// The idea of this package, and the file to read first.
//
// Every basis here obeys a three-term recurrence
//
//     phi_0 = 1,   phi_{k+1}(x) = (a_k x + b_k) phi_k(x) - c_k phi_{k-1}(x),   c_0 = 0
//
// so a basis *is* the table of its rows (a_k, b_k, c_k), and a walk visits phi_0, phi_1, ... without knowing which
// basis it is. The recurrence is linear: a walk that starts from a seed g instead of 1 visits g phi_k(x), which is all
// that the gradients need:
//
//     y = sum_k coeffs_k phi_k(x)          seed 1
//     dx = sum_k (D coeffs)_k g phi_k(x)   seed g = grad_output
//     dcoeffs_k = sum over elements of g phi_k(x)
//
// where D, the derivative matrix of tables.h, expresses p' in the basis of p. Where D would cost digits, a walk over
// `Dual`s visits phi_k' itself.
//
// This file is free of torch and of vector types: CPU and CUDA kernels instantiate it alike.
#pragma once

#include <type_traits>
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

// The walk as it is defined: calls visit(k, seed * phi_k(x)) for k = 0 .. degree. The host makes its tables with it.
template <typename V, typename Visit>
void plain_walk(const V& x, const V& seed, const std::vector<Row>& rows, const Visit& visit) {
  V now = seed, before{};
  visit(size_t{0}, now);
  for (size_t k = 0; k < rows.size(); ++k) {
    const V next = (x * rows[k].a + rows[k].b) * now - before * rows[k].c;
    before = now;
    now = next;
    visit(k + 1, now);
  }
}

// A value, or a pack of them, and its derivative in x: a walk over these visits phi_k(x) and phi_k'(x).
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

// From here on, the same walk as the kernels run it.

// What a table allows a walk to leave out. `general` is right for every table.
enum class Walk : int {
  general,  // a_k x + b_k, c_k
  scaled,   // c_k = 1 for k >= 1
  uniform,  // c_k = 1 and one a x + b for every k >= 1: Chebyshev
  power,    // c_k = 0 and one a x + b for every k >= 1: monomials
};
SLAF_INLINE constexpr bool has_one_factor(Walk kind) { return kind == Walk::uniform || kind == Walk::power; }

// The rows as the kernels read them. The walks with one factor read rows 0 and 1 only, and apply row 0 to the factor,
// phi_1 = a_0 (a_1 x + b_1) + b_0, so that x need not be kept. `set_rows` in tables.h fills them.
template <typename T>
struct Rows {
  const T* a;
  const T* b;
  const T* c;
};

// A degree as the loops below take it: blocks * block + tail, where tail is 1 .. block, or 0 for degree 0. A tail that
// is a Constant is known to the compiler: blocks are then of four steps, and no test follows them.
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

// What the rows are applied to: x, or the one factor that all of them share.
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

// t - c_k u for k >= 1, with the c_k of this kind of walk. Where c_k is 0, an infinite u must not make a NaN.
template <Walk kind, typename V, typename T>
SLAF_INLINE V less_product(const V& t, int k, const Rows<T>& rows, const V& u) {
  if constexpr (kind == Walk::general) return rows.c[k] == T(0) ? t : t - u * rows.c[k];
  if constexpr (kind == Walk::scaled || kind == Walk::uniform) return t - u;
  return t;
}

// phi_{k+1} for k >= 1, given factor = a_k x + b_k
template <Walk kind, typename V, typename T>
SLAF_INLINE V next_of(const V& factor, const V& now, int k, const Rows<T>& rows, const V& before) {
  return less_product<kind>(factor * now, k, rows, before);
}
// Its slope in this order takes an addition less, as each product has a sum to go with.
template <Walk kind, typename V, typename T>
SLAF_INLINE Dual<V> next_of(const Dual<V>& factor, const Dual<V>& now, int k, const Rows<T>& rows,
                            const Dual<V>& before) {
  return {next_of<kind>(factor.value, now.value, k, rows, before.value),
          factor.value * now.slope + next_of<kind>(factor.slope, now.value, k, rows, before.slope)};
}

// The type of the last k that a walk visits, for visitors that treat phi_degree differently.
struct Last {
  int degree;
  SLAF_INLINE constexpr operator int() const { return degree; }
};

// Calls visit(k, seed * phi_k(x)) for k = 0 .. degree, where k is an int, and the last one a Last. V is a value or a
// pack of values.
template <Walk kind, typename V, typename T, typename Tail, typename Visit>
SLAF_INLINE void walk(const V& x, const V& seed, const Rows<T>& rows, const Degree<Tail>& degree, Visit&& visit) {
  visit(0, seed);
  if (degree.tail == 0) return;
  const V point = point_of<kind>(x, rows);
  V even = seed, odd = first_factor(point, rows) * seed;
  // Visits phi_k = `now`, and turns phi_{k-1} into phi_{k+1}: two variables take turns, so that no value is moved.
  const auto step = [&](int k, const V& now, V& before) __attribute__((always_inline)) {
    visit(k, now);
    before = next_of<kind>(factor_at<kind>(k, point, rows), now, k, rows, before);
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

// sum_k coeffs(k) phi_k(x) by Clenshaw's recurrence, which takes fewer operations than the walk. It is s_0 of
//
//     s_k = coeffs_k + (a_k x + b_k) s_{k+1} - c_{k+1} s_{k+2},   s_{degree+1} = s_{degree+2} = 0
template <Walk kind, typename V, typename T, typename Tail, typename Coeffs>
SLAF_INLINE V clenshaw(const V& x, const Rows<T>& rows, const Degree<Tail>& degree, Coeffs&& coeffs) {
  if (degree.tail == 0) return coeffs(0);
  const V point = point_of<kind>(x, rows);
  // Turns s_{k+2} into s_k, given s_{k+1} = `next`.
  const auto step = [&](int k, const V& next, V& later) __attribute__((always_inline)) {
    later = factor_at<kind>(k, point, rows) * next + less_product<kind>(coeffs(k), k + 1, rows, later);
  };
  // After s_top and s_{top-1}, the sums down to s_1 are whole blocks and a remainder.
  const int top = degree.value(), remainder = degree.tail == 1 ? Degree<Tail>::block - 1 : degree.tail - 2;
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
    if (remainder > 0) step(k, odd, even);
    if (remainder > 1) step(k - 1, even, odd);
    if (remainder > 2) step(k - 2, odd, even);
  }
  const auto last = [&](const V& next, const V& later) __attribute__((always_inline)) {
    return first_factor(point, rows) * next + less_product<kind>(coeffs(0), 1, rows, later);
  };
  return remainder % 2 == 1 ? last(even, odd) : last(odd, even);
}

}  // namespace slaf_ext
