// The normalised form on the GPU, free of torch: moments in two launches, gradients in three.
#pragma once

#include "launch.h"
#include "long_normalized.cuh"
#include "normalized_reduce.cuh"

namespace slaf_ext::cuda {

// Fewer than for the plain form, as each compiles three sweeps.
struct NormalizedDegrees {
  using wide = DegreeList<3, 5, 8, 16>;
  using edged = DegreeList<>;
  using single = DegreeList<8, 32>;
};

// The turns of a thread bound what an unlucky sample costs, see normalized.cuh, and its items how sums in fp32 round.
constexpr int normalized_turns(int unroll) { return std::min(64, 128 / unroll); }

// As `waves` of the plain form, but a block of `moments` begins with a sample, and ends with four kinds of sums.
template <typename Form, typename S>
inline constexpr int normalized_waves = [] {
  if (Form::pass == Pass::normalized_gradient) return Form::has_columns && sizeof(S) == 2 ? 2 : 16;
  if (Form::has_columns) return 1;
  return Form::pass == Pass::moments ? 2 : 4;
}();

inline std::vector<double> inverse_scales(const Recurrence& r) {
  std::vector<double> inverse;
  for (const double scale : r.scale) inverse.push_back(1 / scale);
  return inverse;
}

template <Pass pass, typename Range, Family family, typename S>
Kernel<TabledNormalized<S, Range::highest>> normalized_kernel(const Problem& p, Walk kind) {
  Kernel<TabledNormalized<S, Range::highest>> kernel;
  dispatch_access(access_of(p.layout), [&](auto access) {
    constexpr int highest = Range::highest;
    constexpr int width =
        family == Family::single ? 1 : item_width<S>(access.value, sums_of(pass, highest) + sets_of(pass) * highest);
    if constexpr ((family == Family::single) == (width == 1)) {
      if (!fits<S>(p, access.value, width)) return;
      const auto make = [&](auto walk) {
        using Form = NormalizedForm<pass, walk.value, access.value, width>;
        kernel = {normalized_sweep<Form, Range, S>,
                  Form::walk,
                  Form::access,
                  width,
                  normalized_unroll<Form, highest>,
                  normalized_blocks<Form, S, highest>,
                  normalized_waves<Form, S>};
      };
      // These sweeps are bound by the walk, not by memory.
      if constexpr (family == Family::wide && highest <= 8) {
        if (kind == Walk::uniform) return make(std::integral_constant<Walk, Walk::uniform>{});
      }
      make(std::integral_constant<Walk, Walk::general>{});
    }
  });
  return kernel;
}

template <Pass pass, typename S, int highest, typename Device, typename T = compute_t<S>>
Partials<T> run_tabled_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics,
                            const Kernel<TabledNormalized<S, highest>>& kernel, Device& device) {
  const int coeffs = coeff_slots(pass, p.degree()), sums = sum_slots(pass, p.degree());
  const Partition part = kernel.partition(p.layout, coeffs, sums, normalized_turns(kernel.unroll), device);
  TabledNormalized<S, highest> args{};
  args.sweep = sweep_of<S>(p, part, coeffs, part.splits, sums, device);
  args.statistics = statistics;
  set_rows(r, kernel.walk, args.a, args.b, args.c);
  const auto inverse = inverse_scales(r);
  std::copy(inverse.begin(), inverse.end(), args.inverse_scales);
  device.launch(kernel.run, part.blocks(), part.threads,
                kernel.shared_bytes(part, coeffs, 0, sums > 0 ? p.degree() + 1 : 0), args);
  return args.sweep.partials;
}

template <Pass pass, Access access, typename S, typename Device, typename T = compute_t<S>>
Partials<T> run_long_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  const LongTables<T> tables = long_tables<T>(p, r, Walk::general, true, 0, inverse_scales(r), device);
  const LongNormalized<T> args{statistics, tables.table, tables.weights};
  const Sweep<S> s = long_sweep_of<S, access>(p, sum_slots(pass, p.degree()), normalized_turns(long_unroll), device);
  device.launch(long_normalized_sweep<pass, access, S>, s.partition.blocks(), s.partition.threads, 0, s, args);
  return s.partials;
}

template <Pass pass, typename S, typename Lists, typename Device, typename T = compute_t<S>>
Partials<T> run_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  Partials<T> partials{};
  const bool done = dispatch_kernel<Lists>(
      p.degree(), false,
      [&](auto range, auto family) { return normalized_kernel<pass, decltype(range), family.value, S>(p, r.kind); },
      [&](const auto& kernel) { partials = run_tabled_pass<pass>(p, r, statistics, kernel, device); });
  if (done) return partials;
  dispatch_access(access_of(p.layout),
                  [&](auto access) { partials = run_long_pass<pass, access.value, S>(p, r, statistics, device); });
  return partials;
}

// The mean and the variance of phi_1, phi_2, ... over each group of x, which has elements.
template <typename S, typename Lists = NormalizedDegrees, typename Device>
void launch_moments(const Problem& p, double* mean, double* variance, Device& device) {
  using T = compute_t<S>;
  if (p.degree() == 0) return;
  const Recurrence r = prepare(p.rows);
  const Partials<T> partials = run_pass<Pass::moments, S, Lists>(p, r, Statistics<T>{}, device);
  FinishMoments<T> finish{partials, {}, p.degree(), p.members(), mean, variance, nullptr, {}};
  launch_reducer(finish_moments<T>, finish, r.scale, p.layout.groups, p.degree(), device);
}

// grad_coeffs, and the gradient in x unless p.out is null.
template <typename S, typename Lists = NormalizedDegrees, typename Device>
void launch_normalized_backward(const Problem& p, const Moments& moments, Device& device) {
  using T = compute_t<S>;
  const Recurrence r = prepare(p.rows);
  Problem sums = p;
  sums.out = nullptr;
  const Partials<T> partials =
      run_pass<Pass::centered_gradient, S, Lists>(sums, r, Statistics<T>{moments, nullptr}, device);
  T* factors = nullptr;
  if (p.out != nullptr) {
    const int slots = coeff_slots(Pass::normalized_gradient, p.degree());
    factors = static_cast<T*>(device.allocate(p.layout.groups * slots * sizeof(T)));
  }
  FinishGradient<T> finish{partials,      {},      p.degree(), p.members(), moments, p.coeffs, p.grad_coeffs,
                           p.coeffs_type, factors, nullptr,    {}};
  launch_reducer(finish_gradient<T>, finish, r.scale, p.layout.groups, p.degree() + 1, device);
  if (p.out == nullptr) return;
  run_pass<Pass::normalized_gradient, S, Lists>(p, r, Statistics<T>{{}, factors}, device);
}

}  // namespace slaf_ext::cuda
