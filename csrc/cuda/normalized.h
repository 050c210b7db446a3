// The normalised form on the GPU, free of torch: moments in two launches, gradients in three.
#pragma once

#include "launch.h"
#include "normalized.cuh"

namespace slaf_ext::cuda {

// Fewer than AllDegrees: what a number costs to compile is paid three times.
using NormalizedDegrees = DegreeList<2, 3, 4, 6, 8, 12, 16, 32>;

// Of a thread: they bound what an unlucky sample costs a variance, see normalized.cuh.
constexpr int64_t normalized_tiles = 64;

inline double members_of(const Problem& p) { return static_cast<double>(p.layout.outer * p.layout.inner); }

// Slabs that a sweep made, and T their numbers.
template <typename T>
struct Partial {
  const T* numbers;
  Slabs slabs;
};

inline std::vector<double> inverse_scales(const Recurrence& r) {
  std::vector<double> inverse;
  for (const double scale : r.scale) inverse.push_back(1 / scale);
  return inverse;
}

template <typename Args, typename Device>
void set_scales(Args& args, const Recurrence& r, Device& device) {
  if (r.scale.size() <= std::size(args.scales)) {
    std::copy(r.scale.begin(), r.scale.end(), args.scales);
  } else {
    args.far_scales = deliver(r.scale, device);
  }
}

template <Pass pass, typename S, typename Range, typename Device, typename T = compute_t<S>>
Partial<T> run_tabled_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  constexpr int highest = Range::highest;
  const int rows = coeff_rows(pass, p.degree()), sums = sum_rows(pass, p.degree());
  const int64_t blocks = normalized_blocks<pass, S, highest> * (sums > 0 ? 1 : 4) * device.multiprocessors();
  const Grid grid = cut(p, {tile<S>, sizeof(T), rows, sums, blocks, device.threads(), normalized_tiles});
  const int64_t slabs = sums > 0 ? grid.geometry.cells : 0;
  TabledNormalized<S, highest> args{};
  args.sweep = sweep_of<S>(p, grid, slabs, sums, device);
  args.statistics = statistics;
  set_rows(r, Walk::general, args.a, args.b, args.c);
  const auto inverse = inverse_scales(r);
  std::copy(inverse.begin(), inverse.end(), args.inverse_scales);
  const int room = sums > 0 ? room_rows * grid.threads : 0;
  const int64_t shared = (grid.geometry.width * coeff_pitch(rows) + room) * sizeof(T);
  device.launch(normalized_sweep<pass, Range, S>, grid.blocks(), grid.threads, shared, args);
  return {args.sweep.partial, {slabs, grid.geometry.columns, p.layout.groups, sums, 0, 0}};
}

template <Pass pass, typename S, typename Device, typename T = compute_t<S>>
Partial<T> run_long_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  const int sums = sum_rows(pass, p.degree());
  // No coefficients lie in shared memory.
  const Grid grid =
      cut(p, {tile<S>, sizeof(T), 1, sums, 2 * device.multiprocessors(), device.threads(), normalized_tiles});
  const std::vector<double> rows = long_rows(r, Walk::general);
  LongTables<T> tables{};
  tables.rows = deliver(rows, device);
  tables.degree = p.degree();
  tables.table = static_cast<T*>(device.allocate(rows.size() * sizeof(T)));
  device.launch(make_tables<T>, 1, device.threads(), 0, tables);
  const LongNormalized<T> args{statistics, tables.table, deliver(inverse_scales(r), device)};
  const int64_t slabs = sums > 0 ? long_slabs(grid) : 0;
  const Sweep<S> s = sweep_of<S>(p, grid, slabs, sums, device);
  device.launch(long_normalized_sweep<pass, S>, grid.blocks(), grid.threads, 0, s, args);
  return {s.partial, {slabs, grid.geometry.columns, p.layout.groups, sums, 0, 0}};
}

