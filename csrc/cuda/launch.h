// What the launches of both forms share, free of torch. A `Device` allocates memory and launches kernels, in blocks of
// `threads()`; the tests have one of their own.
#pragma once

#include <vector>

#include "../dispatch.h"
#include "../problem.h"
#include "kernel.cuh"
#include "long.cuh"

namespace slaf_ext::cuda {

// The families of kernels: for items of several elements, for the same with edges, and for single elements.
enum class Family { wide, edged, single };

constexpr int max_items = 512;  // of a thread: sums in fp32 stay exact to about 1e-6

// Elements of an item: 16 bytes of a run, or 8 where there are many coefficients and sums. Columns, whose coefficients
// and sums each take registers, have 8 bytes or less.
template <typename S>
constexpr int item_width(Access access, int registers_of_column) {
  const bool has_columns = access == Access::columns, is_register_bound = registers_of_column > 34;
  if (has_columns && is_register_bound) return 1;
  int width = (has_columns || is_register_bound ? 8 : 16) / static_cast<int>(sizeof(S));
  while (has_columns && width > 1 && width * registers_of_column > 72) width /= 2;
  return width;
}

// Whether every item of `width` elements lies in one run, or one matrix row, aligned to its size.
template <typename S>
bool fits(const Problem& p, Access access, int width) {
  const auto is_aligned = [&](const void* at) { return reinterpret_cast<uintptr_t>(at) % (width * sizeof(S)) == 0; };
  const int64_t length = access == Access::columns ? p.layout.groups * p.layout.inner : p.layout.inner;
  return (length % width == 0 || (p.layout.groups == 1 && length > width)) && is_aligned(p.x) &&
         is_aligned(p.grad_output) && is_aligned(p.out);
}

// A kernel, and what its launch needs to know about it.
template <typename Args>
struct Kernel {
  void (*run)(Args) = nullptr;
  Walk walk{};
  Access access{};
  int width = 0, unroll = 0;
  int resident_blocks = 0;  // on a multiprocessor
  int waves = 0;            // times that the blocks of a sweep fill the device

