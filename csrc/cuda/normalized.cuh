// The normalised form's kernels, free of torch: moments, and the gradients through them; and a sweep that walks p'.
// With mu_k and v_k the mean and the variance of phi_k over a group of m elements, s_k = sqrt(v_k + eps) and z_k =
// (phi_k - mu_k) / s_k,
//
//     y = coeffs_0 + sum_k coeffs_k z_k       dcoeffs_0 = G = sum g       dcoeffs_k = sum g z_k
//     dx = sum_k phi_k' coeffs_k / s_k (g - G / m - z_k dcoeffs_k / m)
//
// so three sweeps, one walk that is right for every table, and sums added up between them. A variance must not be the
// difference of two large numbers. Every block subtracts a shift from its psi_k, their mean over its threads' first
// turns, and `finish_moments` merges the blocks in fp64. Where a block's mean lies d from its shift, a rounding of its
// sums weighs (d / deviation)^2. That is at most the number of turns of a thread, however unlucky the sample, since the
// sample is a part of the block. So with few turns fp32 sums serve, x is read once, and nothing is decided on the host.
// phi_k may be so large that fp32 does not hold its square, nor 1 / v_k, so sums are taken of psi_k times a power of
// two, which rounds nothing, and factors are of the size of 1 / s_k.
#pragma once

#include "../fold.h"
#include "long.cuh"

