// The plain form on the GPU, free of torch: which kernel, with what arguments, in which order.
#pragma once

#include "launch.h"
#include "long_normalized.cuh"

namespace slaf_ext::cuda {

// The degrees with a kernel of their own; those between two of them run in the upper one's. Few, to limit compile time.
template <typename S>
struct PlainDegrees {
  using wide = DegreeList<2, 3, 4, 5, 6, 7, 8, 16, 32>;
  using edged = DegreeList<3, 5, 8, 16, 32>;
  using single = DegreeList<4, 8, 32>;
};
template <>
struct PlainDegrees<double> {
  using wide = DegreeList<3, 5, 8, 16>;
  using edged = DegreeList<5, 8, 16>;
  using single = DegreeList<8, 32>;
};

// Short blocks even out the ends of the work, and read memory in order. But each computes its coefficients and reduces
// its sums, which weighs more beside elements of two bytes, many sums, or columns.
template <typename Form, typename S, int highest>
inline constexpr int waves = [] {
  if (Form::has_columns) return Form::is_backward ? 1 : sizeof(S) == 2 ? 2 : 16;
  return sizeof(S) == 2 || (Form::is_backward && highest > 8) ? 4 : 16;
}();

// Returns make(Form{}) for a kind of walk. A general walk is right for every table; shorter ones are compiled where
// they are worth the compile time.
template <Family family, bool is_backward, Access access, int width, typename Make>
auto make_for(Walk kind, const Make& make) {
  constexpr bool has_edges = family != Family::wide;
  if constexpr (!has_edges) {
    if (kind == Walk::uniform) return make(Form<Walk::uniform, is_backward, has_edges, access, width>{});
  }
  if constexpr (!is_backward && family != Family::edged) {
    if (kind == Walk::power) return make(Form<Walk::power, is_backward, has_edges, access, width>{});
  }
  return make(Form<Walk::general, is_backward, has_edges, access, width>{});
}

// Writes grad_coeffs from partial sums.
template <typename T, typename Device>
void launch_reduce(const Problem& p, const Recurrence& recurrence, const Partials<T>& partials, Device& device) {
  Reduction<T> r{};
  r.partials = partials;
  r.degree = p.degree();
  r.grad = p.grad_coeffs;
  r.grad_type = p.coeffs_type;
  launch_reducer(reduce<T>, r, value_weights(p, recurrence), p.layout.groups, r.degree + 1, device);
}

// The kernel of a form. Where degrees share one and the walk is short, their highest has another to itself.
template <typename Form, typename Range, typename S>
Kernel<TabledSweep<S, Range::highest>> kernel_of(int degree) {
  constexpr int highest = Range::highest;
  if constexpr (Form::walk != Walk::general && Range::lowest < highest && highest <= 16) {
    if (degree == highest) return kernel_of<Form, Degrees<highest - 1, highest>, S>(degree);
  }
  return {sweep<Form, Range, S>,
          Form::walk,
          Form::access,
          Form::width,
          unroll<Form, S, highest>,
          resident_blocks<Form, Range, S>,
          waves<Form, S, highest>};
}

// The kernel of a family for a problem whose degree `Range` holds, if there is one.
template <typename Range, Family family, bool is_backward, typename S>
Kernel<TabledSweep<S, Range::highest>> tabled_kernel(const Problem& p, Walk kind) {
  Kernel<TabledSweep<S, Range::highest>> kernel;
  dispatch_access(access_of(p.layout), [&](auto access) {
    constexpr int registers = (Range::highest + 1) * (is_backward ? 2 : 1);
    constexpr int width = family == Family::single ? 1 : item_width<S>(access.value, registers);
    if constexpr ((family == Family::single) == (width == 1)) {
      if (!fits<S>(p, access.value, width)) return;
      kernel = make_for<family, is_backward, access.value, width>(
          kind, [&](auto form) { return kernel_of<decltype(form), Range, S>(p.degree()); });
    }
  });
  return kernel;
}

// A degree whose sums fit in registers: one launch, and one more for the gradient in the coefficients.
template <bool is_backward, typename S, int highest, typename Device>
void run_tabled(const Problem& p, const Recurrence& r, const Kernel<TabledSweep<S, highest>>& kernel, Device& device) {
  const bool has_sums = p.grad_coeffs != nullptr;
  const int slots = p.slots(), sum_slots = has_sums ? slots : 0;
  const Partition part = kernel.partition(p.layout, slots, sum_slots, max_items / kernel.unroll, device);
  TabledSweep<S, highest> args{};
  args.sweep = sweep_of<S>(p, part, slots, part.splits, sum_slots, device);
  args.coeffs = p.coeffs;
  args.coeffs_type = p.coeffs_type;
  set_rows(r, kernel.walk, args.a, args.b, args.c);
  const auto weights = is_backward ? slope_weights(p.D, r) : value_weights(p, r);
  std::copy(weights.begin(), weights.end(), args.weights);
  const int reduced = has_sums ? std::max(p.degree() + 1, 2) : 0;  // at once: of phi_k, or beyond the edges
  device.launch(kernel.run, part.blocks(), part.threads, kernel.shared_bytes(part, slots, p.degree() + 1, reduced),
                args);
  if (has_sums) launch_reduce(p, r, args.sweep.partials, device);
}

template <typename S>
struct LongKernel {
  void (*run)(Sweep<S>, LongTables<compute_t<S>>);
  Walk walk;
};

// Any degree, with tables and sums in memory.
template <bool is_backward, typename S, typename Device>
void run_long(const Problem& p, const Recurrence& r, Device& device) {
  // Without dx, the coefficients do not matter, and the weights of y take less memory than D.
  const bool of_value = !is_backward || p.out == nullptr;
  dispatch_access(access_of(p.layout), [&](auto access) {
    const int sum_slots = p.grad_coeffs != nullptr ? p.slots() : 0;
    const Sweep<S> s = long_sweep_of<S, access.value>(p, sum_slots, max_items / long_unroll, device);
    const auto [kernel, kind] = make_for<Family::single, is_backward, access.value, 1>(r.kind, [](auto form) {
      using Form = decltype(form);
      return LongKernel<S>{long_sweep<Form, S>, Form::walk};
    });
    const auto tables = long_tables<compute_t<S>>(p, r, kind, of_value, p.slots(),
                                                  of_value ? value_weights(p, r) : slope_weights(p.D, r), device);
    device.launch(kernel, s.partition.blocks(), s.partition.threads, 0, s, tables);
    if (sum_slots > 0) launch_reduce(p, r, s.partials, device);
  });
}

// y, or with is_backward one or both of the gradients, for storage type S.
template <bool is_backward, typename S, typename Lists = PlainDegrees<S>, typename Device>
void launch_plain(const Problem& p, Device& device) {
  const Recurrence r = prepare(p.rows);
  if (p.layout.numel() == 0) {
    if (p.grad_coeffs != nullptr) launch_reduce<float>(p, r, {nullptr, 0, p.layout.groups, 0}, device);
    return;
  }
  const bool done = dispatch_kernel<Lists>(
      p.degree(), p.outside != Outside::extrapolate,
      [&](auto range, auto family) { return tabled_kernel<decltype(range), family.value, is_backward, S>(p, r.kind); },
      [&](const auto& kernel) { run_tabled<is_backward>(p, r, kernel, device); });
  if (!done) run_long<is_backward, S>(p, r, device);
}

// The gradients. Where D would cost digits, phi_k' is walked in a sweep of its own, and what is left are the sums.
template <typename S, typename Lists = PlainDegrees<S>, typename Device>
void launch_backward(const Problem& p, Device& device) {
  using T = compute_t<S>;
  if (p.out == nullptr || !p.D.empty() || p.layout.numel() == 0) return launch_plain<true, S, Lists>(p, device);
  const Recurrence r = prepare(p.rows);
  const LongTables<T> t = long_tables<T>(p, r, Walk::general, true, p.degree() + 1, r.scale, device);
  dispatch_access(access_of(p.layout), [&](auto access) {
    const Sweep<S> s = long_sweep_of<S, access.value>(p, 0, max_items / long_unroll, device);
    device.launch(long_normalized_sweep<Pass::walked_gradient, access.value, S>, s.partition.blocks(),
                  s.partition.threads, 0, s, LongNormalized<T>{{{}, t.walk_coeffs}, t.table, nullptr});
  });
  if (p.grad_coeffs == nullptr) return;
  Problem sums = p;
  sums.out = nullptr;
  launch_plain<true, S, Lists>(sums, device);
}

}  // namespace slaf_ext::cuda
