// The operators on the CPU: how the work is cut, and the coefficients before and after the sweep.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>

#include "../fold.h"
#include "../ops.h"
#include "isa.h"
#include "kernels.h"

namespace slaf_ext::cpu {
namespace {

constexpr int64_t long_group = 32;  // numbers from which a group is a unit of its own
// About as many numbers are in a task, and in each of its units where they are long enough to be cut; and as many lie
// one after another, since every other place in memory is another page, and is not foreseen by the processor.
constexpr int64_t task_numbers = 16384, unit_numbers = 1024, run_numbers = 4096;
// By lanes there are about as many rows in a task, and no fewer tasks than these where there is work for them.
constexpr int64_t task_rows = 512, least_tasks = 8;
constexpr int64_t thread_numbers = 32768;  // less is not worth another thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// The size of parts of n, none larger than `most` and all about as large.
int64_t evenly(int64_t n, int64_t most) { return ceil_div(n, ceil_div(n, most)); }

// How a layout is cut into units and tasks. It depends on the sizes alone, never on the number of
// threads, so that sums are always added in the same order.
struct Grid {
  Grid(const Layout& l, int64_t W, int64_t block_bytes)
      : by_lanes(l.inner < long_group && l.groups > 1), W(W), groups(l.groups), row(l.groups * l.inner) {
    // Blocks of coefficients and of sums for the units of one task stay in L2: narrower tasks would keep them in L1,
    // but touch every page of memory more often.
    const int64_t fitting = std::max<int64_t>(1, 131072 / (2 * block_bytes));
    if (by_lanes) {
      outer = l.outer;
      inner = row;
      // Short rows are taken several at a time, so many that no vector is cut short and units are not too few.
      int64_t together = W / std::gcd(inner, W);
      while (inner * together < 8 * W && outer % (2 * together) == 0) together *= 2;
      if (inner < 16 * W && outer % together == 0) {
        outer /= together;
        inner *= together;
      }
      while (static_cast<int64_t>(group_of.size()) < inner) {
        for (int64_t g = 0; g < groups; ++g) group_of.insert(group_of.end(), l.inner, g);
      }
      units = ceil_div(inner, W);
      outer_block = evenly(outer, task_rows);
      inner_block = inner;
      const int64_t shares =
          std::min(ceil_div(least_tasks, ceil_div(outer, outer_block)), outer_block * inner / task_numbers);
      unit_block = ceil_div(units, std::max(ceil_div(units, fitting), shares));
    } else {
      outer = l.outer;
      units = groups;
      inner = l.inner;
      inner_block = std::min(inner, task_numbers);
      unit_block = evenly(units, std::min(ceil_div(run_numbers, inner_block), fitting));
      outer_block = evenly(outer, ceil_div(std::max(task_numbers / unit_block, unit_numbers), inner_block));
    }
    inner_blocks = ceil_div(inner, inner_block);
    cells = ceil_div(outer, outer_block) * inner_blocks;
    tasks = cells * ceil_div(units, unit_block);
    task_groups = !by_lanes ? unit_block : inner > row ? groups : std::min(groups, unit_block * W / l.inner + 2);
  }

  Task task(int64_t index) const {
    const int64_t u = index / cells * unit_block, cell = index % cells;
    const int64_t i = cell % inner_blocks * inner_block, o = cell / inner_blocks * outer_block;
    Task t{o, std::min(outer, o + outer_block), u, std::min(units, u + unit_block),
           i, std::min(inner, i + inner_block), 0, groups};
    const int64_t first = t.unit_begin * W, last = std::min(t.unit_end * W, inner) - 1;
    if (!by_lanes) {
      t.group_begin = t.unit_begin;
      t.group_end = t.unit_end;
    } else if (first / row == last / row) {
      t.group_begin = group_of[first];
      t.group_end = group_of[last] + 1;
    }
    return t;
  }

