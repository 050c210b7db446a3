// The operators on the GPU, free of torch: which kernel, what it is told, and in which order. A `Device` allocates
// memory and launches kernels, in blocks of `threads()`, so that tests can be one.
#pragma once

#include <vector>

#include "../dispatch.h"
#include "kernel.cuh"
#include "long.cuh"

namespace slaf_ext::cuda {

// The degrees with a kernel of their own, one between two of them running in the upper one's: where items of several
// elements fit the storage; the same with edges; and where single elements are read. Few, to limit the time that a
// build takes.
template <typename S>
struct PlainDegrees {
  using wide = DegreeList<2, 3, 4, 5, 7, 8, 16, 32>;
  using edged = DegreeList<3, 5, 8, 16, 32>;
  using single = DegreeList<4, 8, 32>;
};
template <>
struct PlainDegrees<double> {
  using wide = DegreeList<3, 5, 8, 16>;
  using edged = DegreeList<5, 8, 16>;
  using single = DegreeList<8, 32>;
};
enum class Family { wide, edged, single };

// The arguments of the operators. Null: grad_output, forward; out or grad_coeffs, not needed.
struct Problem {
  const void *x, *grad_output;
  void* out;
  const void* coeffs;
  Storage coeffs_type;
  void* grad_coeffs;
  std::vector<Row> rows;
  double center, lo, hi;
  Edge edge;
  Layout layout;

  int degree() const { return static_cast<int>(rows.size()); }
  int64_t numel() const { return layout.outer * layout.groups * layout.inner; }
  int table_rows() const { return degree() + (edge == Edge::linear ? 3 : 1); }
  bool has_sums() const { return grad_coeffs != nullptr; }
};

constexpr int64_t long_run = 32;  // elements from which a run is worth a block's attention
constexpr int most_items = 512;   // of a thread: sums in fp32 stay exact to about 1e-6

inline Reading reading_of(const Layout& layout) {
  return layout.groups > 1 && layout.inner < long_run ? Reading::columns : Reading::runs;
}

// Elements of an item: 16 bytes of a run, or 8 where there are many coefficients and sums. Columns, whose coefficients
// and sums each take registers, have 8 bytes, or less.
template <typename S>
constexpr int item_width(Reading reading, int registers_of_column) {
  const bool has_columns = reading == Reading::columns, is_crowded = registers_of_column > 34;
  if (has_columns && is_crowded) return 1;
  int width = (has_columns || is_crowded ? 8 : 16) / static_cast<int>(sizeof(S));
  while (has_columns && width > 1 && width * registers_of_column > 72) width /= 2;
  return width;
}

// Whether every item of so many elements lies in one run, or one row, aligned to its size.
template <typename S>
bool fits(const Problem& p, Reading reading, int width) {
  const auto is_aligned = [&](const void* at) { return reinterpret_cast<uintptr_t>(at) % (width * sizeof(S)) == 0; };
  const int64_t whole = reading == Reading::columns ? p.layout.groups * p.layout.inner : p.layout.inner;
  return (whole % width == 0 || (p.layout.groups == 1 && whole > width)) && is_aligned(p.x) &&
         is_aligned(p.grad_output) && is_aligned(p.out);
}

// A kernel, and what its launch has to know of it.
template <typename Args>
struct Kernel {
  void (*run)(Args) = nullptr;
  Walk walk{};
  Reading reading{};
  int width = 0, unroll = 0;
  int resident_blocks = 0;  // on a multiprocessor
  int waves = 0;            // times that the blocks of a sweep fill the device

