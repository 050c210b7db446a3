// What each pass does with a few vectors: y, or both gradients, from a single walk over phi_k.
#pragma once

#include <algorithm>

#include "vector.h"

namespace slaf_ext::cpu {

// `forward` and `moments` have no seed, the others are seeded with grad_output.
enum Pass : unsigned {
  forward = 1,
  input_gradient = 2,
  coeffs_gradient = 4,
  both_gradients = input_gradient | coeffs_gradient,
  // For the normalised form. The coefficients of the first two are shifts c_k.
  moments = 8,               // sums of psi_k - c_k and of its square
  centered_gradient = 16,    // sums of grad_output (psi_k - c_k)
  normalized_gradient = 32,  // sum_k psi_k' (a_k grad_output + u_k + v_k psi_k), the coefficients a, u, v
  // For bases in which D would cost digits.
  walked_gradient = 64,  // grad_output sum_k a_k psi_k'
};
constexpr bool has_seed(unsigned pass) { return (pass & (forward | moments)) == 0; }
constexpr bool has_out(unsigned pass) {
  return (pass & (forward | input_gradient | normalized_gradient | walked_gradient)) != 0;
}
constexpr bool has_sums(unsigned pass) { return (pass & (coeffs_gradient | moments | centered_gradient)) != 0; }

// The walk sees clamp(x, lo, hi) - center; where x is extrapolated, lo and hi are infinite.
template <typename T>
struct Mapping {
  Outside outside;
  T center, lo, hi;

  template <typename V>
  SLAF_INLINE V apply(const V& x) const {
    const V low = lo - V{}, high = hi - V{};
    return (x < low ? low : x > high ? high : x) - center;
  }
  // t inside, 0 outside. Comparisons are not combined: gcc 12 would leave AVX-512's vectors for it.
  template <typename V>
  SLAF_INLINE V zero_outside(const V& t, const V& x) const {
    const V beyond = x > hi ? x - hi : below(x);
    return beyond == 0 ? t : V{};
  }
  // How far x lies beyond an edge.
  template <typename V>
  SLAF_INLINE V below(const V& x) const {
    return x < lo ? x - lo : V{};
  }
  template <typename V>
  SLAF_INLINE V above(const V& x) const {
    return x > hi ? x - hi : V{};
  }
};

// Vectors that a step works on: as many as 32, or 16, registers hold with what goes with them. Four of AVX2 in the step
// of both gradients just fit, and only beside a factor that is the same for every row.
constexpr int vectors_per_step(int bytes, unsigned pass, Walk kind) {
  if (pass == forward) return bytes == 64 ? 8 : 4;
  if (pass == normalized_gradient || pass == walked_gradient) return bytes == 64 ? 3 : 2;
  if (pass == both_gradients && bytes == 32 && has_one_factor(kind)) return 4;
  return bytes == 64 ? 6 : 3;
}

// `count` vectors of one unit, `stride` elements apart, and their results `out_stride` apart. `coeffs` and `sums` hold
// a vector for each slot: k = 0 .. degree and, with linear edges, the slopes below lo and above hi and the sums beyond
// them.
template <Walk kind, int bytes, unsigned pass, int count, typename S, typename T, typename Stride, typename Tail>
struct Step {
  static constexpr int W = bytes / sizeof(T);
  using P = Pack<T, bytes, count>;
  using V = Vector<T, bytes>;

  const S *x, *seed;
  S* out;
  Stride stride, out_stride;
  const Rows<T>& table;
  const Degree<Tail>& degree;
  const Mapping<T>* mapping;  // null where the walk sees x
  const T* coeffs;
  T* sums;

  SLAF_INLINE void run() const {
    P point = P::read(x, stride);
    if (mapping != nullptr) {
      transform(point, [&](const V& t, const V&) __attribute__((always_inline)) { return mapping->apply(t); });
    }
    if constexpr (pass == forward) {
      evaluate(point);
    } else if constexpr (pass == moments || pass == centered_gradient) {
      sum_centered(point);
    } else if constexpr (pass == normalized_gradient || pass == walked_gradient) {
      walk_derivatives(point);
    } else {
      differentiate(point);
    }
  }

