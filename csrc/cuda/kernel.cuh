// The kernels of the plain form, free of torch. One sweep over x gives y, or both gradients; a second kernel adds the
// sums of its blocks, see reduce.cuh.
#pragma once

#include <algorithm>
#include <type_traits>

#include "elements.cuh"

namespace slaf_ext::cuda {

// What a linear edge adds at a distance beyond it. A slope of 0 is flat at infinity too, where 0 * inf would be NaN.
template <typename T>
SLAF_INLINE T tangent(T slope, T distance) {
  const T rise = slope * distance;
  return slope == T(0) ? T(0) : rise;
}

// x as the walk sees it, and which elements lie how far outside [lo, hi].
template <typename P>
struct Inside {
  P x, below, above;      // distances beyond the edges
  unsigned outside_bits;  // a bit for each element
};
template <typename T, int n>
SLAF_INLINE Inside<Pack<T, n>> inside_of(const Pack<T, n>& x, T lo, T hi, T center) {
  Inside<Pack<T, n>> t{};
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const T from = x.v[i];
    const bool is_below = from < lo;
    const bool is_above = from > hi;
    t.x.v[i] = (is_below ? lo : is_above ? hi : from) - center;
    t.below.v[i] = is_below ? from - lo : T(0);
    t.above.v[i] = is_above ? from - hi : T(0);
    t.outside_bits |= (is_below || is_above ? 1u : 0u) << i;
  }
  return t;
}
template <typename T, int n>
SLAF_INLINE Pack<T, n> zero_where(unsigned bits, const Pack<T, n>& p) {
  return Pack<T, n>::make([&](int i) { return (bits >> i & 1u) != 0 ? T(0) : p.v[i]; });
}

// A sweep and its tables, as the argument of a kernel, so that no copy to the device precedes it.
template <typename S, int highest>
struct TabledSweep {
  using T = compute_t<S>;
  Sweep<S> sweep;
  const void* coeffs;
  Storage coeffs_type;
  T a[highest + 1], b[highest + 1], c[highest + 1];
  double weights[weight_count(highest)];
};

// The coefficients and sums of a thread. The coefficients of a group lie in shared memory; those of columns differ from
// lane to lane and lie in registers.
template <typename Form, int highest, typename T>
struct Columns {
  using Lanes = Pack<T, Form::lanes>;

  __device__ __forceinline__ Columns(const Block<Form, T>& block, int degree) : block(block) {
    if constexpr (Form::has_columns) {
#pragma unroll
      for (int k = 0; k <= highest; ++k) own[k] = k <= degree ? slot<Lanes>(k) : Lanes::of(T(0));
    }
  }
  template <typename P>
  __device__ __forceinline__ P coeff(int k) const {
    if constexpr (Form::has_columns)
      return own[k];
    else
      return slot<P>(k);
  }
  // One read from shared memory where it is used: of any slot.
  template <typename P>
  __device__ __forceinline__ P slot(int i) const {
    return block.template coeff<P>(i);
  }
  template <typename P>
  __device__ __forceinline__ void add(int k, const P& terms) {
    accumulate<Form::has_columns>(sums[k], terms);
  }
  template <typename P>
  __device__ __forceinline__ void add_beyond(const P& below, const P& above) {
    accumulate<Form::has_columns>(beyond[0], below);
    accumulate<Form::has_columns>(beyond[1], above);
  }

  const Block<Form, T>& block;
  Lanes own[Form::has_columns ? highest + 1 : 1];
  Lanes sums[highest + 1] = {}, beyond[2] = {};
};

// A degree that is known at run time only.
struct AnyDegree {
  static constexpr int lowest = 0, highest = -1;
};

// Whether all degrees of `Range` walk alike: there is one, or the degree is known at run time only.
template <typename Range>
inline constexpr bool has_one_end = Range::lowest >= Range::highest;
// How far they walk.
template <typename Range>
SLAF_INLINE constexpr Degree<> end_of(int degree) {
  return in_blocks(Range::highest < 0 ? degree : Range::highest);
}

// Whether a walk for the degrees of `Range` ends at k. Degrees that share a kernel leave the walk at their own.
template <typename Range, typename K>
SLAF_INLINE constexpr bool is_last(K k, int degree) {
  if constexpr (std::is_same_v<K, Last>) return true;
  return !has_one_end<Range> && k >= Range::lowest && k == degree;
}

