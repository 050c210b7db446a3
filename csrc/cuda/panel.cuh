// Panels of the layer with a polynomial on every edge, free of torch. A thread serves an element at a time;
// neighbouring threads serve neighbouring columns, whose terms of one degree are side by side.
#pragma once

#include "../panel.h"
#include "launch.h"

namespace slaf_ext::cuda {

template <typename S, typename T = compute_t<S>>
struct PanelSweep {
  const S *x, *grad_terms;
  S* out;
  int64_t elements, columns;
  Terms<T> terms;                // without its rows, which a block reads to shared memory: all a, all b, all c
  const double* rows_in_memory;  // null where they fit below
  double rows[3 * 32];
};

template <bool is_expansion, typename S>
__global__ void __launch_bounds__(max_threads) sweep_panel(const __grid_constant__ PanelSweep<S> p) {
  using T = compute_t<S>;
  Terms<T> terms = p.terms;
  const int degree = terms.degree;
  T* const table = shared_memory<T>();
  for (int i = static_cast<int>(threadIdx.x); i < 3 * degree; i += static_cast<int>(blockDim.x)) {
    table[i] = static_cast<T>(p.rows_in_memory != nullptr ? p.rows_in_memory[i] : p.rows[i]);
  }
  __syncthreads();
  terms.rows = {table, table + degree, table + 2 * degree};

  const int64_t step = blockDim.x * static_cast<int64_t>(gridDim.x);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < p.elements; i += step) {
    const int64_t row = i / p.columns, first = row * p.columns * degree + (i - row * p.columns);
    const T x = Item<S, 1>{{p.x[i]}}.widen().v[0];
    if constexpr (is_expansion) {
      terms.expand(x, [&](int k, T phi) { p.out[first + (k - 1) * p.columns] = Item<S, 1>::narrow({{phi}}).at[0]; });
    } else {
      const T sum = terms.contract(
          x, [&](int k) { return Item<S, 1>{{p.grad_terms[first + (k - 1) * p.columns]}}.widen().v[0]; });
      p.out[i] = Item<S, 1>::narrow({{sum}}).at[0];
    }
  }
}

template <bool is_expansion, typename S, typename Device>
void launch_panel(const Panel& p, Device& device) {
  using T = compute_t<S>;
  std::vector<double> rows;
  for (const Row& row : p.recurrence) rows.push_back(row.a);
  for (const Row& row : p.recurrence) rows.push_back(row.b);
  for (const Row& row : p.recurrence) rows.push_back(row.c);
  PanelSweep<S> sweep{static_cast<const S*>(p.x),
                      static_cast<const S*>(p.grad_terms),
                      static_cast<S*>(p.out),
                      p.rows * p.columns,
                      p.columns,
                      p.terms<T>(nullptr, nullptr, nullptr),
                      nullptr,
                      {}};
  put_values(rows, sweep.rows, sweep.rows_in_memory, device);
  constexpr int64_t most_blocks = 32;  // of a multiprocessor: four waves of eight
  const int64_t blocks = std::min(ceil_div(sweep.elements, device.threads()), most_blocks * device.multiprocessors());
  device.launch(sweep_panel<is_expansion, S>, blocks, device.threads(), static_cast<int64_t>(rows.size() * sizeof(T)),
                sweep);
}

}  // namespace slaf_ext::cuda
