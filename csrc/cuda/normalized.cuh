// The kernels of the normalised form, free of torch: moments, and the gradients through them. With mu_k and v_k the
// mean and the variance of phi_k over a group of m elements, s_k = sqrt(v_k + eps) and z_k = (phi_k - mu_k) / s_k,
//
//     y = coeffs_0 + sum_k coeffs_k z_k       dcoeffs_0 = G = sum g       dcoeffs_k = sum g z_k
//     dx = sum_k phi_k' coeffs_k / s_k (g - G / m - z_k dcoeffs_k / m)
//
// so there are three sweeps, and sums are reduced between them.
//
// A variance must not be the difference of two large numbers. So every block subtracts a shift from its psi_k, their
// mean over its threads' first turns, and `finish_moments` merges the blocks in fp64. Where a block's mean lies d from
// its shift, a rounding of its sums weighs (d / deviation)^2. However unlucky the sample, that is at most the number of
// turns of a thread, since the sample is part of the block. With few turns, sums in fp32 serve, x is read once, and
// nothing is decided on the host.
//
// phi_k may be so large that fp32 holds neither its square nor 1 / v_k. So sums are taken of psi_k times a power of
// two, its *scaling*, which rounds nothing, and factors are of the size of 1 / s_k.
#pragma once

#include "kernel.cuh"

namespace slaf_ext::cuda {

enum class Pass : int {
  moments,              // sums of z_k = (psi_k - shift_k) scaling_k and of its square
  centered_gradient,    // sums of grad_output z_k
  normalized_gradient,  // dx = sum_k psi_k' a_k (grad_output + u_k + v_k psi_k)
  walked_gradient,      // dx = grad_output sum_k psi_k' a_k, of the plain form, for bases in which D would cost digits
};

// What a sweep reads of a column for each k: shifts and scalings; a, u, v; a.
SLAF_INLINE constexpr int sets_of(Pass pass) {
  return pass == Pass::normalized_gradient ? 3 : pass == Pass::walked_gradient ? 1 : 2;
}
SLAF_INLINE constexpr int coeff_slots(Pass pass, int degree) { return sets_of(pass) * (degree + 1); }
// What it writes: count and sums, squares, shifts, scalings; sums.
SLAF_INLINE constexpr int sum_slots(Pass pass, int degree) {
  return (pass == Pass::moments ? 4 : pass == Pass::centered_gradient ? 1 : 0) * (degree + 1);
}

// What a sweep reads of a group: the moments of phi_1, phi_2, ..., or the factors a, u, v.
template <typename T>
struct Statistics {
  Moments moments;
  const T* factors;
};

// float64 holds the square of every phi_k that is of use, so its scalings are 1.
template <typename T>
inline constexpr bool has_scaling = !std::is_same_v<T, double>;

// The power of two that brings values of this size, 0 or more, near 2^-exponent.
template <typename T>
SLAF_INLINE T power_of_two_for(double size, int exponent) {
  if (!has_scaling<T>) return T(1);
  constexpr int max_power = 120, bias = 1023;
  const int power_of_size = size > 0 ? static_cast<int>(__builtin_bit_cast(uint64_t, size) >> 52) - bias : 0;
  const int power = -exponent - power_of_size, held = power < -max_power  ? -max_power
                                                      : power > max_power ? max_power
                                                                          : power;
  return static_cast<T>(__builtin_bit_cast(double, static_cast<uint64_t>(held + bias) << 52));
}

// The mean of psi_k, rounded, at which the sums of `centered_gradient` are centred.
template <typename T>
SLAF_INLINE T shift_of(double mean, double inverse_scale) {
  return static_cast<T>(mean * inverse_scale);
}
// The scaling of these sums.
template <typename T>
SLAF_INLINE T scaling_of(double variance, double eps, double inverse_scale) {
  return power_of_two_for<T>(sqrt(variance + eps) * (inverse_scale < 0 ? -inverse_scale : inverse_scale), 0);
}
// The scaling brings a sample's mean size to 2^-32: fp32 then holds the squares of what is 1e28 times as large, and of
// what is 2^-23 times as large.
constexpr int sample_exponent = 32;
// The terms of a sample's sums are scaled by this, since each may be near the end of fp32's range.
constexpr double sample_scaling = 0x1p-16;

// A sweep and its tables, as the argument of a kernel.
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
  if (s.outside == Outside::extrapolate) return x + -s.center;
  return inside_of(x, s.lo, s.hi, s.center).x;
}