// `walk` for a degree of `Range`.
template <Walk kind, typename Range, typename V, typename T, typename Visit>
SLAF_INLINE void walk_to(int degree, const V& x, const V& seed, const Rows<T>& rows, const Visit& visit) {
  constexpr int highest = Range::highest;
  if constexpr (has_one_end<Range>) {
    walk<kind>(x, seed, rows, end_of<Range>(degree), visit);
  } else {
    visit(0, seed);
    if (is_last<Range>(0, degree)) return;
    const V point = point_of<kind>(x, rows);
    V even = seed, odd = first_factor(point, rows) * seed;
#pragma unroll
    for (int k = 1; k < highest; ++k) {
      const V& now = k % 2 == 0 ? even : odd;
      V& before = k % 2 == 0 ? odd : even;
      visit(k, now);
      if (is_last<Range>(k, degree)) return;
      before = next_of<kind>(factor_at<kind>(k, point, rows), now, k, rows, before);
    }
    visit(Last{highest}, highest % 2 == 0 ? even : odd);
  }
}

// sum_k coeffs(k) phi_k(x) for a degree of `Range`; top is coeffs(degree).
template <Walk kind, typename Range, typename V, typename T, typename Coeffs>
SLAF_INLINE V clenshaw_to(int degree, const V& x, const Rows<T>& rows, const Coeffs& coeffs, const V& top) {
  if constexpr (has_one_end<Range>) {
    return clenshaw<kind>(x, rows, end_of<Range>(degree), coeffs);
  } else {
    // As `clenshaw`, but the steps above the degree are skipped: s_k is in `even` or `odd`, as k is.
    const V point = point_of<kind>(x, rows), zero = V::of(T(0));
    V even = degree % 2 == 0 ? top : zero, odd = degree % 2 == 0 ? zero : top;
#pragma unroll
    for (int k = Range::highest - 1; k > 0; --k) {
      if (k >= Range::lowest && k >= degree) continue;
      V& next = k % 2 == 0 ? odd : even;
      V& later = k % 2 == 0 ? even : odd;
      later = factor_at<kind>(k, point, rows) * next + less_product<kind>(coeffs(k), k + 1, rows, later);
    }
    if (Range::lowest == 0 && degree == 0) return top;
    return first_factor(point, rows) * odd + less_product<kind>(coeffs(0), 1, rows, even);
  }
}

// y of some elements of a thread, or their gradient in x, with the sums of grad_output phi_k. What needs x itself comes
// before the walk, so that x takes no registers during it.
template <typename Form, typename Range, typename S, typename P, typename T, typename Columns>
__device__ __forceinline__ P evaluate(const Sweep<S, T>& s, const Rows<T>& table, P x, P grad_output,
                                      Columns& columns) {
  P result = P::of(T(0));
  unsigned outside_bits = 0;
  if (Form::is_backward && Range::highest > 16) reload_shared();  // the sums take the registers
  if (Form::has_edges && s.outside != Outside::extrapolate) {
    const auto inside = inside_of(x, s.lo, s.hi, s.center);
    const bool is_linear = s.outside == Outside::linear;
    x = inside.x;
    // The gradient of `clamp` vanishes outside, and `zero` does by name.
    if (!is_linear && (Form::is_backward || s.outside == Outside::zero)) outside_bits = inside.outside_bits;
    if (is_linear) {
      if constexpr (Form::is_backward) {
        columns.add_beyond(grad_output * inside.below, grad_output * inside.above);
      } else {
        const P below = columns.template slot<P>(s.degree + 1), above = columns.template slot<P>(s.degree + 2);
        result = P::make(
            [&](int i) { return tangent(below.v[i], inside.below.v[i]) + tangent(above.v[i], inside.above.v[i]); });
      }
    }
    if (Form::is_backward && s.outside == Outside::zero) grad_output = zero_where(outside_bits, grad_output);
  } else {
    x = x + -s.center;
  }
  if constexpr (Form::is_backward) {
    walk_to<Form::walk, Range>(s.degree, x, grad_output, table, [&](auto k, const P& psi) {
      columns.add(k, psi);
      // D a has no phi_degree: its 0 must not meet a psi that is infinite.
      if (!is_last<Range>(k, s.degree)) result = result + psi * columns.template coeff<P>(k);
    });
  } else {
    const auto coeffs = [&](int k) { return columns.template coeff<P>(k); };
    const P value = clenshaw_to<Form::walk, Range>(s.degree, x, table, coeffs, columns.template slot<P>(s.degree));
    result = Form::has_edges ? result + value : value;
  }
  return Form::has_edges ? zero_where(outside_bits, result) : result;
}