template <Pass pass, typename S, typename Kernels, typename Device, typename T = compute_t<S>>
Partial<T> run_pass(const Problem& p, const Recurrence& r, const Statistics<T>& statistics, Device& device) {
  Partial<T> partial{nullptr, {0, p.layout.groups, p.layout.groups, sum_rows(pass, p.degree()), 0, 0}};
  if (p.numel() == 0) return partial;
  const bool fits = dispatch_degree(p.degree(), Kernels{}, [&](auto range) {
    partial = run_tabled_pass<pass, S, decltype(range)>(p, r, statistics, device);
  });
  return fits ? partial : run_long_pass<pass, S>(p, r, statistics, device);
}

// The mean and the variance of phi_1, phi_2, ... over each group of x, which has elements.
template <typename S, typename Kernels = NormalizedDegrees, typename Device>
void launch_moments(const Problem& p, double* mean, double* variance, Device& device) {
  using T = compute_t<S>;
  if (p.degree() == 0) return;
  const Recurrence r = prepare(p.rows);
  const auto [numbers, slabs] = run_pass<Pass::moments, S, Kernels>(p, r, Statistics<T>{}, device);
  FinishMoments<T> finish{numbers, slabs, p.degree(), members_of(p), mean, variance, nullptr, {}};
  set_scales(finish, r, device);
  launch_adders(finish_moments<T>, finish, p.degree(), device);
}

// grad_coeffs, and the gradient in x unless p.out is null.
template <typename S, typename Kernels = NormalizedDegrees, typename Device>
void launch_normalized_backward(const Problem& p, const double* mean, const double* variance, double eps,
                                Device& device) {
  using T = compute_t<S>;
  const Recurrence r = prepare(p.rows);
  Problem sums = p;
  sums.out = nullptr;
  const auto [numbers, slabs] =
      run_pass<Pass::centered_gradient, S, Kernels>(sums, r, Statistics<T>{mean, variance, eps, nullptr}, device);
  T* factors = nullptr;
  if (p.out != nullptr) {
    const int rows = coeff_rows(Pass::normalized_gradient, p.degree());
    factors = static_cast<T*>(device.allocate(p.layout.groups * rows * sizeof(T)));
  }
  FinishGradient<T> finish{numbers,  slabs,         p.degree(),    members_of(p), eps,     mean, variance,
                           p.coeffs, p.grad_coeffs, p.coeffs_type, factors,       nullptr, {}};
  set_scales(finish, r, device);
  launch_adders(finish_gradient<T>, finish, p.degree() + 1, device);
  if (p.out == nullptr) return;
  run_pass<Pass::normalized_gradient, S, Kernels>(p, r, Statistics<T>{nullptr, nullptr, 0, factors}, device);
}

// The plain form's gradients for a basis in which D a cancels: p' is walked, in a sweep of its own.
template <typename S, typename Kernels = AllDegrees, typename Device>
void launch_walked_backward(const Problem& p, Device& device) {
  using T = compute_t<S>;
  if (p.numel() > 0) {
    const Recurrence r = prepare(p.rows);
    const LongTables<T> t = long_tables<T>(p, r, Walk::general, true, p.degree() + 1, r.scale, device);
    const Grid grid = cut(p, {tile<S>, sizeof(T), 1, 0, 2 * device.multiprocessors(), device.threads()});
    const LongNormalized<T> args{{nullptr, nullptr, 0, t.walk_coeffs}, t.table, nullptr};
    const Sweep<S> s = sweep_of<S>(p, grid, 0, 0, device);
    device.launch(long_normalized_sweep<Pass::walked_gradient, S>, grid.blocks(), grid.threads, 0, s, args);
  }
  if (p.grad_coeffs == nullptr) return;
  Problem sums = p;
  sums.out = nullptr;
  launch_plain<S, Kernels>(sums, device);
}

}  // namespace slaf_ext::cuda