 private:
  SLAF_INLINE void evaluate(const P& point) const {
    P y =
        clenshaw<kind>(point, table, degree, [&](int k) __attribute__((always_inline)) { return P::filled(coeff(k)); });
    if (is(Outside::linear)) {
      // A tangent of slope 0 is flat at infinity too, where 0 * inf would be NaN.
      const auto tangent = [](const V& slope, const V& distance)
                               __attribute__((always_inline)) { return slope == 0 ? V{} : slope * distance; };
      const int K = degree.value() + 1;
      transform(y, [&](const V& t, const V& raw) __attribute__((always_inline)) {
        return t + tangent(coeff(K), mapping->below(raw)) + tangent(coeff(K + 1), mapping->above(raw));
      });
    }
    if (is(Outside::zero)) zero_outside(y);
    y.write(out, out_stride);
  }

  SLAF_INLINE void differentiate(const P& point) const {
    P g = P::read(seed, stride);
    if (is(Outside::zero)) zero_outside(g);
    P slope;
    walk<kind>(point, g, table, degree, [&](auto k, const P& psi) __attribute__((always_inline)) {
      if constexpr ((pass & coeffs_gradient) != 0) add(k, psi);
      if constexpr ((pass & input_gradient) != 0 && !std::is_same_v<decltype(k), Last>) {  // p' is of a lower degree
        slope = k == 0 ? psi * coeff(k) : slope + psi * coeff(k);
      }
    });
    if ((pass & coeffs_gradient) != 0 && is(Outside::linear)) sum_beyond();
    if constexpr ((pass & input_gradient) != 0) write_gradient(slope);
  }

  SLAF_INLINE void walk_derivatives(const P& point) const {
    const int K = degree.value() + 1;
    const P g = P::read(seed, stride);
    const Dual<P> dual{point, P::filled(T(1))}, one{P::filled(T(1)), P::filled(T(0))};
    P sum = P::filled(T(0));
    walk<kind>(dual, one, table, degree, [&](int k, const Dual<P>& psi) __attribute__((always_inline)) {
      if (k == 0) return;
      if constexpr (pass == walked_gradient) {
        sum = sum + psi.slope * coeff(k);
      } else {
        sum = sum + psi.slope * (g * coeff(k) + psi.value * coeff(2 * K + k) + coeff(K + k));
      }
    });
    if constexpr (pass == walked_gradient) sum = g * sum;
    write_gradient(sum);
  }

  SLAF_INLINE void sum_centered(const P& point) const {
    const int K = degree.value() + 1;
    // The moments may be given a seed of ones, with zeros where a vector is not whole.
    const P first = has_seed(pass) || seed != nullptr ? P::read(seed, stride) : P::filled(T(1));
    walk<kind>(point, first, table, degree, [&](int k, const P& psi) __attribute__((always_inline)) {
      const P centered = psi - first * coeff(k);
      add(k, centered);
      if constexpr (pass == moments) add(K + k, centered * centered);
    });
  }

  // The sums of grad_output times the distance beyond linear edges.
  SLAF_INLINE void sum_beyond() const {
    const int K = degree.value() + 1;
#pragma GCC unroll 1
    for (int u = 0; u < count; ++u) {
      const V weight = load<bytes>(seed + u * stride), raw = load<bytes>(x + u * stride);
      add(K, weight * mapping->below(raw));
      add(K + 1, weight * mapping->above(raw));
    }
  }

  SLAF_INLINE void write_gradient(P& slope) const {
    if (is(Outside::zero) || is(Outside::clamp)) zero_outside(slope);
    slope.write(out, out_stride);
  }

  SLAF_INLINE bool is(Outside outside) const { return mapping != nullptr && mapping->outside == outside; }
  SLAF_INLINE V coeff(int slot) const { return load<bytes>(coeffs + slot * W); }
  SLAF_INLINE void add(int slot, const V& t) const { store<bytes>(sums + slot * W, load<bytes>(sums + slot * W) + t); }
  SLAF_INLINE void add(int slot, const P& p) const { add(slot, p.total()); }
  SLAF_INLINE void zero_outside(P& p) const {
    transform(p,
              [&](const V& t, const V& raw) __attribute__((always_inline)) { return mapping->zero_outside(t, raw); });
  }
  // p = f(p, x), in memory and by a loop that is not unrolled: every walk has copies of this code beside it.
  template <typename F>
  SLAF_INLINE void transform(P& p, F&& f) const {
    alignas(bytes) T scratch[count * W];
    p.write(+scratch, W);
#pragma GCC unroll 1
    for (int u = 0; u < count; ++u) {
      store<bytes>(scratch + u * W, f(load<bytes>(scratch + u * W), load<bytes>(x + u * stride)));
    }
    p = P::read(+scratch, W);
  }
};

}  // namespace slaf_ext::cpu