  bool by_lanes;
  int64_t W, groups, row;
  int64_t outer, units, inner;
  int64_t outer_block, unit_block, inner_block;
  int64_t inner_blocks, cells;    // cells: the tasks of the same units, one after another
  int64_t tasks, task_groups;     // and the most groups that one of them meets
  std::vector<int64_t> group_of;  // of every number of a row, by lanes
};

// Calls f(S{}) with the storage type.
template <typename F>
void dispatch_storage(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Float: return f(float{});
    default: return f(double{});
  }
}

// Numbers for each group, a row for each coefficient: rows x groups, so that what is done to every
// group alike is done to vectors of them.
struct Table {
  Table(int64_t rows, int64_t groups) : rows(rows), groups(groups), stride(groups + 8), values(rows * stride) {}
  double* operator[](int64_t row) { return &values[row * stride]; }
  const double* operator[](int64_t row) const { return &values[row * stride]; }

  // row += factor * other
  void add(int64_t row, double factor, const double* other) {
    double* to = (*this)[row];
    for (int64_t g = 0; g < groups; ++g) to[g] += factor * other[g];
  }

  int64_t rows, groups;
  int64_t stride;  // Not 2^n: the numbers of one group would share a few places of the cache.
  std::vector<double> values;
};

Table read_coeffs(const Tensor& coeffs, int64_t groups) {
  const int64_t K = coeffs.numel() / groups;
  Table table(K, groups);
  dispatch_storage(coeffs.scalar_type(), [&](auto s) {
    const auto* from = static_cast<const decltype(s)*>(coeffs.const_data_ptr());
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t k = 0; k < K; ++k) table[k][g] = widen(from[g * K + k]);
    }
  });
  return table;
}

void write_coeffs(const Table& table, const Tensor& coeffs) {
  const int64_t groups = table.groups, K = coeffs.numel() / groups;
  dispatch_storage(coeffs.scalar_type(), [&](auto s) {
    using T = compute_t<decltype(s)>;
    auto* to = static_cast<decltype(s)*>(coeffs.mutable_data_ptr());
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t k = 0; k < K; ++k) narrow(to + g * K + k, static_cast<T>(table[k][g]));
    }
  });
}

// The rows of a block: K for the walk and, with linear edges, two for what lies beyond them.
int64_t block_rows(const Arguments& a, unsigned pass = forward) {
  const int64_t K = a.degree() + 1;
  if (pass == centered_gradient) return K;
  if (pass == moments) return 2 * K;
  if (pass == normalized_gradient) return 3 * K;
  return a.outside == Outside::linear ? K + 2 : K;
}

// Room for numbers, uninitialised, that begins on a cache line, so that no vector lies across two.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t numbers) : room_(new T[numbers + cache_line / sizeof(T)]) {}
  T* data() const { return room_.get() + (-reinterpret_cast<uintptr_t>(room_.get()) % cache_line) / sizeof(T); }

 private:
  std::unique_ptr<T[]> room_;
};

// A block of coefficients for each of some units, as the sweep reads them.
template <typename T>
void expand(const Table& coeffs, const Grid& grid, int64_t unit_begin, int64_t unit_end, T* to) {
  const int64_t rows = coeffs.rows, W = grid.W;
  for (int64_t u = unit_begin; u < unit_end; ++u) {
    for (int64_t k = 0; k < rows; ++k, to += W) {
      const auto number = [&](int64_t g) { return static_cast<T>(quiet(coeffs[k][g])); };
      if (!grid.by_lanes) {
        std::fill_n(to, W, number(u));
      } else {
        const int64_t lanes = std::min(W, grid.inner - u * W);
        for (int64_t i = 0; i < lanes; ++i) to[i] = number(grid.group_of[u * W + i]);
        std::fill(to + lanes, to + W, T(0));
      }
    }
  }
}

// Tasks in the order of their numbers, for threads that come for more when they are done: cores are not equally fast,
// since they differ in kind, or share what they have with other work. A run is half of a thread's share of what is
// left: long at first, since what lies one after another is read faster, and a single task in the end.
struct Run {
  int64_t begin, end;
};
class Queue {
 public:
  explicit Queue(int64_t tasks) : tasks_(tasks) {}
  // Empty when all tasks are taken.
  Run take(int64_t threads) {
    int64_t begin = next_, end;
    do {
      end = std::min(tasks_, begin + std::max<int64_t>(1, (tasks_ - begin) / (2 * threads)));
    } while (!next_.compare_exchange_weak(begin, end));
    return {begin, end};
  }

