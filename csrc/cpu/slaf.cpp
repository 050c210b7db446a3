// The operators on the CPU: how the work is cut, and the coefficients before and after the sweep.
#include "../ops.h"
#include "isa.h"
#include "sweep.h"

namespace slaf_ext::cpu {
namespace {

constexpr int64_t long_group = 32;         // numbers from which a group is a unit of its own
constexpr int64_t task_numbers = 16384;    // about as many in a task, for a group that is long,
constexpr int64_t task_rows = 4096;        // and as many rows where it is short
constexpr int64_t thread_numbers = 32768;  // less is not worth another thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a layout is cut into units and tasks. It depends on the sizes alone, never on the number of
// threads, so that sums are always added in the same order.
struct Grid {
  Grid(const Layout& l, int64_t W, int64_t block_bytes) : by_lanes(l.inner < long_group && l.groups > 1) {
    // Blocks of coefficients and of sums for the units of one task stay in L1.
    const int64_t fitting = std::max<int64_t>(1, 12288 / (2 * block_bytes));
    if (by_lanes) {
      outer = l.outer;
      inner = l.groups * l.inner;
      units = ceil_div(inner, W);
      outer_block = std::min(outer, task_rows);
      inner_block = inner;
      unit_block = std::min({fitting, units, int64_t{16}});
    } else {
      outer = l.outer;
      units = l.groups;
      inner = l.inner;
      inner_block = std::min(inner, task_numbers);
      outer_block = std::min(outer, ceil_div(task_numbers, inner_block));
      unit_block = std::clamp<int64_t>(task_numbers / (inner_block * outer_block), 1, std::min(fitting, units));
    }
    inner_blocks = ceil_div(inner, inner_block);
    unit_blocks = ceil_div(units, unit_block);
    cells = ceil_div(outer, outer_block) * inner_blocks;
  }

  int64_t tasks() const { return cells * unit_blocks; }
  int64_t cell(int64_t task) const { return task / unit_blocks; }

  Task task(int64_t index) const {
    const int64_t u = index % unit_blocks * unit_block;
    const int64_t i = cell(index) % inner_blocks * inner_block, o = cell(index) / inner_blocks * outer_block;
    return {o, std::min(outer, o + outer_block), u, std::min(units, u + unit_block),
            i, std::min(inner, i + inner_block)};
  }

  // The group that the coefficients of a lane belong to.
  int64_t group(const Layout& l, int64_t unit, int64_t lane, int64_t W) const {
    return by_lanes ? std::min(unit * W + lane, inner - 1) / l.inner : unit;
  }

  bool by_lanes;
  int64_t outer, units, inner;
  int64_t outer_block, unit_block, inner_block;
  int64_t inner_blocks, unit_blocks;
  int64_t cells;  // partial sums that a unit has
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

double widen(double t) { return t; }
double widen(float t) { return t; }
template <typename S>
double widen(S t) {
  const S padded[4] = {t};
  return load<float, 16>(padded)[0];
}
void narrow(double* to, double t) { *to = t; }
void narrow(float* to, double t) { *to = static_cast<float>(t); }
template <typename S>
void narrow(S* to, double t) {
  S padded[4];
  store(padded, Vector<float, 16>{static_cast<float>(t)});
  *to = padded[0];
}

// The coefficients, (groups, K).
std::vector<double> read_coeffs(const Tensor& coeffs) {
  std::vector<double> values(coeffs.numel());
  dispatch_storage(coeffs.scalar_type(), [&](auto s) {
    const auto* from = static_cast<const decltype(s)*>(coeffs.const_data_ptr());
    for (size_t i = 0; i < values.size(); ++i) values[i] = widen(from[i]);
  });
  return values;
}

void write_coeffs(const std::vector<double>& values, const Tensor& coeffs) {
  dispatch_storage(coeffs.scalar_type(), [&](auto s) {
    auto* to = static_cast<decltype(s)*>(coeffs.mutable_data_ptr());
    for (size_t i = 0; i < values.size(); ++i) narrow(to + i, values[i]);
  });
}

// The rows of a block: K for the walk and, with linear edges, two for what lies beyond them.
int64_t block_rows(const Arguments& a) { return a.degree() + (a.outside == Outside::linear ? 3 : 1); }

template <Walk kind, unsigned pass>
struct StepsBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    steps<kind, bytes, pass>(a...);
  }
};

template <unsigned pass>
struct TaskBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    run_task<bytes, pass>(a...);
  }
};