namespace slaf_ext::cuda {

enum class Pass : int {
  moments,              // sums of z_k = (psi_k - shift_k) unit_k and of its square
  centered_gradient,    // sums of grad_output z_k
  normalized_gradient,  // dx = sum_k psi_k' a_k (grad_output + u_k + v_k psi_k)
  walked_gradient,      // dx = grad_output sum_k psi_k' a_k, of the plain form, for bases in which D a cancels
};

// Numbers of a column that a sweep reads: shifts and units; a, u, v; a.
SLAF_INLINE constexpr int coeff_rows(Pass pass, int degree) {
  return (pass == Pass::normalized_gradient ? 3 : pass == Pass::walked_gradient ? 1 : 2) * (degree + 1);
}
// And that it makes: count and sums, squares, shifts, units; sums.
SLAF_INLINE constexpr int sum_rows(Pass pass, int degree) {
  return (pass == Pass::moments ? 4 : pass == Pass::centered_gradient ? 1 : 0) * (degree + 1);
}

// What a sweep reads of a group: the means and variances of phi_1, phi_2, ..., or the factors a, u, v.
template <typename T>
struct Statistics {
  const double *mean, *variance;
  double eps;
  const T* factors;
};

// float64 holds the square of every phi_k that is of use, so its units are 1.
template <typename T>
inline constexpr bool has_units = !std::is_same_v<T, double>;

// The power of two that brings numbers of a size, from 0 up, near 2^-exponent.
template <typename T>
SLAF_INLINE T unit_for(double size, int exponent) {
  if (!has_units<T>) return T(1);
  constexpr int most = 120, bias = 1023;
  const int power_of_size = size > 0 ? static_cast<int>(__builtin_bit_cast(uint64_t, size) >> 52) - bias : 0;
  const int power = -exponent - power_of_size, held = power < -most ? -most : power > most ? most : power;
  return static_cast<T>(__builtin_bit_cast(double, static_cast<uint64_t>(held + bias) << 52));
}

// The mean of psi_k, as the sums of `centered_gradient` are centred.
template <typename T>
SLAF_INLINE T shift_of(double mean, double inverse_scale) {
  return static_cast<T>(mean * inverse_scale);
}
// And their unit.
template <typename T>
SLAF_INLINE T unit_of(double variance, double eps, double inverse_scale) {
  return unit_for<T>(sqrt(variance + eps) * (inverse_scale < 0 ? -inverse_scale : inverse_scale), 0);
}
// A sample's mean size is brought here: far enough below 1 that what is 1e28 times as large has a square that fp32
// holds, and far enough above the smallest number that what is 2^-23 times as large has one too.
constexpr int sample_exponent = 32;
// Sums over a sample are taken of its numbers times this, since each may be near the end of the range.
constexpr double sample_unit = 0x1p-16;

// What a sweep takes, as the argument of a kernel: its `rows` are those of the coefficients that it reads.
template <typename S, int highest>
struct TabledNormalized {
  using T = compute_t<S>;
  Sweep<S> sweep;
  Statistics<T> statistics;
  T a[highest + 1], b[highest + 1], c[highest + 1];
  double inverse_scales[highest + 1];
};

template <typename T, int count>
SLAF_INLINE Pack<T, count> magnitude(const Pack<T, count>& p) {
  return Pack<T, count>::make([&](int i) { return p.v[i] < T(0) ? -p.v[i] : p.v[i]; });
}

// x as the walk sees it.
template <typename S, typename T, typename P>
__device__ __forceinline__ P mapped(const Sweep<S, T>& s, const P& x) {
  if (s.edge == Edge::extrapolate) return x + -s.center;
  return inside_of(x, s.lo, s.hi, s.center).x;
}

// dx of some elements. Row r of a, u, v is `factor(r)`.
template <Pass pass, typename Range, typename S, typename T, typename P, typename Factor>
__device__ __forceinline__ P gradient_of(const Sweep<S, T>& s, const Rows<T>& table, const P& x, const P& grad_output,
                                         const Factor& factor) {
  const int K = s.degree + 1;
  P result = P::of(T(0));
  const auto visit = [&](int k, const Dual<P>& psi) {
    if (k == 0 || is_beyond<Range>(k, s.degree)) return;
    if constexpr (pass == Pass::walked_gradient) {
      result = result + psi.slope * factor(k);
    } else {
      const P centered = psi.value * factor(2 * K + k) + factor(K + k) + grad_output;
      result = result + psi.slope * factor(k) * centered;
    }
  };
  const Dual<P> at{mapped(s, x), P::of(T(1))}, one{P::of(T(1)), P::of(T(0))};
  walk<Walk::general>(at, one, table, walked_degree<Range>(s.degree), visit);
  if constexpr (pass == Pass::walked_gradient) result = result * grad_output;
  // Beyond a linear edge the slope is that of the edge.
  if (s.edge == Edge::extrapolate || s.edge == Edge::linear) return result;
  return zero_where(inside_of(x, s.lo, s.hi, s.center).outside, result);
}

// What a kernel is compiled for.
template <Pass pass_, Walk walk_, Reading reading_, int width_>
struct NormalizedForm : Form<walk_, pass_ != Pass::moments, true, reading_, width_> {
  static constexpr Pass pass = pass_;
};

// Items that a thread reads in one turn, and blocks that a multiprocessor's registers are to hold at once.
template <typename Form, int highest>
inline constexpr int normalized_unroll = [] {
  if (Form::width == 1) return Form::pass == Pass::moments && highest > 16 ? 1 : 4;
  return Form::has_columns || (Form::pass == Pass::moments && highest <= 8) ? 2 : 1;
}();

template <typename Form, typename S, int highest>
inline constexpr int normalized_blocks = [] {
  constexpr int words = sizeof(compute_t<S>) / 4, sums = (highest + 1) * Form::lanes * words;
  constexpr int items = normalized_unroll<Form, highest> * Form::width * sizeof(S) / 4 * 2;
  const int walk = (Form::pass != Pass::normalized_gradient ? 52
                    : Form::has_columns                     ? 66
                                                            : 56) *
                       words +
                   (highest > 8 ? 3 * highest : 0);
  const int columns = Form::pass == Pass::moments ? 2 * sums : Form::pass == Pass::centered_gradient ? sums : 0;
  return std::clamp(65536 / max_threads / (24 + items + columns + walk), 1, 8);
}();

// Degrees up to the highest of `Range`, in registers.
template <typename Form, typename Range, typename S>
__global__ void __launch_bounds__(max_threads, (normalized_blocks<Form, S, Range::highest>))
    normalized_sweep(const __grid_constant__ TabledNormalized<S, Range::highest> args) {
  using T = compute_t<S>;
  using Lanes = Pack<T, Form::lanes>;
  constexpr Pass pass = Form::pass;
  constexpr int highest = Range::highest;
  const Sweep<S>& s = args.sweep;
  const Rows<T> table{args.a, args.b, args.c};
  const int K = s.degree + 1, rows = s.rows;
  Elements<Form, normalized_unroll<Form, highest>, highest, S> elements(s);
  const Block<Form, T> block(s, elements.at);
  const auto store = [&](int row, int local, T total) { block.store(s.partials, row, elements.at.cell, local, total); };

  // Calls f(k, psi, seed) with grad_output psi_k, or for moments with psi_k, of elements that there are. Returns x, of
  // no use.
  const auto visit_terms = [&](const auto& x, const auto& grad_output, bool is_there, const auto& f) {
    using P = std::decay_t<decltype(x)>;
    if (pass == Pass::moments && !is_there) return x;
    const P seed = pass == Pass::moments ? P::of(T(1)) : grad_output;
    walk<Form::walk>(mapped(s, x), seed, table, in_blocks(highest), [&](int k, const P& psi) {
      if (!is_beyond<Range>(k, s.degree)) f(k, psi, seed);
    });
    return x;
  };

  if constexpr (pass == Pass::moments) {
    Lanes sample[highest + 1] = {};
    [[maybe_unused]] Lanes size[highest + 1] = {};
    elements.map(false, [&](const auto& x, const auto& grad_output, bool is_there) {
      return visit_terms(x, grad_output, is_there, [&](int k, const auto& psi, const auto&) {
        accumulate<Form::has_columns>(sample[k], psi * T(sample_unit));
        if constexpr (has_units<T>) accumulate<Form::has_columns>(size[k], magnitude(psi) * T(sample_unit));
      });
    });
    block.reduce(sample, K, [&](int k, int local, T t) { block.shared[local * block.pitch + k] = t; });
    if constexpr (has_units<T>) {
      block.reduce(size, K, [&](int k, int local, T t) { block.shared[local * block.pitch + K + k] = t; });
    }
  }
  block.for_coeffs([&](T* coeffs, int r, int local_group) {
    const int64_t group = block.group + local_group;
    const int k = r % K;
    T& t = coeffs[r];
    if constexpr (pass == Pass::normalized_gradient) {
      t = args.statistics.factors[group * rows + r];
    } else if (k == 0) {
      // No shift, and the unit 1; or of a sample, the number of its elements.
      if constexpr (pass == Pass::centered_gradient) t = r == 0 ? T(0) : T(1);
    } else if constexpr (pass == Pass::centered_gradient) {
      const int64_t i = group * s.degree + k - 1;
      t = r < K ? shift_of<T>(args.statistics.mean[i], args.inverse_scales[k])
                : unit_of<T>(args.statistics.variance[i], args.statistics.eps, args.inverse_scales[k]);
    } else {
      t = coeffs[0] > 0 ? t / coeffs[0] : T(0);
      if (r >= K) t = unit_for<T>(has_units<T> ? t : T(0), sample_exponent);
      store(2 * K + r, static_cast<int>(coeffs - block.shared) / block.pitch, t);
    }
  });

  if constexpr (pass == Pass::normalized_gradient) {
    const auto f = [&](const auto& x, const auto& grad_output, bool) {
      using P = std::decay_t<decltype(x)>;
      return gradient_of<pass, Range>(s, table, x, grad_output, [&](int r) { return block.template row<P>(r); });
    };
    for (; elements.has_items(); elements.next()) elements.map(true, f);
    elements.map_ragged(true, f);
  } else {
    if constexpr (pass == Pass::moments) {
      // z_k = psi_k unit_k + this, one instruction. A sample's shift times its unit is small.
      block.for_coeffs([&](T* coeffs, int r, int) {
        if (r > 0 && r < K) coeffs[r] *= -coeffs[K + r];
      });
    }
    Lanes sums[highest + 1] = {};
    [[maybe_unused]] Lanes squares[highest + 1] = {};
    const auto f = [&](const auto& x, const auto& grad_output, bool is_there) {
      return visit_terms(x, grad_output, is_there, [&](int k, const auto& psi, const auto& seed) {
        using P = std::decay_t<decltype(psi)>;
        if (k == 0) {
          accumulate<Form::has_columns>(sums[0], psi);
          return;
        }
        const P shift = block.template row<P>(k), unit = block.template row<P>(K + k);
        const P centered = pass == Pass::moments ? psi * unit + shift : (psi - seed * shift) * unit;
        accumulate<Form::has_columns>(sums[k], centered);
        if constexpr (pass == Pass::moments) accumulate_squares<Form::has_columns>(squares[k], centered);
      });
    };
    for (; elements.has_items(); elements.next()) elements.map(false, f);
    elements.map_ragged(false, f);
    block.reduce(sums, K, store);
    if constexpr (pass == Pass::moments) {
      block.reduce(squares, K, [&](int k, int local, T total) { store(K + k, local, total); });
    }
  }
}

// What degrees beyond the registers read from memory.
template <typename T>
struct LongNormalized {
  Statistics<T> statistics;
  const T* table;  // all a, all b, all c
  const double* inverse_scales;
};

// Any degree: tables, shifts and sums in memory.
template <Pass pass, Reading reading, typename S, typename T = compute_t<S>>
__global__ void __launch_bounds__(max_threads, 8 / sizeof(T))
    long_normalized_sweep(const __grid_constant__ Sweep<S> s, const __grid_constant__ LongNormalized<T> t) {
  using Part = LongPart<reading, S>;
  using P = typename Part::P;
  const Part part(s);
  const int K = s.degree + 1;
  const Rows<T> table{t.table, t.table + s.degree, t.table + 2 * s.degree};
  if constexpr (pass == Pass::normalized_gradient || pass == Pass::walked_gradient) {
    const T* const factors = t.statistics.factors + part.group * coeff_rows(pass, s.degree);
    for (int turn = 0; turn < part.turns; ++turn) {
      const P dx = gradient_of<pass, AnyDegree>(s, table, part.read(s.x, turn), part.read(s.grad_output, turn),
                                                [&](int r) { return P::of(factors[r]); });
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
        const T sum = part.meet(psi.total() * T(sample_unit)),
                size = part.meet(magnitude(psi).total() * T(sample_unit));
        if (k == 0) count = sum;
        if (!part.writes) return;
        part.partial(2 * K + k) = count > 0 ? sum / count : T(0);
        part.partial(3 * K + k) = unit_for<T>(count > 0 ? size / count : T(0), sample_exponent);
      });
      __syncthreads();
    }
    // A thread beyond the last column reads the shifts of another, and writes nothing.
    const int64_t column = part.writes || reading == Reading::runs ? part.column : 0;
    const auto shift = [&](int k) {
      if constexpr (pass == Pass::moments) return s.partials(2 * K + k, part.slab, column);
      return shift_of<T>(t.statistics.mean[part.group * s.degree + k - 1], t.inverse_scales[k]);
    };
    const auto unit = [&](int k) {
      if constexpr (pass == Pass::moments) return s.partials(3 * K + k, part.slab, column);
      return unit_of<T>(t.statistics.variance[part.group * s.degree + k - 1], t.statistics.eps, t.inverse_scales[k]);
    };
    for (int turn = 0; turn < part.turns; ++turn) {
      visit_terms(turn, [&](int k, const P& psi, const P& seed) {
        const P centered = k == 0 ? psi : (psi - seed * shift(k)) * unit(k);
        part.add(k, centered.total(), turn == 0);
        if constexpr (pass == Pass::moments) part.add(K + k, (centered * centered).total(), turn == 0);
      });
    }
  }
}