// Items that a thread reads in a turn, so that 32 KiB of loads are in flight on a multiprocessor, and no register
// spills on any architecture.
template <typename Form, typename S, int highest>
inline constexpr int unroll = [] {
  if (Form::width == 1) return 4;
  constexpr bool is_general_backward = Form::is_backward && Form::walk == Walk::general, is_half = sizeof(S) == 2;
  if (!Form::has_columns && Form::is_backward) {
    if (is_general_backward) return is_half && highest <= 5 ? 2 : 1;
    return highest <= 5 || highest > (is_half ? 16 : 8) ? 1 : 2;
  }
  if (!Form::has_columns) return highest > 16 ? 1 : 2;
  if (is_general_backward || highest > 8) return 2;
  if (!Form::is_backward) return Form::walk == Walk::general ? 5 : 6;
  return Form::width == 2 && (highest <= 4 || highest == 6) ? 3 : 4;
}();

// Blocks that the 65,536 registers of a multiprocessor are to hold at once.
template <typename Form, typename Range, typename S>
inline constexpr int resident_blocks = [] {
  constexpr int highest = Range::highest, words = sizeof(compute_t<S>) / 4;
  constexpr int items = unroll<Form, S, highest> * Form::width * sizeof(S) / 4 * (Form::is_backward ? 2 : 1);
  constexpr int column = (highest + 1) * Form::lanes * words;
  const int columns = (Form::is_backward ? column : 0) + (Form::is_backward || Form::has_columns ? column : 0);
  int walk = highest <= 16 ? 14 : Form::is_backward ? 8 : 16;
  if (Form::walk == Walk::general) walk += 16 + (highest > 8 ? highest : 0);
  if (Form::walk == Walk::power) walk += 6;
  if (Form::has_edges) walk += 8;
  if (Range::lowest < highest) walk += highest > 8 ? 12 : 10;
  const int places = Form::has_columns ? 19 : !Form::is_backward ? 24 : highest > 8 ? 10 : 25;
  return std::clamp(65536 / max_threads / (places + items + columns + walk * words), 1, 8);
}();

// Degrees up to the highest of `Range`, in registers.
template <typename Form, typename Range, typename S>
__global__ void __launch_bounds__(max_threads, (resident_blocks<Form, Range, S>))
    sweep(const __grid_constant__ TabledSweep<S, Range::highest> args) {
  using T = compute_t<S>;
  constexpr int highest = Range::highest;
  const Sweep<S>& s = args.sweep;
  const Rows<T> table{args.a, args.b, args.c};
  // The coefficients are computed while the first items are in flight.
  Elements<Form, unroll<Form, S, highest>, highest, S> elements(s);
  const Block<Form, T> block(s, elements.at);
  const int K = s.degree + 1;
  const double* const staged = block.stage(args.coeffs, args.coeffs_type, K);
  block.for_coeffs([&](T* coeffs, int slot, int group) {
    coeffs[slot] = static_cast<T>(
        walk_coeff(slot, s.degree, !Form::is_backward, args.weights, [&](int k) { return staged[group * K + k]; }));
  });
  Columns<Form, highest, T> columns(block, s.degree);

  const bool writes = !Form::is_backward || s.out != nullptr;
  const auto f = [&](const auto& x, const auto& grad_output, bool) {
    return evaluate<Form, Range>(s, table, x, grad_output, columns);
  };
  for (; elements.has_items(); elements.next()) elements.map(writes, f);
  elements.map_remainder(writes, f);

  if constexpr (Form::is_backward) {
    if (s.partials.at == nullptr) return;
    // Computed again, so that they take no registers during the loop: see block_index.
    const ThreadItems<Form::access> at(s.partition);
    const Block<Form, T> same(s, at);
    const auto reduce = [&](const auto& sums, int first_slot, int used) {
      same.reduce(sums, used,
                  [&](int i, int local, T total) { same.store(s.partials, first_slot + i, at.split, local, total); });
    };
    reduce(columns.sums, 0, K);
    if (Form::has_edges && s.outside == Outside::linear) reduce(columns.beyond, K, 2);
  }
}

}  // namespace slaf_ext::cuda
