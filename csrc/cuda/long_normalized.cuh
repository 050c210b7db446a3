// The sweeps of the normalised form, and the walked gradient of the plain one, for degrees too high for registers.
#pragma once

#include "long.cuh"
#include "normalized.cuh"

namespace slaf_ext::cuda {

// What a sweep reads from memory.
template <typename T>
struct LongNormalized {
  Statistics<T> statistics;
  const T* table;  // all a, all b, all c
  const double* inverse_scales;
};

// Any degree, with tables, shifts and sums in memory.
template <Pass pass, Access access, typename S, typename T = compute_t<S>>
__global__ void __launch_bounds__(max_threads, 8 / sizeof(T))
    long_normalized_sweep(const __grid_constant__ Sweep<S> s, const __grid_constant__ LongNormalized<T> t) {
  using Part = LongPart<access, S>;
  using P = typename Part::P;
  const Part part(s);
  const int K = s.degree + 1;
  const Rows<T> table{t.table, t.table + s.degree, t.table + 2 * s.degree};
  if constexpr (pass == Pass::normalized_gradient || pass == Pass::walked_gradient) {
    const T* const factors = t.statistics.factors + part.group * coeff_slots(pass, s.degree);
    for (int turn = 0; turn < part.turns; ++turn) {
      const P dx =
          gradient_of<pass, Walk::general, AnyDegree>(s, table, part.read(s.x, turn), part.read(s.grad_output, turn),
                                                      [&](int set, int k) { return P::of(factors[set * K + k]); });
      part.write(turn, dx);
    }
  } else {
    const auto visit_terms = [&](int turn, const auto& f) {
      P seed{};
      if constexpr (pass == Pass::moments) {
        part.for_elements(turn, [&](int u, int64_t) { seed.v[u] = T(1); });
      } else {
        seed = part.read(s.grad_output, turn);
      }
      walk<Walk::general>(mapped(s, part.read(s.x, turn)), seed, table, in_blocks(s.degree),
                          [&](int k, const P& psi) { f(k, psi, seed); });
    };
    if constexpr (pass == Pass::moments) {
      T count = 0;
      visit_terms(0, [&](int k, const P& psi, const P&) {
        const T sum = part.combine(psi.total() * T(sample_scaling)),
                size = part.combine(magnitude(psi).total() * T(sample_scaling));
        if (k == 0) count = sum;
        if (!part.writes) return;
        part.partial(2 * K + k) = count > 0 ? sum / count : T(0);
        part.partial(3 * K + k) = power_of_two_for<T>(count > 0 ? size / count : T(0), sample_exponent);
      });
      __syncthreads();
    }
    // A thread beyond the last column reads the shifts of another, and writes nothing.
    const int64_t column = part.writes || access == Access::runs ? part.column : 0;
    const auto shift = [&](int k) {
      if constexpr (pass == Pass::moments) return s.partials(2 * K + k, part.source, column);
      return shift_of<T>(t.statistics.moments.mean[part.group * s.degree + k - 1], t.inverse_scales[k]);
    };
    const auto scaling = [&](int k) {
      if constexpr (pass == Pass::moments) return s.partials(3 * K + k, part.source, column);
      return scaling_of<T>(t.statistics.moments.variance[part.group * s.degree + k - 1], t.statistics.moments.eps,
                           t.inverse_scales[k]);
    };
    for (int turn = 0; turn < part.turns; ++turn) {
      visit_terms(turn, [&](int k, const P& psi, const P& seed) {
        const P centered = k == 0 ? psi : (psi - seed * shift(k)) * scaling(k);
        part.add(k, centered.total(), turn == 0);
        if constexpr (pass == Pass::moments) part.add(K + k, (centered * centered).total(), turn == 0);
      });
    }
  }
}

}  // namespace slaf_ext::cuda