// From all partial sums of `moments`, the mean and the variance of phi_k over a group.
template <typename T>
struct FinishMoments {
  Partials<T> partials;
  Adders adders;
  int degree;
  double members;  // of a group
  double *mean, *variance;
  const double* far_scales;  // here, or where they fit
  double scales[33];
};

template <typename T>
__global__ void __launch_bounds__(max_adders) finish_moments(const __grid_constant__ FinishMoments<T> f) {
  const Adder<T> adder(f.partials, f.adders);
  const int K = f.degree + 1, k = adder.k + 1;
  const double scale = f.far_scales != nullptr ? f.far_scales[k] : f.scales[k];
  const auto at = [&](int64_t slab, int row, int64_t column) -> double { return f.partials(row, slab, column); };
  const double mean = adder.total([&](int64_t slab, int64_t column) {
    if (at(slab, 0, column) == 0) return 0.0;
    return at(slab, 0, column) * at(slab, 2 * K + k, column) + at(slab, k, column) / at(slab, 3 * K + k, column);
  }) / f.members;
  // The spread about the slab's mean, and that of the slab's mean about the group's.
  const double squares = adder.total([&](int64_t slab, int64_t column) {
    const double count = at(slab, 0, column), unit = at(slab, 3 * K + k, column);
    if (count == 0) return 0.0;
    const double moved = at(slab, k, column) / count, within = at(slab, K + k, column) - count * moved * moved;
    const double between = at(slab, 2 * K + k, column) + moved / unit - mean;
    return (within < 0 ? 0 : within) / unit / unit + count * between * between;
  });
  if (!adder.writes()) return;
  f.mean[adder.group * f.degree + k - 1] = scale * mean;
  f.variance[adder.group * f.degree + k - 1] = scale * scale * squares / f.members;
}