  template <typename Device>
  Partition partition(const Layout& layout, int coeff_rows, int sum_rows, int most_turns, const Device& device) const {
    const int coeff_bytes = coeff_pitch(coeff_rows) * static_cast<int>(sizeof(typename Args::T));
    const int64_t blocks = int64_t{waves} * resident_blocks * device.multiprocessors();
    return cuda::partition(layout,
                           {reading, width, unroll, blocks, device.threads(), most_turns, coeff_bytes, sum_rows});
  }
  // The shared memory of a block: its coefficients, and the workspace in which `staged` of each column are prepared,
  // and later its sums meet.
  int64_t shared_bytes(const Partition& p, int coeff_rows, int staged, int sums) const {
    using T = typename Args::T;
    const int columns = reading == Reading::columns ? static_cast<int>(p.across) * width : 1;
    return shared_coeffs(columns, coeff_rows) * sizeof(T) +
           std::max<int64_t>(int64_t{columns} * staged * sizeof(double),
                             workspace_size<T>(reading, sums, width, p.threads) * sizeof(T));
  }
};

// Short blocks even out the ends of the work, and meet memory in order. But each has its coefficients to make and its
// sums to add up, which weighs more beside elements of two bytes, many sums, or columns.
template <typename Form, typename S, int highest>
inline constexpr int waves = [] {
  if (Form::has_columns) return Form::is_backward ? 1 : sizeof(S) == 2 ? 2 : 16;
  return sizeof(S) == 2 || (Form::is_backward && highest > 8) ? 4 : 16;
}();

// What make(Form{}) makes of the form for a kind of table. A general walk is always right; shorter ones are compiled
// where they are worth the time of the build.
template <Family family, bool is_backward, Reading reading, int width, typename Make>
auto make_for(Walk kind, const Make& make) {
  constexpr bool has_edges = family != Family::wide;
  if constexpr (!has_edges) {
    if (kind == Walk::uniform) return make(Form<Walk::uniform, is_backward, has_edges, reading, width>{});
  }
  if constexpr (!is_backward && family != Family::edged) {
    if (kind == Walk::power) return make(Form<Walk::power, is_backward, has_edges, reading, width>{});
  }
  return make(Form<Walk::general, is_backward, has_edges, reading, width>{});
}

// Calls f(std::integral_constant<Reading, ...>) with it.
template <typename F>
auto dispatch_reading(Reading reading, const F& f) {
  if (reading == Reading::runs) return f(std::integral_constant<Reading, Reading::runs>{});
  return f(std::integral_constant<Reading, Reading::columns>{});
}

// scale, and with linear edges the slopes phi_k' at lo and at hi.
inline std::vector<double> scales_of(const Problem& p, const Recurrence& r) {
  std::vector<double> scales = r.scale;
  if (p.edge != Edge::linear) return scales;
  for (const double edge : {p.lo, p.hi}) {
    const auto slopes = derivatives_at(edge - p.center, p.rows);
    scales.insert(scales.end(), slopes.begin(), slopes.end());
  }
  return scales;
}

// What `walk_coeff` takes.
inline std::vector<double> weights_of(const Problem& p, const Recurrence& r) {
  if (p.grad_output == nullptr) return scales_of(p, r);
  const size_t K = p.rows.size() + 1;
  const auto D = derivative_matrix(p.rows);
  std::vector<double> weights;
  for (size_t k = 1; k < K; ++k) {
    for (size_t j = 0; j < k; ++j) weights.push_back(D[k * K + j] * r.scale[j]);
  }
  return weights;
}

// Numbers in the device's memory that came there as arguments of kernels.
template <typename Device>
double* upload(const std::vector<double>& numbers, Device& device) {
  auto* to = static_cast<double*>(device.allocate(numbers.size() * sizeof(double)));
  for (size_t i = 0; i < numbers.size(); i += Upload::capacity) {
    Upload part;
    part.count = static_cast<int>(std::min<size_t>(numbers.size() - i, Upload::capacity));
    std::copy_n(numbers.begin() + static_cast<int64_t>(i), part.count, part.numbers);
    device.launch(unpack, 1, device.threads(), 0, part, to + i);
  }
  return to;
}

// Sets args.scales, or where they do not fit, args.far_scales.
template <typename Args, typename Device>
void set_scales(Args& args, const std::vector<double>& scales, Device& device) {
  if (scales.size() <= std::size(args.scales)) {
    std::copy(scales.begin(), scales.end(), args.scales);
  } else {
    args.far_scales = upload(scales, device);
  }
}

// Launches kernel(args) to add up args.partials for `count` values of k.
template <typename Args, typename Device>
void launch_adders(void (*kernel)(Args), Args& args, int64_t groups, int count, Device& device) {
  Adders& a = args.adders;
  a = {groups, 1, 1};
  while (a.width < 32 && a.width < groups) a.width *= 2;
  a.height = 32 / a.width;
  while (a.width * a.height < max_adders && a.height < args.partials.slabs / 4) a.height *= 2;
  const int threads = a.width * a.height;
  device.launch(kernel, ceil_div(groups, a.width) * count, threads, threads * sizeof(double), args);
}

// Writes grad_coeffs from partial sums.
template <typename T, typename Device>
void launch_reduce(const Problem& p, const Recurrence& recurrence, const Partials<T>& partials, Device& device) {
  Reduction<T> r{};
  r.partials = partials;
  r.degree = p.degree();
  r.grad = p.grad_coeffs;
  r.grad_type = p.coeffs_type;
  set_scales(r, scales_of(p, recurrence), device);
  launch_adders(reduce<T>, r, p.layout.groups, r.degree + 1, device);
}

// A sweep over p, with room for `sum_rows` sums of every column from each of `slabs` blocks, warps or threads.
template <typename S, typename Device>
Sweep<S> sweep_of(const Problem& p, const Partition& partition, int coeff_rows, int64_t slabs, int sum_rows,
                  Device& device) {
  using T = compute_t<S>;
  Sweep<S> s{};
  s.x = static_cast<const S*>(p.x);
  s.grad_output = static_cast<const S*>(p.grad_output);
  s.out = static_cast<S*>(p.out);
  s.partials = {nullptr, slabs, partition.columns, sum_rows};
  if (sum_rows > 0) {
    s.partials.at = static_cast<T*>(device.allocate(slabs * sum_rows * partition.columns * sizeof(T)));
  }
  s.degree = p.degree();
  s.rows = coeff_rows;
  s.by_rows = Divisor(std::max(coeff_rows, 1));
  s.edge = p.edge;
  s.center = static_cast<T>(p.center);
  s.lo = static_cast<T>(p.lo);
  s.hi = static_cast<T>(p.hi);
  s.partition = partition;
  return s;
}

// The kernel of a family for a problem whose degree `Range` holds, if there is one.
template <typename Range, Family family, bool is_backward, typename S>
Kernel<TabledSweep<S, Range::highest>> tabled_kernel(const Problem& p, Walk kind) {
  Kernel<TabledSweep<S, Range::highest>> kernel;
  dispatch_reading(reading_of(p.layout), [&](auto reading) {
    constexpr int registers = (Range::highest + 1) * (is_backward ? 2 : 1);
    constexpr int width = family == Family::single ? 1 : item_width<S>(reading.value, registers);
    if constexpr ((family == Family::single) == (width == 1)) {
      if (!fits<S>(p, reading.value, width)) return;
      kernel = make_for<family, is_backward, reading.value, width>(kind, [](auto form) {
        using Form = decltype(form);
        return Kernel<TabledSweep<S, Range::highest>>{sweep<Form, Range, S>,
                                                      Form::walk,
                                                      Form::reading,
                                                      Form::width,
                                                      unroll<Form, S, Range::highest>,
                                                      resident_blocks<Form, Range, S>,
                                                      waves<Form, S, Range::highest>};
      });
    }
  });
  return kernel;
}

// Degrees whose sums fit in registers: one launch, and one more for the gradient in the coefficients.
template <typename S, int highest, typename Device>
void run_tabled(const Problem& p, const Recurrence& r, const Kernel<TabledSweep<S, highest>>& kernel, Device& device) {
  const int rows = p.table_rows(), sum_rows = p.has_sums() ? rows : 0;
  const Partition part = kernel.partition(p.layout, rows, sum_rows, most_items / kernel.unroll, device);
  TabledSweep<S, highest> args{};
  args.sweep = sweep_of<S>(p, part, rows, part.cells, sum_rows, device);
  args.coeffs = p.coeffs;
  args.coeffs_type = p.coeffs_type;
  set_rows(r, kernel.walk, args.a, args.b, args.c);
  const auto weights = weights_of(p, r);
  std::copy(weights.begin(), weights.end(), args.weights);
  const int together = p.has_sums() ? std::max(p.degree() + 1, 2) : 0;  // sums that meet: of phi_k, or beyond the edges
  device.launch(kernel.run, part.blocks(), part.threads, kernel.shared_bytes(part, rows, p.degree() + 1, together),
                args);
  if (p.has_sums()) launch_reduce(p, r, args.sweep.partials, device);
}

// a, b and c of every row, one after the other.
inline std::vector<double> long_rows(const Recurrence& r, Walk kind) {
  const size_t degree = r.a.size();
  std::vector<double> rows(3 * degree);
  set_rows(r, kind, &rows[0], &rows[degree], &rows[2 * degree]);
  return rows;
}

// The rows of a walk and `row_count` coefficients of every group, in memory.
template <typename T, typename Device>
LongTables<T> long_tables(const Problem& p, const Recurrence& r, Walk kind, bool forward, int row_count,
                          const std::vector<double>& weights, Device& device) {
  const std::vector<double> rows = long_rows(r, kind);
  LongTables<T> t{};
  t.rows = upload(rows, device);
  t.weights = upload(weights, device);
  t.coeffs = p.coeffs;
  t.coeffs_type = p.coeffs_type;
  t.degree = p.degree();
  t.row_count = row_count;
  t.groups = p.layout.groups;
  t.forward = forward;
  t.table = static_cast<T*>(device.allocate(rows.size() * sizeof(T)));
  t.walk_coeffs = static_cast<T*>(device.allocate(t.row_count * t.groups * sizeof(T)));
  const int64_t enough = std::min<int64_t>(ceil_div(t.row_count * t.groups, device.threads()), 4096);
  device.launch(make_tables<T>, enough, device.threads(), 0, t);
  return t;
}

// A sweep that keeps its sums in memory, `sum_rows` of every column for each warp, or where columns differ each row of
// threads.
template <typename S, Reading reading, typename Device>
Sweep<S> long_sweep_of(const Problem& p, int sum_rows, int most_turns, Device& device) {
  const Demand demand{reading, 1, long_unroll, 2 * device.multiprocessors(), device.threads(), most_turns, 1, sum_rows};
  const Partition part = partition(p.layout, demand);
  const int64_t slabs = part.cells * (reading == Reading::columns ? part.down : part.threads / 32);
  return sweep_of<S>(p, part, 0, slabs, sum_rows, device);
}

template <typename S>
struct LongKernel {
  void (*run)(Sweep<S>, LongTables<compute_t<S>>);
  Walk walk;
};

// Any degree, with tables and sums in memory.
template <bool is_backward, typename S, typename Device>
void run_long(const Problem& p, const Recurrence& r, Device& device) {
  // Where no dx is asked for, its coefficients may be any, and those of y take less memory than D.
  const bool forward = !is_backward || p.out == nullptr;
  dispatch_reading(reading_of(p.layout), [&](auto reading) {
    const int sum_rows = p.has_sums() ? p.table_rows() : 0;
    const Sweep<S> s = long_sweep_of<S, reading.value>(p, sum_rows, most_items / long_unroll, device);
    const auto [kernel, kind] = make_for<Family::single, is_backward, reading.value, 1>(r.kind, [](auto form) {
      using Form = decltype(form);
      return LongKernel<S>{long_sweep<Form, S>, Form::walk};
    });
    const auto tables = long_tables<compute_t<S>>(p, r, kind, forward, p.table_rows(),
                                                  forward ? scales_of(p, r) : weights_of(p, r), device);
    device.launch(kernel, s.partition.blocks(), s.partition.threads, 0, s, tables);
    if (p.has_sums()) launch_reduce(p, r, s.partials, device);
  });
}

// Calls run(kernel) with what choose(range, family) finds for a degree: for items of several elements, if they fit, or
// for single elements. False where there is none.
template <typename Kernels, typename Choose, typename Run>
bool dispatch_kernel(int degree, bool has_edges, const Choose& choose, const Run& run) {
  bool done = false;
  const auto attempt = [&](auto range, auto family) {
    const auto kernel = choose(range, family);
    done = kernel.run != nullptr;
    if (done) run(kernel);
  };
  const auto attempt_all = [&](auto degrees, auto family) {
    if (!done) dispatch_degree(degree, degrees, [&](auto range) { attempt(range, family); });
  };
  if (has_edges) {
    attempt_all(typename Kernels::edged{}, std::integral_constant<Family, Family::edged>{});
  } else {
    attempt_all(typename Kernels::wide{}, std::integral_constant<Family, Family::wide>{});
  }
  attempt_all(typename Kernels::single{}, std::integral_constant<Family, Family::single>{});
  return done;
}

// y, or with is_backward one or both of the gradients, for storage type S.
template <bool is_backward, typename S, typename Kernels = PlainDegrees<S>, typename Device>
void launch_plain(const Problem& p, Device& device) {
  const Recurrence r = prepare(p.rows);
  if (p.numel() == 0) {
    if (p.has_sums()) launch_reduce<float>(p, r, {nullptr, 0, p.layout.groups, 0}, device);
    return;
  }
  const bool done = dispatch_kernel<Kernels>(
      p.degree(), p.edge != Edge::extrapolate,
      [&](auto range, auto family) { return tabled_kernel<decltype(range), family.value, is_backward, S>(p, r.kind); },
      [&](const auto& kernel) { run_tabled(p, r, kernel, device); });
  if (!done) run_long<is_backward, S>(p, r, device);
}

}  // namespace slaf_ext::cuda