 private:
  const int64_t tasks_;
  std::atomic<int64_t> next_{0};
};

// Runs a sweep over all of x. `coeffs` and the result, which holds sums, have block_rows rows.
template <typename S>
Table sweep(unsigned pass, const Arguments& a, const Recurrence& recurrence, const Table& coeffs,
            const void* grad_output, void* out) {
  using T = compute_t<S>;
  const Isa isa = best_isa();
  const int64_t W = vector_bytes(isa) / static_cast<int64_t>(sizeof(T)), rows = block_rows(a, pass), block = rows * W;
  const Grid grid(a.layout, W, block * static_cast<int64_t>(sizeof(T)));

  const Walk kind = walked(pass, recurrence.kind);
  std::vector<T> A(recurrence.a.size()), B(A.size()), C(A.size());
  set_rows(recurrence, kind, A.data(), B.data(), C.data());
  constexpr T infinite = std::numeric_limits<T>::infinity();
  const bool edges = a.outside != Outside::extrapolate, mapped = edges || a.center != 0;
  const Mapping<T> mapping{static_cast<Edge>(a.outside), static_cast<T>(a.center),
                           edges ? static_cast<T>(a.lo) : -infinite, edges ? static_cast<T>(a.hi) : infinite};
  const Kernels<S> kernel = kernels<S>(pass, kind, a.degree(), !grid.by_lanes && !mapped, isa);
  const Sweep<S> s{pass,
                   static_cast<const S*>(a.x.const_data_ptr()),
                   static_cast<const S*>(grad_output),
                   static_cast<S*>(out),
                   kernel.steps,
                   kernels<T>(pass, kind, a.degree(), !mapped, isa).steps,
                   vectors_a_step(vector_bytes(isa), pass, kind),
                   {A.data(), B.data(), C.data()},
                   a.degree(),
                   mapped ? &mapping : nullptr,
                   static_cast<int>(rows),
                   grid.by_lanes,
                   grid.outer,
                   grid.units,
                   grid.inner,
                   grid.group_of.data()};

  const int64_t partial_size = has_sums(pass) ? rows * grid.task_groups : 0;
  const Buffer<double> partial(grid.tasks * partial_size);
  const int64_t grain = std::max<int64_t>(1, thread_numbers * grid.tasks / a.x.numel());
  Queue queue(grid.tasks);
  torch::stable::parallel_for(0, grid.tasks, grain, [&](int64_t begin, int64_t end) {
    const int64_t threads = ceil_div(grid.tasks, end - begin);
    // The blocks of one task at a time: those of all units would be W times the coefficients.
    const int64_t numbers = has_sums(pass) ? grid.unit_block * block : 0;
    const Buffer<T> blocks(grid.unit_block * block), sums(numbers);
    const Buffer<double> totals(numbers);
    int64_t expanded = -1;
    for (Run run = queue.take(threads); run.begin < run.end; run = queue.take(threads)) {
      for (int64_t index = run.begin; index < run.end; ++index) {
        const Task task = grid.task(index);
        if (expanded != task.unit_begin) {
          expand(coeffs, grid, task.unit_begin, task.unit_end, blocks.data());
          expanded = task.unit_begin;
        }
        kernel.run_task(s, task, blocks.data(), sums.data(), totals.data(), partial.data() + index * partial_size);
      }
    }
  });

  Table sums(has_sums(pass) ? rows : 0, grid.groups);
  for (int64_t index = 0; index < (has_sums(pass) ? grid.tasks : 0); ++index) {
    const Task task = grid.task(index);
    const double* from = partial.data() + index * partial_size;
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t g = task.group_begin; g < task.group_end; ++g) sums[k][g] += *from++;
    }
  }
  return sums;
}