template <unsigned pass, typename T>
Steps<T> steps_for(Walk kind, Isa isa) {
  switch (kind) {
    case Walk::scaled: return compiled_for<StepsBody<Walk::scaled, pass>, Steps<T>>(isa);
    case Walk::uniform: return compiled_for<StepsBody<Walk::uniform, pass>, Steps<T>>(isa);
    case Walk::product: return compiled_for<StepsBody<Walk::product, pass>, Steps<T>>(isa);
    case Walk::power: return compiled_for<StepsBody<Walk::power, pass>, Steps<T>>(isa);
    default: return compiled_for<StepsBody<Walk::general, pass>, Steps<T>>(isa);
  }
}

// Runs a sweep over all of x. `coeffs` and the result, which holds sums, have the shape (groups, block_rows).
template <unsigned pass, typename S>
std::vector<double> sweep(const Arguments& a, const Recurrence& recurrence, const std::vector<double>& coeffs,
                          const void* grad_output, void* out) {
  using T = compute_t<S>;
  const Isa isa = best_isa();
  const int64_t W = vector_bytes(isa) / static_cast<int64_t>(sizeof(T)), rows = block_rows(a), block = rows * W;
  const Grid grid(a.layout, W, block * static_cast<int64_t>(sizeof(T)));

  std::vector<T> expanded(grid.units * block);
  for (int64_t u = 0; u < grid.units; ++u) {
    for (int64_t lane = 0; lane < W; ++lane) {
      const double* from = &coeffs[grid.group(a.layout, u, lane, W) * rows];
      for (int64_t k = 0; k < rows; ++k) expanded[u * block + k * W + lane] = static_cast<T>(from[k]);
    }
  }
  const std::vector<T> A(recurrence.a.begin(), recurrence.a.end()), B(recurrence.b.begin(), recurrence.b.end()),
      C(recurrence.c.begin(), recurrence.c.end());
  const Sweep<S> s{static_cast<const S*>(a.x.const_data_ptr()),
                   static_cast<const S*>(grad_output),
                   static_cast<S*>(out),
                   steps_for<pass, T>(recurrence.kind, isa),
                   {A.data(), B.data(), C.data()},
                   a.degree(),
                   static_cast<T>(a.center),
                   static_cast<T>(a.lo),
                   static_cast<T>(a.hi),
                   static_cast<Edge>(a.outside),
                   expanded.data(),
                   static_cast<int>(rows),
                   grid.by_lanes,
                   grid.outer,
                   grid.units,
                   grid.inner};

  constexpr bool has_sums = (pass & coeffs_gradient) != 0;
  const int64_t cell_size = grid.units * block;
  std::vector<double> partial(has_sums ? grid.cells * cell_size : 0);
  const int64_t grain = std::max<int64_t>(1, thread_numbers * grid.tasks() / a.x.numel());
  const auto run = compiled_for<TaskBody<pass>, void (*)(const Sweep<S>&, const Task&, double*, T*, T*)>(isa);
  torch::stable::parallel_for(0, grid.tasks(), grain, [&](int64_t begin, int64_t end) {
    std::vector<T> room(grid.unit_block * block + 2 * 160 * W);
    T *sums = room.data(), *scratch = sums + grid.unit_block * block;
    for (int64_t index = begin; index < end; ++index) {
      const Task task = grid.task(index);
      double* own = has_sums ? &partial[grid.cell(index) * cell_size + task.unit_begin * block] : nullptr;
      run(s, task, own, sums, scratch);
    }
  });

  std::vector<double> totals(has_sums ? coeffs.size() : 0);
  if constexpr (has_sums) {
    for (int64_t c = 1; c < grid.cells; ++c) {
      for (int64_t i = 0; i < cell_size; ++i) partial[i] += partial[c * cell_size + i];
    }
    for (int64_t u = 0; u < grid.units; ++u) {
      const int64_t lanes = grid.by_lanes ? std::min(W, grid.inner - u * W) : W;
      for (int64_t k = 0; k < rows; ++k) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          totals[grid.group(a.layout, u, lane, W) * rows + k] += partial[u * block + k * W + lane];
        }
      }
    }
  }
  return totals;
}