  template <typename Device>
  Partition partition(const Layout& layout, int coeff_slots, int sum_slots, int max_turns, const Device& device) const {
    const int coeff_bytes = coeff_pitch(coeff_slots) * static_cast<int>(sizeof(typename Args::T));
    const int64_t blocks = int64_t{waves} * resident_blocks * device.multiprocessors();
    return cuda::partition(layout,
                           {access, width, unroll, blocks, device.threads(), max_turns, coeff_bytes, sum_slots});
  }
  // The shared memory of a block: its coefficients, and a workspace in which first `staged` values of each column lie,
  // and later its sums are reduced.
  int64_t shared_bytes(const Partition& p, int coeff_slots, int staged, int sums) const {
    using T = typename Args::T;
    const int columns = access == Access::columns ? static_cast<int>(p.threads_across) * width : 1;
    return shared_coeffs(columns, coeff_slots) * sizeof(T) +
           std::max<int64_t>(int64_t{columns} * staged * sizeof(double),
                             workspace_size<T>(access, sums, width, p.threads) * sizeof(T));
  }
};

// Calls f(std::integral_constant<Access, ...>).
template <typename F>
auto dispatch_access(Access access, const F& f) {
  if (access == Access::runs) return f(std::integral_constant<Access, Access::runs>{});
  return f(std::integral_constant<Access, Access::columns>{});
}

// Calls run(kernel) with what choose(range, family) finds for a degree: a kernel for items of several elements, if they
// fit, or for single elements. False where there is none.
template <typename Lists, typename Choose, typename Run>
bool dispatch_kernel(int degree, bool has_edges, const Choose& choose, const Run& run) {
  bool done = false;
  const auto attempt = [&](auto degrees, auto family) {
    if (done) return;
    dispatch_degree(degree, degrees, [&](auto range) {
      const auto kernel = choose(range, family);
      done = kernel.run != nullptr;
      if (done) run(kernel);
    });
  };
  if (has_edges) {
    attempt(typename Lists::edged{}, std::integral_constant<Family, Family::edged>{});
  } else {
    attempt(typename Lists::wide{}, std::integral_constant<Family, Family::wide>{});
  }
  attempt(typename Lists::single{}, std::integral_constant<Family, Family::single>{});
  return done;
}

// The arguments of a sweep, with memory for `sum_slots` sums of every column from each of `sources` blocks, warps or
// threads.
template <typename S, typename Device>
Sweep<S> sweep_of(const Problem& p, const Partition& partition, int coeff_slots, int64_t sources, int sum_slots,
                  Device& device) {
  using T = compute_t<S>;
  Sweep<S> s{};
  s.x = static_cast<const S*>(p.x);
  s.grad_output = static_cast<const S*>(p.grad_output);
  s.out = static_cast<S*>(p.out);
  s.partials = {nullptr, sources, partition.columns, sum_slots};
  if (sum_slots > 0) {
    s.partials.at = static_cast<T*>(device.allocate(sources * sum_slots * partition.columns * sizeof(T)));
  }
  s.degree = p.degree();
  s.slots = coeff_slots;
  s.by_slots = Divisor(std::max(coeff_slots, 1));
  s.outside = p.outside;
  s.center = static_cast<T>(p.center);
  s.lo = static_cast<T>(p.lo);
  s.hi = static_cast<T>(p.hi);
  s.partition = partition;
  return s;
}

// Copies values to the device's memory as arguments of kernels.
template <typename Device>
double* upload(const std::vector<double>& values, Device& device) {
  auto* to = static_cast<double*>(device.allocate(values.size() * sizeof(double)));
  for (size_t i = 0; i < values.size(); i += Upload::capacity) {
    Upload part;
    part.count = static_cast<int>(std::min<size_t>(values.size() - i, Upload::capacity));
    std::copy_n(values.begin() + static_cast<int64_t>(i), part.count, part.values);
    device.launch(copy_upload, 1, device.threads(), 0, part, to + i);
  }
  return to;
}

// Puts values among the arguments of a kernel where they fit, and else in memory.
template <size_t capacity, typename Device>
void put_values(const std::vector<double>& values, double (&among)[capacity], const double*& in_memory,
                Device& device) {
  if (values.size() <= capacity) {
    std::copy(values.begin(), values.end(), among);
  } else {
    in_memory = upload(values, device);
  }
}

// Launches kernel(args) to add args.partials for `count` values of k.
template <typename Args, typename Device>
void launch_reducer(void (*kernel)(Args), Args& args, const std::vector<double>& weights, int64_t groups, int count,
                    Device& device) {
  put_values(weights, args.weights, args.weights_in_memory, device);
  ReduceShape& s = args.shape;
  s = {groups, 1, 1};
  while (s.width < 32 && s.width < groups) s.width *= 2;
  s.height = 32 / s.width;
  while (s.width * s.height < max_reduce_threads && s.height < args.partials.sources / 4) s.height *= 2;
  const int threads = s.width * s.height;
  device.launch(kernel, ceil_div(groups, s.width) * count, threads, threads * sizeof(double), args);
}

// The tables of a degree too high for registers, in memory, with `slots` coefficients of every group.
template <typename T, typename Device>
LongTables<T> long_tables(const Problem& p, const Recurrence& r, Walk kind, bool of_value, int slots,
                          const std::vector<double>& weights, Device& device) {
  const int64_t degree = p.degree();
  std::vector<double> columns[3], rows;  // a, b and c
  for (auto& column : columns) column.resize(r.a.size());
  set_rows(r, kind, columns[0].data(), columns[1].data(), columns[2].data());
  for (const auto& column : columns) rows.insert(rows.end(), column.begin(), column.begin() + degree);
  LongTables<T> t{};
  t.rows = upload(rows, device);
  t.weights = upload(weights, device);
  t.coeffs = p.coeffs;
  t.coeffs_type = p.coeffs_type;
  t.degree = p.degree();
  t.slots = slots;
  t.groups = p.layout.groups;
  t.of_value = of_value;
  t.table = static_cast<T*>(device.allocate(rows.size() * sizeof(T)));
  t.walk_coeffs = static_cast<T*>(device.allocate(slots * t.groups * sizeof(T)));
  const int64_t blocks = std::clamp<int64_t>(ceil_div(slots * t.groups, device.threads()), 1, 4096);
  device.launch(make_tables<T>, blocks, device.threads(), 0, t);
  return t;
}

// A sweep that keeps its sums in memory, `sum_slots` of every column for each warp or, where columns are read, each
// thread down.
template <typename S, Access access, typename Device>
Sweep<S> long_sweep_of(const Problem& p, int sum_slots, int max_turns, Device& device) {
  const Partition part = partition(
      p.layout, {access, 1, long_unroll, 2 * device.multiprocessors(), device.threads(), max_turns, 1, sum_slots});
  const int64_t sources = part.splits * (access == Access::columns ? part.threads_down : part.threads / 32);
  return sweep_of<S>(p, part, 0, sources, sum_slots, device);
}

}  // namespace slaf_ext::cuda