Tensor slaf(const Tensor& x, const Tensor& coeffs, const Spec& spec) {
  const Arguments a(x, coeffs, spec);
  const Tensor y = a.empty_like_x();
  if (a.x.numel() == 0) return y;

  const Recurrence r = prepare(a.rows);
  const int64_t K = a.degree() + 1;
  const Table values = read_coeffs(a.coeffs, a.layout.groups);
  Table table(block_rows(a), a.layout.groups);
  for (int64_t k = 0; k < K; ++k) table.add(k, r.scale[k], values[k]);
  if (a.outside == Outside::linear) {
    const auto at_lo = derivatives_at(a.lo - a.center, a.rows), at_hi = derivatives_at(a.hi - a.center, a.rows);
    for (int64_t k = 0; k < K; ++k) {
      table.add(K, at_lo[k], values[k]);
      table.add(K + 1, at_hi[k], values[k]);
    }
  }
  dispatch_storage(a.x.scalar_type(),
                   [&](auto s) { sweep<decltype(s)>(forward, a, r, table, nullptr, y.mutable_data_ptr()); });
  return y;
}

// The gradient in the coefficients from the sums of grad_output psi_k and, beyond linear edges, of the distance.
Table coeffs_gradient_of(const Table& sums, const Arguments& a, const Recurrence& r) {
  const int64_t K = a.degree() + 1;
  Table gradient(K, sums.groups);
  for (int64_t k = 0; k < K; ++k) gradient.add(k, r.scale[k], sums[k]);
  if (a.outside == Outside::linear) {
    const auto at_lo = derivatives_at(a.lo - a.center, a.rows), at_hi = derivatives_at(a.hi - a.center, a.rows);
    for (int64_t k = 0; k < K; ++k) {
      // The sums may be infinite, and 0 * inf must not make a NaN.
      if (at_lo[k] != 0.0) gradient.add(k, at_lo[k], sums[K]);
      if (at_hi[k] != 0.0) gradient.add(k, at_hi[k], sums[K + 1]);
    }
  }
  return gradient;
}

std::tuple<Tensor, Tensor> slaf_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                         const Spec& spec, bool need_x, bool need_coeffs) {
  const Arguments a(x, coeffs, spec);
  const Tensor gy = a.lay_like_x(grad_output);
  const Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  const Tensor dcoeffs = empty(need_coeffs ? std::vector<int64_t>(shape.begin(), shape.end()) : std::vector<int64_t>{0},
                               coeffs, coeffs.scalar_type());
  const int64_t K = a.degree() + 1, groups = coeffs.numel() / K;
  if (a.x.numel() == 0 || !(need_x || need_coeffs)) {
    if (need_coeffs) write_coeffs(Table(K, groups), dcoeffs);
    return {dx, dcoeffs};
  }

  const Recurrence r = prepare(a.rows);
  Table slopes(block_rows(a), groups);  // D a, or a where p' is walked, with the scales of the walk
  bool by_walk = false;
  if (need_x) {
    const Table values = read_coeffs(a.coeffs, groups);
    const std::vector<double> D = usable_derivative_matrix(a.rows, a.lo - a.center, a.hi - a.center);
    by_walk = D.empty();
    for (int64_t k = 1; k < K; ++k) {
      if (by_walk) slopes.add(k, r.scale[k], values[k]);
      for (int64_t j = 0; j < k && !by_walk; ++j) {
        // D is half zeros where the basis respects parity, and 0 * inf must not make a NaN there.
        if (D[k * K + j] != 0.0) slopes.add(j, D[k * K + j] * r.scale[j], values[k]);
      }
    }
  }
  dispatch_storage(a.x.scalar_type(), [&](auto s) {
    using S = decltype(s);
    const void* seed = gy.const_data_ptr();
    void* out = need_x ? dx.mutable_data_ptr() : nullptr;
    unsigned pass = 0;
    if (need_x && !by_walk) pass |= input_gradient;
    // Half types have steps for both gradients alone, which are faster than tiles even if the sums are not wanted.
    if (need_coeffs || (pass != 0 && is_half<S>)) pass |= coeffs_gradient;
    if (by_walk) sweep<S>(walked_gradient, a, r, slopes, seed, out);
    if (pass == 0) return;
    const Table sums = sweep<S>(pass, a, r, slopes, seed, out);
    if (need_coeffs) write_coeffs(coeffs_gradient_of(sums, a, r), dcoeffs);
  });
  return {dx, dcoeffs};
}