Tensor slaf(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence, int64_t dim, double center,
            double lo, double hi, int64_t outside) {
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  const Tensor y = a.empty_like_x();
  if (a.x.numel() == 0) return y;

  const Recurrence r = prepare(a.rows);
  const std::vector<double> values = read_coeffs(a.coeffs);
  const int64_t K = a.degree() + 1, rows = block_rows(a);
  std::vector<double> table(a.layout.groups * rows);
  for (int64_t g = 0; g < a.layout.groups; ++g) {
    for (int64_t k = 0; k < K; ++k) table[g * rows + k] = values[g * K + k] * r.scale[k];
  }
  if (a.outside == Outside::linear) {
    const auto at_lo = derivatives_at(a.lo - a.center, a.rows), at_hi = derivatives_at(a.hi - a.center, a.rows);
    for (int64_t g = 0; g < a.layout.groups; ++g) {
      for (int64_t k = 0; k < K; ++k) {
        table[g * rows + K] += values[g * K + k] * at_lo[k];
        table[g * rows + K + 1] += values[g * K + k] * at_hi[k];
      }
    }
  }
  dispatch_storage(a.x.scalar_type(),
                   [&](auto s) { sweep<forward, decltype(s)>(a, r, table, nullptr, y.mutable_data_ptr()); });
  return y;
}

std::tuple<Tensor, Tensor> slaf_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                         const std::vector<double>& recurrence, int64_t dim, double center, double lo,
                                         double hi, int64_t outside, bool need_x, bool need_coeffs) {
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  const Tensor gy = a.lay_like_x(grad_output);
  const Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  const Tensor dcoeffs = empty(need_coeffs ? std::vector<int64_t>(shape.begin(), shape.end()) : std::vector<int64_t>{0},
                               coeffs, coeffs.scalar_type());
  const int64_t K = a.degree() + 1, rows = block_rows(a), groups = coeffs.numel() / K;
  std::vector<double> gradient(groups * K);
  if (a.x.numel() > 0 && (need_x || need_coeffs)) {
    const Recurrence r = prepare(a.rows);
    std::vector<double> table(groups * rows), sums;
    if (need_x) {
      const std::vector<double> values = read_coeffs(a.coeffs), D = derivative_matrix(a.rows);
      for (int64_t g = 0; g < groups; ++g) {
        const auto d = derivative(D, &values[g * K], K);
        for (int64_t k = 0; k < K; ++k) table[g * rows + k] = d[k] * r.scale[k];
      }
    }
    dispatch_storage(a.x.scalar_type(), [&](auto s) {
      using S = decltype(s);
      const void* seed = gy.const_data_ptr();
      void* out = need_x ? dx.mutable_data_ptr() : nullptr;
      if (need_x && need_coeffs) {
        sums = sweep<input_gradient | coeffs_gradient, S>(a, r, table, seed, out);
      } else if (need_x) {
        sweep<input_gradient, S>(a, r, table, seed, out);
      } else {
        sums = sweep<coeffs_gradient, S>(a, r, table, seed, out);
      }
    });
    if (need_coeffs) {
      const bool linear = a.outside == Outside::linear;
      const auto at_lo = derivatives_at(a.lo - a.center, a.rows), at_hi = derivatives_at(a.hi - a.center, a.rows);
      for (int64_t g = 0; g < groups; ++g) {
        const double* sum = &sums[g * rows];
        for (int64_t k = 0; k < K; ++k) {
          gradient[g * K + k] = sum[k] * r.scale[k] + (linear ? sum[K] * at_lo[k] + sum[K + 1] * at_hi[k] : 0.0);
        }
      }
    }
  }
  if (need_coeffs) write_coeffs(gradient, dcoeffs);
  return {dx, dcoeffs};
}

}  // namespace
}  // namespace slaf_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CPU, m) {
  m.impl("slaf", TORCH_BOX(&slaf_ext::cpu::slaf));
  m.impl("slaf_backward", TORCH_BOX(&slaf_ext::cpu::slaf_backward));
}