// From all partial sums of `centered_gradient`, the gradient in the coefficients and the factors of the last sweep.
template <typename T>
struct FinishGradient {
  Partials<T> partials;
  Adders adders;
  int degree;
  double members, eps;
  const double *mean, *variance;
  const void* coeffs;
  void* grad;
  Storage coeffs_type;
  T* factors;  // a, u, v of every group; null: not needed
  const double* far_scales;
  double scales[33];
};

template <typename T>
__global__ void __launch_bounds__(max_adders) finish_gradient(const __grid_constant__ FinishGradient<T> f) {
  const Adder<T> adder(f.partials, f.adders);
  const int K = f.degree + 1, k = adder.k;
  const double scale = f.far_scales != nullptr ? f.far_scales[k] : f.scales[k];
  const double total = adder.total(0);
  if (k == 0) {
    if (adder.writes()) write(f.grad, f.coeffs_type, adder.group * K, total);
    return;
  }
  const double sum = adder.total(k);
  if (!adder.writes()) return;
  const double mean = f.mean[adder.group * f.degree + k - 1];
  // The sums were centred at a rounded mean, and are of numbers times a unit.
  const double inverse = 1 / scale, variance = f.variance[adder.group * f.degree + k - 1];
  const double deviation = sqrt(variance + f.eps);
  const double centered = sum / unit_of<T>(variance, f.eps, inverse);
  const double dw = scale * (centered + (shift_of<T>(mean, inverse) - mean * inverse) * total) / deviation;
  write(f.grad, f.coeffs_type, adder.group * K + k, dw);
  if (f.factors == nullptr) return;
  const double weight = read(f.coeffs, f.coeffs_type, adder.group * K + k) / deviation;
  const double v = -dw / (f.members * deviation);
  T* const factors = f.factors + adder.group * coeff_rows(Pass::normalized_gradient, f.degree);
  factors[k] = static_cast<T>(scale * weight);
  factors[K + k] = static_cast<T>(-total / f.members - v * mean);
  factors[2 * K + k] = static_cast<T>(scale * v);
}

// The coefficients of the normalised form, to be folded into those of the plain one: fold.h.
struct Fold {
  const void* coeffs;
  Storage coeffs_type;
  const double *mean, *variance;
  double eps, rounding;
  int64_t groups, degree;
};

// A warp serves a group.
template <typename T>
__global__ void __launch_bounds__(max_threads) fold(const __grid_constant__ Fold f, T* to) {
  const int64_t group = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  if (group >= f.groups) return;
  const int64_t lane = threadIdx.x % 32, first = group * (f.degree + 1);
  double sum = 0;
  for (int64_t k = 1 + lane; k <= f.degree; k += 32) {
    const int64_t i = group * f.degree + k - 1;
    const double coeff = read(f.coeffs, f.coeffs_type, first + k);
    const double a = folded(coeff, f.mean[i], f.variance[i], f.eps, f.rounding);
    to[first + k] = static_cast<T>(a);
    sum += a * f.mean[i];
  }
  sum = warp_sum(sum);
  if (lane == 0) to[first] = static_cast<T>(read(f.coeffs, f.coeffs_type, first) - sum);
}

}  // namespace slaf_ext::cuda