// phi_0(x) .. phi_degree(x) at one point.
std::vector<double> values_at(double x, const std::vector<Row>& rows) {
  std::vector<double> phi{1.0};
  phi.reserve(rows.size() + 1);
  for (size_t k = 0; k < rows.size(); ++k) {
    phi.push_back((rows[k].a * x + rows[k].b) * phi[k] - (k > 0 ? rows[k].c * phi[k - 1] : 0.0));
  }
  return phi;
}

// For every group the mean of phi_k over a few of its elements: near enough to the mean of all, but for an unlucky
// sample, that sums of what is left lose no digits when the square of their mean is subtracted.
template <typename S>
Table sample_means(const Arguments& a) {
  const auto [outer, groups, inner] = a.layout;
  const int64_t members = outer * inner, samples = std::min<int64_t>(members, 32);
  Table means(a.degree() + 1, groups);
  const S* x = static_cast<const S*>(a.x.const_data_ptr());
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t member = i * members / samples;
      double t = static_cast<double>(widen(x[(member / inner * groups + g) * inner + member % inner]));
      if (a.outside != Outside::extrapolate) t = t < a.lo ? a.lo : t > a.hi ? a.hi : t;
      const std::vector<double> phi = values_at(t - a.center, a.rows);
      for (size_t k = 0; k < phi.size(); ++k) means[k][g] += phi[k] / static_cast<double>(samples);
    }
  }
  return means;
}

std::tuple<Tensor, Tensor> slaf_moments(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence,
                                        int64_t dim, double center, double lo, double hi, int64_t outside) {
  const Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
  a.check_normalized();
  const Tensor mean = empty_statistics(coeffs), variance = empty_statistics(coeffs);
  const int64_t K = a.degree() + 1, groups = coeffs.numel() / K;
  const double members = static_cast<double>(a.x.numel()) / static_cast<double>(groups);
  const Recurrence r = prepare(a.rows);
  bool overflowed = false;
  dispatch_storage(a.x.scalar_type(), [&](auto s) {
    using S = decltype(s);
    using T = compute_t<S>;
    const Table means = sample_means<S>(a);
    Table shifts(block_rows(a, moments), groups);
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t g = 0; g < groups; ++g) shifts[k][g] = static_cast<T>(means[k][g] / r.scale[k]);
    }
    auto* to_mean = static_cast<double*>(mean.mutable_data_ptr());
    auto* to_variance = static_cast<double*>(variance.mutable_data_ptr());
    // A sample that missed the mean by far is told by the sums, and a second sweep starts from their mean.
    bool far = true;
    for (int attempt = 0; far && !overflowed && attempt < 2; ++attempt) {
      const Table sums = sweep<S>(moments, a, r, shifts, nullptr, nullptr);
      far = false;
      for (int64_t k = 1; k < K; ++k) {
        for (int64_t g = 0; g < groups; ++g) {
          const double moved = sums[k][g] / members, square = sums[K + k][g] / members;
          const double spread = std::max(square - moved * moved, 0.0);
          far = far || moved * moved > 16 * spread;
          overflowed = overflowed || !std::isfinite(square);
          to_mean[g * (K - 1) + k - 1] = r.scale[k] * (shifts[k][g] + moved);
          to_variance[g * (K - 1) + k - 1] = r.scale[k] * r.scale[k] * spread;
          shifts[k][g] = static_cast<T>(shifts[k][g] + moved);
        }
      }
    }
  });
  // float32 does not hold every square of a phi_k that it holds.
  if (overflowed && a.x.scalar_type() != ScalarType::Double)
    return slaf_moments(as_double(a.x), as_double(a.coeffs), recurrence, dim, center, lo, hi, outside);
  return {mean, variance};
}

Tensor slaf_fold(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps, bool in_double) {
  const Folding a(coeffs, mean, variance, eps, in_double);
  Table table = read_coeffs(a.coeffs, a.groups);
  for (int64_t k = 1; k <= a.degree; ++k) {
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t i = g * a.degree + k - 1;
      table[k][g] = folded(table[k][g], a.mean[i], a.variance[i], a.eps, a.rounding);
      table[0][g] -= table[k][g] * a.mean[i];
    }
  }
  write_coeffs(table, a.folded);
  return a.folded;
}

// From such a variance on, float32 does not hold what goes with its inverse.
constexpr double large_variance = 0x1p80;