// dx of some elements. The factors a, u, v of k are factor(0, k), factor(1, k) and factor(2, k).
template <Pass pass, Walk kind, typename Range, typename S, typename T, typename P, typename Factor>
__device__ __forceinline__ P gradient_of(const Sweep<S, T>& s, const Rows<T>& table, const P& x, const P& grad_output,
                                         const Factor& factor) {
  P result = P::of(T(0));
  const auto visit = [&](int k, const Dual<P>& psi) {
    if (k == 0) return;
    if constexpr (pass == Pass::walked_gradient) {
      result = result + psi.slope * factor(0, k);
    } else {
      const P centered = psi.value * factor(2, k) + factor(1, k) + grad_output;
      result = result + psi.slope * factor(0, k) * centered;
    }
  };
  const Dual<P> at{mapped(s, x), P::of(T(1))}, one{P::of(T(1)), P::of(T(0))};
  walk_to<kind, Range>(s.degree, at, one, table, visit);
  if constexpr (pass == Pass::walked_gradient) result = result * grad_output;
  // Beyond a linear edge, the slope is that at the edge.
  if (s.outside == Outside::extrapolate || s.outside == Outside::linear) return result;
  return zero_where(inside_of(x, s.lo, s.hi, s.center).outside_bits, result);
}

// What a sweep is compiled for.
template <Pass pass_, Walk walk_, Access access_, int width_>
struct NormalizedForm : Form<walk_, pass_ != Pass::moments, true, access_, width_> {
  static constexpr Pass pass = pass_;
};

// The sums of a thread for a column or its group.
SLAF_INLINE constexpr int sums_of(Pass pass, int degree) {
  return pass == Pass::moments ? 2 * degree + 1 : pass == Pass::centered_gradient ? degree + 1 : 0;
}

// What a thread reads for phi_1, phi_2, ..., in the order of `sets_of`. A group's lies in shared memory; that of
// columns differs from lane to lane, and lies in registers where a thread has several columns.
template <typename Form, int highest, typename T>
struct Slots {
  static constexpr bool in_registers = Form::has_columns && Form::width > 1;
  static constexpr int sets = in_registers ? sets_of(Form::pass) : 1, count = in_registers ? highest : 1;
  using Lanes = Pack<T, Form::lanes>;

  __device__ __forceinline__ Slots(const Block<Form, T>& block, int degree) : block(block), K(degree + 1) {
    if constexpr (in_registers) {
#pragma unroll
      for (int i = 0; i < sets * count; ++i) {
        const int set = i / count, k = i % count + 1;
        own[i] = k < K ? block.template coeff<Lanes>(set * K + k) : Lanes::of(T(0));
      }
    }
  }
  template <typename P>
  __device__ __forceinline__ P at(int set, int k) const {
    if constexpr (in_registers)
      return own[set * count + k - 1];
    else
      return block.template coeff<P>(set * K + k);
  }

  const Block<Form, T>& block;
  int K;
  Lanes own[sets * count];
};

// Items that a thread reads in a turn, and blocks that a multiprocessor's registers are to hold at once.
template <typename Form, int highest>
inline constexpr int normalized_unroll = [] {
  if (Form::width == 1) return Form::pass == Pass::moments && highest > 16 ? 1 : 4;
  if (Form::has_columns) return Form::pass == Pass::moments && Form::width == 2 ? 8 : 4;
  return highest > 8 ? 1 : 2;
}();

