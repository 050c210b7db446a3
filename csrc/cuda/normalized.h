// The normalised form on the GPU, free of torch: moments in two launches, folding in one, gradients in three.
#pragma once

#include "launch.h"
#include "normalized.cuh"

namespace slaf_ext::cuda {

// Fewer than of the plain form: what one costs to compile is paid three times.
struct NormalizedDegrees {
  using wide = DegreeList<3, 5, 8, 16>;
  using edged = DegreeList<>;
  using single = DegreeList<8, 32>;
};

// Of a thread: they bound what an unlucky sample costs a variance, see normalized.cuh.
constexpr int normalized_turns = 64;

// As `waves` of the plain form, but a block of `moments` begins with a sample, and ends with four rows of sums.
template <typename Form, typename S>
inline constexpr int normalized_waves = [] {
  if (Form::pass == Pass::normalized_gradient) return Form::has_columns && sizeof(S) == 2 ? 2 : 16;
  if (Form::has_columns) return 1;
  return Form::pass == Pass::moments ? 2 : 4;
}();

inline double members_of(const Problem& p) { return static_cast<double>(p.layout.outer * p.layout.inner); }

inline std::vector<double> inverse_scales(const Recurrence& r) {
  std::vector<double> inverse;
  for (const double scale : r.scale) inverse.push_back(1 / scale);
  return inverse;
}

template <Pass pass, typename Range, Family family, typename S>
Kernel<TabledNormalized<S, Range::highest>> normalized_kernel(const Problem& p, Walk kind) {
  Kernel<TabledNormalized<S, Range::highest>> kernel;
  dispatch_reading(reading_of(p.layout), [&](auto reading) {
    constexpr int highest = Range::highest, registers = 2 * (highest + 1) + 1;  // sums and squares, and a weight
    constexpr int width = family == Family::single ? 1 : item_width<S>(reading.value, registers);
    if constexpr ((family == Family::single) == (width == 1)) {
      if (!fits<S>(p, reading.value, width)) return;
      const auto make = [&](auto walk) {
        using Form = NormalizedForm<pass, walk.value, reading.value, width>;
        kernel = {normalized_sweep<Form, Range, S>,
                  Form::walk,
                  Form::reading,
                  width,
                  normalized_unroll<Form, highest>,
                  normalized_blocks<Form, S, highest>,
                  normalized_waves<Form, S>};
      };
      // Moments wait for the walk, not for memory.
      if constexpr (pass == Pass::moments && family == Family::wide && highest <= 8) {
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
  const int rows = coeff_rows(pass, p.degree()), sums = sum_rows(pass, p.degree());
  const Partition part = kernel.partition(p.layout, rows, sums, normalized_turns, device);
  TabledNormalized<S, highest> args{};
  args.sweep = sweep_of<S>(p, part, rows, part.cells, sums, device);
  args.statistics = statistics;
  set_rows(r, kernel.walk, args.a, args.b, args.c);
  const auto inverse = inverse_scales(r);
  std::copy(inverse.begin(), inverse.end(), args.inverse_scales);
  device.launch(kernel.run, part.blocks(), part.threads,
                kernel.shared_bytes(part, rows, 0, sums > 0 ? p.degree() + 1 : 0), args);
  return args.sweep.partials;
}

template <Pass pass, Reading reading, typename S, typename Device, typename T = compute_t<S>>
Partials<T> run_long_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  const std::vector<double> rows = long_rows(r, Walk::general);
  LongTables<T> tables{};
  tables.rows = upload(rows, device);
  tables.degree = p.degree();
  tables.table = static_cast<T*>(device.allocate(rows.size() * sizeof(T)));
  device.launch(make_tables<T>, 1, device.threads(), 0, tables);
  const LongNormalized<T> args{statistics, tables.table, upload(inverse_scales(r), device)};
  const Sweep<S> s = long_sweep_of<S, reading>(p, sum_rows(pass, p.degree()), normalized_turns, device);
  device.launch(long_normalized_sweep<pass, reading, S>, s.partition.blocks(), s.partition.threads, 0, s, args);
  return s.partials;
}

template <Pass pass, typename S, typename Kernels, typename Device, typename T = compute_t<S>>
Partials<T> run_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  Partials<T> partials{nullptr, 0, p.layout.groups, sum_rows(pass, p.degree())};
  if (p.numel() == 0) return partials;
  const bool done = dispatch_kernel<Kernels>(
      p.degree(), false,
      [&](auto range, auto family) { return normalized_kernel<pass, decltype(range), family.value, S>(p, r.kind); },
      [&](const auto& kernel) { partials = run_tabled_pass<pass>(p, r, statistics, kernel, device); });
  if (done) return partials;
  dispatch_reading(reading_of(p.layout),
                   [&](auto reading) { partials = run_long_pass<pass, reading.value, S>(p, r, statistics, device); });
  return partials;
}

// The mean and the variance of phi_1, phi_2, ... over each group of x, which has elements.
template <typename S, typename Kernels = NormalizedDegrees, typename Device>
void launch_moments(const Problem& p, double* mean, double* variance, Device& device) {
  using T = compute_t<S>;
  if (p.degree() == 0) return;
  const Recurrence r = prepare(p.rows);
  const Partials<T> partials = run_pass<Pass::moments, S, Kernels>(p, r, Statistics<T>{}, device);
  FinishMoments<T> finish{partials, {}, p.degree(), members_of(p), mean, variance, nullptr, {}};
  set_scales(finish, r.scale, device);
  launch_adders(finish_moments<T>, finish, p.layout.groups, p.degree(), device);
}

// grad_coeffs, and the gradient in x unless p.out is null.
template <typename S, typename Kernels = NormalizedDegrees, typename Device>
void launch_normalized_backward(const Problem& p, const double* mean, const double* variance, double eps,
                                Device& device) {
  using T = compute_t<S>;
  const Recurrence r = prepare(p.rows);
  Problem sums = p;
  sums.out = nullptr;
  const Partials<T> partials =
      run_pass<Pass::centered_gradient, S, Kernels>(sums, r, Statistics<T>{mean, variance, eps, nullptr}, device);
  T* factors = nullptr;
  if (p.out != nullptr) {
    const int rows = coeff_rows(Pass::normalized_gradient, p.degree());
    factors = static_cast<T*>(device.allocate(p.layout.groups * rows * sizeof(T)));
  }
  FinishGradient<T> finish{partials, {},       p.degree(), members_of(p), eps,
                           mean,     variance, p.coeffs,   p.grad_coeffs, p.coeffs_type,
                           factors,  nullptr,  {}};
  set_scales(finish, r.scale, device);
  launch_adders(finish_gradient<T>, finish, p.layout.groups, p.degree() + 1, device);
  if (p.out == nullptr) return;
  run_pass<Pass::normalized_gradient, S, Kernels>(p, r, Statistics<T>{nullptr, nullptr, 0, factors}, device);
}

// The plain form's gradients for a basis in which D a cancels: p' is walked, in a sweep of its own.
template <typename S, typename Kernels = PlainDegrees<S>, typename Device>
void launch_walked_backward(const Problem& p, Device& device) {
  using T = compute_t<S>;
  if (p.numel() > 0) {
    const Recurrence r = prepare(p.rows);
    const LongTables<T> t = long_tables<T>(p, r, Walk::general, true, p.degree() + 1, r.scale, device);
    const LongNormalized<T> args{{nullptr, nullptr, 0, t.walk_coeffs}, t.table, nullptr};
    dispatch_reading(reading_of(p.layout), [&](auto reading) {
      const Sweep<S> s = long_sweep_of<S, reading.value>(p, 0, most_items / long_unroll, device);
      device.launch(long_normalized_sweep<Pass::walked_gradient, reading.value, S>, s.partition.blocks(),
                    s.partition.threads, 0, s, args);
    });
  }
  if (p.grad_coeffs == nullptr) return;
  Problem sums = p;
  sums.out = nullptr;
  launch_plain<true, S, Kernels>(sums, device);
}

// Writes the coefficients of the plain form, in float64 or float32.
template <typename T, typename Device>
void launch_fold(const Fold& f, T* to, Device& device) {
  device.launch(fold<T>, ceil_div(f.groups, device.threads() / 32), device.threads(), 0, f, to);
}

}  // namespace slaf_ext::cuda
