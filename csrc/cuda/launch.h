// The operators on the GPU, free of torch: how the storage is cut, what a launch is told, and in which
// order. A `Device` allocates memory and launches kernels, in blocks of `threads()`, so that tests can be one.
#pragma once

#include <vector>

#include "../dispatch.h"
#include "../layout.h"
#include "kernels.cuh"

namespace slaf_ext::cuda {

// Degrees with a kernel of their own; one between two of these runs in the upper one's.
using AllDegrees = DegreeList<0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32>;

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
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t long_run = 32;             // numbers from which a run is worth a block's attention
constexpr int64_t most_tiles = 512;          // of a thread: sums in fp32 stay exact to about 1e-6
constexpr int64_t column_bytes = 16 * 1024;  // of shared memory that the coefficients of columns may fill

struct Grid {
  Geometry geometry;
  int threads;
  int64_t blocks() const { return geometry.pieces * geometry.cells; }
};

// What a sweep asks for.
struct Demand {
  int tile, number_size;     // numbers that make 16 bytes; bytes of a coefficient
  int coeff_rows, sum_rows;  // coefficients of a column; sums of it, or 0
  int64_t blocks;            // that fill the device, in threads of
  int threads;
  int64_t tiles = most_tiles;  // of a thread, at most
};

inline Grid cut(const Problem& p, const Demand& d) {
  const int tile = d.tile;
  int threads = d.threads;
  // Named one by one: before C++20 a lambda captures no structured binding.
  const int64_t outer = p.layout.outer, groups = p.layout.groups, inner = p.layout.inner;
  const auto is_aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  Geometry g{};
  g.size = p.numel();
  if (groups > 1 && inner < long_run) {
    g.access = Access::columns;
    g.columns = groups * inner;
    g.inner = inner;
    g.items = outer;
    g.item_size = 1;
    // Neighbouring columns share cache lines; but neither may threads idle, nor the device, nor shared memory overflow.
    const int64_t column_size = coeff_pitch(d.coeff_rows) * d.number_size;
    const auto fits = [&](int64_t width) {
      const int64_t rows_at_once = threads / width * tile, pieces = ceil_div(g.columns, width);
      return width * column_size <= column_bytes && pieces * width <= g.columns + g.columns / 8 &&
             pieces * ceil_div(outer, rows_at_once) >= d.blocks;
    };
    int64_t width = threads;
    while (width > 32 && !fits(width)) width /= 2;
    g.width = static_cast<int>(g.columns <= 64 && g.columns * column_size <= 2 * column_bytes ? g.columns : width);
  } else {
    g.access =
        is_aligned(p.x) && is_aligned(p.grad_output) && is_aligned(p.out) && (inner % tile == 0 || outer * groups == 1)
            ? Access::vectors
            : Access::numbers;
    g.width = 1;
    g.columns = groups;
    g.inner = inner;
    g.item_size = g.access == Access::vectors ? tile : 1;
    g.items = ceil_div(outer * inner, g.item_size);
    threads = static_cast<int>(std::clamp<int64_t>(ceil_div(outer * inner, tile * 32) * 32, 32, threads));
  }
  const int64_t height = threads / g.width, items_a_tile = tile / g.item_size;
  const int64_t tiles = ceil_div(g.items, height * items_a_tile);
  g.pieces = ceil_div(g.columns, g.width);
  g.cells = std::min(tiles, std::max<int64_t>(1, d.blocks / g.pieces));
  // Partial sums of columns are to stay few beside the numbers that they are sums of.
  if (d.sum_rows > 0 && g.access == Access::columns) {
    g.cells = std::min(g.cells, std::max<int64_t>(1, outer / (8 * d.sum_rows)));
  }
  g.cells = std::max(g.cells, ceil_div(tiles, d.tiles));
  g.tiles = static_cast<int>(ceil_div(tiles, g.cells));
  g.step = g.cells * height;
  if (g.access == Access::columns) {
    g.step_offset = g.step * g.columns;
  } else {
    const int64_t numbers = g.step * g.item_size;
    g.step_inside = numbers % inner;
    g.step_offset = numbers / inner * g.columns * inner + g.step_inside;
    g.carry = (g.columns - 1) * inner;
  }
  return {g, threads};
}

// The walk for a kind of table. Powers are walked with c_k = 0 where there are sums, for want of time to compile more;
// expanded they are by Horner's rule, which keeps their limits at the infinities.
constexpr Walk walked(Walk kind, bool has_sums) {
  return kind == Walk::uniform || (kind == Walk::power && !has_sums) ? kind : Walk::general;
}

// Calls f(std::integral_constant<Walk, ...>) with it.
template <bool has_sums, typename F>
void dispatch_walk(Walk kind, const F& f) {
  switch (walked(kind, has_sums)) {
    case Walk::uniform: return f(std::integral_constant<Walk, Walk::uniform>{});
    case Walk::power: return f(std::integral_constant<Walk, walked(Walk::power, has_sums)>{});
    default: return f(std::integral_constant<Walk, Walk::general>{});
  }
}

// scale, and the slopes phi_k' at lo and at hi that linear edges need.
inline std::vector<double> scales_of(const Problem& p, const Recurrence& r) {
  std::vector<double> scales = r.scale;
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
double* deliver(const std::vector<double>& numbers, Device& device) {
  auto* to = static_cast<double*>(device.allocate(numbers.size() * sizeof(double)));
  for (size_t i = 0; i < numbers.size(); i += Parcel::capacity) {
    Parcel parcel;
    parcel.count = static_cast<int>(std::min<size_t>(numbers.size() - i, Parcel::capacity));
    std::copy_n(numbers.begin() + static_cast<int64_t>(i), parcel.count, parcel.numbers);
    device.launch(unpack, 1, device.threads(), 0, parcel, to + i);
  }
  return to;
}

// Launches kernel(args) to add up args.slabs, whose first numbers are known, for `rows` values of k.
template <typename Args, typename Device>
void launch_adders(void (*kernel)(Args), Args& args, int rows, Device& device) {
  Slabs& s = args.slabs;
  const int64_t terms = s.count * (s.columns / s.groups);
  s.width = 1;
  while (s.width < 32 && s.width < s.groups) s.width *= 2;
  s.height = 32 / s.width;
  while (s.width * s.height < 1024 && s.height < terms / 4) s.height *= 2;
  const int threads = s.width * s.height;
  device.launch(kernel, ceil_div(s.groups, s.width) * rows, threads, threads * sizeof(double), args);
}

// Writes grad_coeffs from `count` slabs of sums.
template <typename T, typename Device>
void launch_reduce(const Problem& p, const Recurrence& recurrence, const T* partial, int64_t count, int64_t columns,
                   Device& device) {
  Reduction<T> r{};
  r.partial = partial;
  r.slabs = {count, columns, p.layout.groups, p.table_rows(), 0, 0};
  r.degree = p.degree();
  r.grad = p.grad_coeffs;
  r.grad_type = p.coeffs_type;
  const auto scales = scales_of(p, recurrence);
  if (static_cast<int64_t>(scales.size()) <= scale_count(32)) {
    std::copy(scales.begin(), scales.end(), r.scales);
  } else {
    r.far_scales = deliver(scales, device);
  }
  launch_adders(reduce<T>, r, r.degree + 1, device);
}

// `slabs` slabs of `rows` rows of sums are to come of it.
template <typename S, typename Device>
Sweep<S> sweep_of(const Problem& p, const Grid& grid, int64_t slabs, int rows, Device& device) {
  using T = compute_t<S>;
  Sweep<S> s{};
  s.x = static_cast<const S*>(p.x);
  s.grad_output = static_cast<const S*>(p.grad_output);
  s.out = static_cast<S*>(p.out);
  s.degree = p.degree();
  s.rows = rows;
  if (slabs > 0) s.partial = static_cast<T*>(device.allocate(slabs * rows * grid.geometry.columns * sizeof(T)));
  s.edge = p.edge;
  s.center = static_cast<T>(p.center);
  s.lo = static_cast<T>(p.lo);
  s.hi = static_cast<T>(p.hi);
  s.geometry = grid.geometry;
  return s;
}

// Degrees whose sums fit in registers: one launch, and one more for the gradient in the coefficients.
template <typename S, typename Range, typename Device>
void run_tabled(const Problem& p, Device& device) {
  using T = compute_t<S>;
  // A forward has no sums to add up in the end, so more and shorter blocks even out the work of SMs.
  const int64_t resident = p.grad_coeffs == nullptr ? 4 * resident_blocks<S, Range::highest, false>
                                                    : resident_blocks<S, Range::highest, true>;
  const int64_t blocks = resident * device.multiprocessors();
  const bool has_sums = p.grad_coeffs != nullptr;
  const int rows = p.table_rows();
  const Grid grid = cut(p, {tile<S>, sizeof(T), rows, has_sums ? rows : 0, blocks, device.threads()});
  const Recurrence r = prepare(p.rows);
  TabledSweep<S, Range::highest> args{};
  args.sweep = sweep_of<S>(p, grid, has_sums ? grid.geometry.cells : 0, rows, device);
  args.coeffs = p.coeffs;
  args.coeffs_type = p.coeffs_type;
  set_rows(r, walked(r.kind, has_sums), args.a, args.b, args.c);
  const auto weights = weights_of(p, r);
  std::copy(weights.begin(), weights.end(), args.weights);
  const int room = has_sums ? room_rows * grid.threads : 0;
  const int64_t shared = (grid.geometry.width * coeff_pitch(rows) + room) * sizeof(T);
  const auto launch = [&](auto has_sums) {
    dispatch_walk<has_sums.value>(r.kind, [&](auto kind) {
      device.launch(sweep<kind.value, Range, has_sums.value, S>, grid.blocks(), grid.threads, shared, args);
    });
  };
  dispatch_bool(has_sums, launch);
  if (has_sums) launch_reduce(p, r, args.sweep.partial, grid.geometry.cells, grid.geometry.columns, device);
}

// Slabs of sums where every warp, or where columns differ every row of threads, has one.
inline int64_t long_slabs(const Grid& grid) {
  const Geometry& g = grid.geometry;
  return g.cells * (g.access == Access::columns ? grid.threads / g.width : grid.threads / 32);
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
  t.rows = deliver(rows, device);
  t.weights = deliver(weights, device);
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

// Any degree, with tables and sums in memory.
template <typename S, typename Device>
void run_long(const Problem& p, Device& device) {
  using T = compute_t<S>;
  const bool has_sums = p.grad_coeffs != nullptr;
  const int64_t blocks = 2 * device.multiprocessors();
  const Grid grid =
      cut(p, {tile<S>, sizeof(T), p.table_rows(), has_sums ? p.table_rows() : 0, blocks, device.threads()});
  const Recurrence r = prepare(p.rows);
  // Where no dx is asked for, its coefficients may be any, and those of y take less memory than D.
  const bool forward = p.grad_output == nullptr || p.out == nullptr;
  const LongTables<T> t = long_tables<T>(p, r, walked(r.kind, has_sums), forward, p.table_rows(),
                                         forward ? scales_of(p, r) : weights_of(p, r), device);

  const int64_t slabs = has_sums ? long_slabs(grid) : 0;
  const Sweep<S> s = sweep_of<S>(p, grid, slabs, p.table_rows(), device);
  dispatch_bool(has_sums, [&](auto has_sums) {
    dispatch_walk<has_sums.value>(r.kind, [&](auto kind) {
      device.launch(long_sweep<kind.value, has_sums.value, S>, grid.blocks(), grid.threads, 0, s, t);
    });
  });
  if (has_sums) launch_reduce(p, r, s.partial, slabs, grid.geometry.columns, device);
}

// y, or one or both of the gradients, for storage type S.
template <typename S, typename Kernels = AllDegrees, typename Device>
void launch_plain(const Problem& p, Device& device) {
  if (p.numel() == 0) {
    if (p.grad_coeffs != nullptr) launch_reduce<float>(p, prepare(p.rows), nullptr, 0, p.layout.groups, device);
    return;
  }
  const bool fits =
      dispatch_degree(p.degree(), Kernels{}, [&](auto range) { run_tabled<S, decltype(range)>(p, device); });
  if (!fits) run_long<S>(p, device);
}

}  // namespace slaf_ext::cuda