template <typename Form, typename S, int highest>
inline constexpr int normalized_blocks = [] {
  constexpr Pass pass = Form::pass;
  constexpr int words = sizeof(compute_t<S>) / 4;
  constexpr int items = normalized_unroll<Form, highest> * Form::width * sizeof(S) / 4 * (Form::is_backward ? 2 : 1);
  int column = sums_of(pass, highest);
  if (Slots<Form, highest, compute_t<S>>::in_registers) column += sets_of(pass) * highest;
  if (!Form::has_columns && pass == Pass::moments) column += 3 * highest;  // as nvcc counts them
  int walk = Form::has_columns ? 8 : 16;
  if (pass == Pass::centered_gradient) walk += 6;
  if (pass == Pass::normalized_gradient) walk += 20;
  if (Form::walk == Walk::general) walk += 12 + (highest > 8 ? 3 * highest : 0);
  return std::clamp(65536 / max_threads / (24 + items + (column * Form::lanes + walk) * words), 1, 8);
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
  const int K = s.degree + 1, slots = s.slots;
  Elements<Form, normalized_unroll<Form, highest>, highest, S> elements(s);
  const Block<Form, T> block(s, elements.at);
  const auto store = [&](int slot, int local, T total) {
    block.store(s.partials, slot, elements.at.split, local, total);
  };

  // Calls f(k, psi, seed) with grad_output psi_k, or for moments with psi_k of valid elements. Elements::map wants a
  // result, so this returns x.
  const auto visit_terms = [&](const auto& x, const auto& grad_output, bool is_valid, const auto& f) {
    using P = std::decay_t<decltype(x)>;
    if (pass == Pass::moments && !is_valid) return x;
    const P seed = pass == Pass::moments ? P::of(T(1)) : grad_output;
    walk_to<Form::walk, Range>(s.degree, mapped(s, x), seed, table, [&](int k, const P& psi) { f(k, psi, seed); });
    return x;
  };

  if constexpr (pass == Pass::moments) {
    Lanes sample[highest + 1] = {};
    [[maybe_unused]] Lanes size[highest + 1] = {};
    elements.map(false, [&](const auto& x, const auto& grad_output, bool is_valid) {
      return visit_terms(x, grad_output, is_valid, [&](int k, const auto& psi, const auto&) {
        accumulate<Form::has_columns>(sample[k], psi * T(sample_scaling));
        if constexpr (has_scaling<T>) accumulate<Form::has_columns>(size[k], magnitude(psi) * T(sample_scaling));
      });
    });
    block.reduce(sample, K, [&](int k, int local, T t) { block.shared[local * block.pitch + k] = t; });
    if constexpr (has_scaling<T>) {
      block.reduce(size, K, [&](int k, int local, T t) { block.shared[local * block.pitch + K + k] = t; });
    }
  }
  block.for_coeffs([&](T* coeffs, int slot, int local_group) {
    const int64_t group = block.group + local_group;
    const int k = slot % K;
    T& t = coeffs[slot];
    if constexpr (pass == Pass::normalized_gradient) {
      t = args.statistics.factors[group * slots + slot];
    } else if (k == 0) {
      // No shift, and the scaling 1; or the number of elements of a sample.
      if constexpr (pass == Pass::centered_gradient) t = slot == 0 ? T(0) : T(1);
    } else if constexpr (pass == Pass::centered_gradient) {
      const int64_t i = group * s.degree + k - 1;
      t = slot < K
              ? shift_of<T>(args.statistics.moments.mean[i], args.inverse_scales[k])
              : scaling_of<T>(args.statistics.moments.variance[i], args.statistics.moments.eps, args.inverse_scales[k]);
    } else {
      t = coeffs[0] > 0 ? t / coeffs[0] : T(0);
      if (slot >= K) t = power_of_two_for<T>(has_scaling<T> ? t : T(0), sample_exponent);
      store(2 * K + slot, static_cast<int>(coeffs - block.shared) / block.pitch, t);
    }
  });

  if constexpr (pass == Pass::normalized_gradient) {
    const Slots<Form, highest, T> values(block, s.degree);
    const auto f = [&](const auto& x, const auto& grad_output, bool) {
      using P = std::decay_t<decltype(x)>;
      return gradient_of<pass, Form::walk, Range>(s, table, x, grad_output,
                                                  [&](int set, int k) { return values.template at<P>(set, k); });
    };
    for (; elements.has_items(); elements.next()) elements.map(true, f);
    elements.map_remainder(true, f);
  } else {
    if constexpr (pass == Pass::moments) {
      // z_k = psi_k scaling_k + this is one instruction, and a sample's shift times its scaling is small.
      block.for_coeffs([&](T* coeffs, int k, int) {
        if (k > 0 && k < K) coeffs[k] *= -coeffs[K + k];
      });
    }
    const Slots<Form, highest, T> values(block, s.degree);
    Lanes sums[highest + 1] = {};
    [[maybe_unused]] Lanes squares[highest + 1] = {};
    const auto f = [&](const auto& x, const auto& grad_output, bool is_valid) {
      return visit_terms(x, grad_output, is_valid, [&](int k, const auto& psi, const auto& seed) {
        using P = std::decay_t<decltype(psi)>;
        if (k == 0) {
          accumulate<Form::has_columns>(sums[0], psi);
          return;
        }
        const P shift = values.template at<P>(0, k), scaling = values.template at<P>(1, k);
        const P centered = pass == Pass::moments ? psi * scaling + shift : (psi - seed * shift) * scaling;
        accumulate<Form::has_columns>(sums[k], centered);
        if constexpr (pass == Pass::moments) accumulate_squares<Form::has_columns>(squares[k], centered);
      });
    };
    for (; elements.has_items(); elements.next()) elements.map(false, f);
    elements.map_remainder(false, f);
    block.reduce(sums, K, store);
    if constexpr (pass == Pass::moments) {
      block.reduce(squares, K, [&](int k, int local, T total) { store(K + k, local, total); });
    }
  }
}

}  // namespace slaf_ext::cuda