// With s_k = sqrt(variance_k + eps), z_k = (phi_k - mean_k) / s_k and m elements a group,
//     dbias = sum g,   dw_k = sum g z_k,   dx = sum_k phi_k' w_k / s_k (g - dbias / m - z_k dw_k / m).
std::tuple<Tensor, Tensor> slaf_normalized_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                                    const Tensor& mean, const Tensor& variance,
                                                    const std::vector<double>& recurrence, int64_t dim, double center,
                                                    double lo, double hi, int64_t outside, double eps, bool need_x) {
  const Arguments a(x, coeffs, {recurrence, dim, center, lo, hi, outside});
  a.check_normalized();
  check_statistics(mean, "mean", coeffs);
  check_statistics(variance, "variance", coeffs);
  check_eps(eps);
  const Tensor gy = a.lay_like_x(grad_output);
  Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  Tensor dcoeffs = empty(std::vector<int64_t>(shape.begin(), shape.end()), coeffs, coeffs.scalar_type());
  const int64_t K = a.degree() + 1, groups = coeffs.numel() / K;
  const double members = static_cast<double>(a.x.numel()) / static_cast<double>(groups);
  const Recurrence r = prepare(a.rows);
  const Table values = read_coeffs(a.coeffs, groups);
  const auto* means = static_cast<const double*>(mean.const_data_ptr());
  const auto* variances = static_cast<const double*>(variance.const_data_ptr());
  if (a.x.scalar_type() != ScalarType::Double &&
      std::any_of(variances, variances + variance.numel(), [](double t) { return t > large_variance; })) {
    const auto [wide_dx, wide_dcoeffs] =
        slaf_normalized_backward(as_double(gy), as_double(a.x), as_double(a.coeffs), mean, variance, recurrence, dim,
                                 center, lo, hi, outside, eps, need_x);
    if (need_x) torch::stable::copy_(dx, wide_dx);
    torch::stable::copy_(dcoeffs, wide_dcoeffs);
    return {dx, dcoeffs};
  }
  dispatch_storage(a.x.scalar_type(), [&](auto s) {
    using S = decltype(s);
    using T = compute_t<S>;
    Table shifts(block_rows(a, centered_gradient), groups);
    for (int64_t k = 1; k < K; ++k) {
      for (int64_t g = 0; g < groups; ++g) shifts[k][g] = static_cast<T>(means[g * (K - 1) + k - 1] / r.scale[k]);
    }
    const Table sums = sweep<S>(centered_gradient, a, r, shifts, gy.const_data_ptr(), nullptr);
    Table gradient(K, groups), factors(block_rows(a, normalized_gradient), groups);
    gradient.add(0, 1.0, sums[0]);
    for (int64_t k = 1; k < K; ++k) {
      for (int64_t g = 0; g < groups; ++g) {
        const double mu = means[g * (K - 1) + k - 1], s_k = std::sqrt(variances[g * (K - 1) + k - 1] + eps);
        const double scale = r.scale[k], total = sums[0][g];
        // The sums were centred at a rounded mean.
        const double dw = scale * (sums[k][g] + (shifts[k][g] - mu / scale) * total) / s_k;
        const double weight = values[k][g] / s_k, v = -weight * dw / (members * s_k);
        gradient[k][g] = dw;
        factors[k][g] = scale * weight;
        factors[K + k][g] = scale * (-weight * total / members - v * mu);
        factors[2 * K + k][g] = scale * scale * v;
      }
    }
    write_coeffs(gradient, dcoeffs);
    if (need_x) sweep<S>(normalized_gradient, a, r, factors, gy.const_data_ptr(), dx.mutable_data_ptr());
  });
  return {dx, dcoeffs};
}

}  // namespace
}  // namespace slaf_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CPU, m) {
  slaf_ext::PlainForm<&slaf_ext::cpu::slaf, &slaf_ext::cpu::slaf_backward>::register_in(m);
  m.impl("slaf_moments", TORCH_BOX(&slaf_ext::cpu::slaf_moments));
  m.impl("slaf_fold", TORCH_BOX(&slaf_ext::cpu::slaf_fold));
  m.impl("slaf_normalized_backward", TORCH_BOX(&slaf_ext::cpu::slaf_normalized_backward));
}
