// The layer with a polynomial on every edge, y_o = sum_i sum_k weight[o, i, k] phi_k(x_i), as a matrix product: a panel
// of rows of x is expanded to its terms, phi_1 .. phi_n of each element, and the product is a library's. Backward, the
// gradient in the terms is contracted with their slopes to the gradient in x.
//
// What one element needs is written here, once for vectors of the CPU and for threads of a GPU.
#pragma once

#include <limits>

#include "problem.h"
#include "recurrence.h"

namespace slaf_ext {

// How x becomes the point at which the terms are walked.
template <typename T>
struct Terms {
  Rows<T> rows;
  int degree;
  Outside outside;
  T center, lo, hi;  // infinite where x is extrapolated

  template <typename V>
  SLAF_INLINE V clamped(const V& x) const {
    const V low = lo - V{}, high = hi - V{};
    return x < low ? low : x > high ? high : x;
  }

  // Calls visit(k, phi_k, phi_k') for k = 1 .. degree, at x clamped to [lo, hi]. It starts from phi_1, as at infinity
  // phi_1 phi_0' is no number.
  template <typename V, typename Visit>
  SLAF_INLINE void walk_slopes(const V& x, const Visit& visit) const {
    const V point = clamped(x) - center;
    V before = T(1) - V{}, now = point * rows.a[0] + rows.b[0];
    V slope_before{}, slope = rows.a[0] - V{};
    visit(1, now, slope);
    for (int k = 1; k < degree; ++k) {
      const V factor = point * rows.a[k] + rows.b[k];
      V next = factor * now, next_slope = factor * slope + now * rows.a[k];
      if (rows.c[k] != T(0)) {  // an infinity times 0 is no number either
        next -= before * rows.c[k];
        next_slope -= slope_before * rows.c[k];
      }
      before = now, now = next;
      slope_before = slope, slope = next_slope;
      visit(k + 1, now, slope);
    }
  }

  // Calls store(k, phi_k(x)) for k = 1 .. degree.
  template <typename V, typename Store>
  SLAF_INLINE void expand(const V& x, const Store& store) const {
    if (outside == Outside::linear) {
      const V beyond = x - clamped(x);
      walk_slopes(x, [&](int k, const V& value, const V& slope) __attribute__((always_inline)) {
        // Where one factor is 0 the other may be infinite.
        const V tangent = slope == 0 ? V{} : slope * beyond;
        store(k, beyond == 0 ? value : value + tangent);
      });
    } else {
      walk<Walk::general>(clamped(x) - center, T(1) - V{}, rows, in_blocks(degree),
                          [&](int k, const V& phi) __attribute__((always_inline)) {
                            if (k > 0) store(k, phi);
                          });
    }
  }

  // sum_k load(k) phi_k'(x), where load(k) is the gradient in phi_k(x).
  template <typename V, typename Load>
  SLAF_INLINE V contract(const V& x, const Load& load) const {
    V sum{};
    walk_slopes(x, [&](int k, const V&, const V& slope) __attribute__((always_inline)) { sum += load(k) * slope; });
    if (outside != Outside::clamp) return sum;
    const V low = lo - V{}, high = hi - V{};
    const V above_low = x < low ? V{} : sum;
    return x > high ? V{} : above_low;
  }
};

// A panel as the operators take it: x is (rows, columns) and the terms are (rows, degree, columns), which keeps the
// elements that are computed together side by side.
struct Panel {
  const void *x, *grad_terms;  // grad_terms: null where terms are expanded
  void* out;                   // the terms, or the gradient in x
  Storage type;                // of all
  int64_t rows, columns;
  std::vector<Row> recurrence;
  double center, lo, hi;
  Outside outside;

  int degree() const { return static_cast<int>(recurrence.size()); }

  // With rows that a backend keeps in its own memory.
  template <typename T>
  Terms<T> terms(const T* a, const T* b, const T* c) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const bool edges = outside != Outside::extrapolate;
    return {{a, b, c},
            degree(),
            outside,
            static_cast<T>(center),
            edges ? static_cast<T>(lo) : -infinity,
            edges ? static_cast<T>(hi) : infinity};
  }
};

}  // namespace slaf_ext
