// Degrees too high for registers, free of torch: tables and sums lie in memory. Each warp, or each thread where columns
// are read, has its own partial sums.
#pragma once

#include "kernel.cuh"

namespace slaf_ext::cuda {

constexpr int long_unroll = 4;  // items of one element that a thread computes side by side

// Values that reach the device as the argument of a kernel.
struct Upload {
  static constexpr int capacity = 3500;  // an argument holds 32,764 bytes
  int count;
  double values[capacity];
};

// static: each file that launches it has its own copy.
static __global__ void __launch_bounds__(max_threads) copy_upload(const __grid_constant__ Upload upload, double* to) {
  for (int i = static_cast<int>(threadIdx.x); i < upload.count; i += static_cast<int>(blockDim.x)) {
    to[i] = upload.values[i];
  }
}

// The tables in memory, and what they are computed from.
template <typename T>
struct LongTables {
  const double* rows;     // all a, all b, all c
  const double* weights;  // as walk_coeff takes them
  const void* coeffs;
  Storage coeffs_type;
  int degree, slots;
  int64_t groups;
  bool of_value;
  T* table;        // the rows in T
  T* walk_coeffs;  // `slots` for each group
};

template <typename T>
__global__ void __launch_bounds__(max_threads) make_tables(const LongTables<T> t) {
  const int64_t all = blockDim.x * static_cast<int64_t>(gridDim.x);
  const int64_t first = blockDim.x * static_cast<int64_t>(blockIdx.x) + threadIdx.x;
  for (int64_t i = first; i < 3 * t.degree; i += all) t.table[i] = static_cast<T>(t.rows[i]);
  for (int64_t i = first; i < t.slots * t.groups; i += all) {
    const int64_t group = i / t.slots;
    const auto coeff = [&](int k) { return read(t.coeffs, t.coeffs_type, group * (t.degree + 1) + k); };
    t.walk_coeffs[i] =
        static_cast<T>(walk_coeff(static_cast<int>(i % t.slots), t.degree, t.of_value, t.weights, coeff));
  }
}

// A thread's elements, of which it takes `long_unroll` in a turn, and its partial sums.
template <Access access, typename S, typename T = compute_t<S>>
struct LongPart {
  using P = Pack<T, long_unroll>;

  __device__ __forceinline__ explicit LongPart(const Sweep<S>& s) : sweep(s), at(s.partition) {
    const Partition& p = s.partition;
    const int thread = static_cast<int>(threadIdx.x);
    constexpr bool has_columns = access == Access::columns;
    column = at.column + at.local;
    group = column < p.columns ? column / p.inner : 0;
    source = has_columns ? int64_t{at.split} * p.threads_down + at.first
                         : int64_t{at.split} * (p.threads / 32) + thread / 32;
    writes = has_columns ? column < p.columns : thread % 32 == 0;
    // The same for all threads, as warps add their sums.
    const uint32_t step = at.stride * long_unroll;
    turns = (p.share + step - 1) / step;
  }
  __device__ __forceinline__ uint32_t item(int turn, int u) const {
    return at.first + (turn * long_unroll + u) * at.stride;
  }
  // Calls f(u, index) for the valid elements of a turn.
  template <typename F>
  __device__ __forceinline__ void for_elements(int turn, const F& f) const {
#pragma unroll
    for (int u = 0; u < long_unroll; ++u) {
      const uint32_t i = item(turn, u);
      if (i < at.count) f(u, at.base + at.offset(i));
    }
  }
  __device__ __forceinline__ P read(const S* from, int turn) const {
    P p{};
    for_elements(turn, [&](int u, int64_t i) { p.v[u] = Item<S, 1>{{from[i]}}.widen().v[0]; });
    return p;
  }
  __device__ __forceinline__ void write(int turn, const P& p) const {
    for_elements(turn, [&](int u, int64_t i) { sweep.out[i] = Item<S, 1>::narrow({{p.v[u]}}).at[0]; });
  }
  // The sum over the threads that share partial sums.
  __device__ __forceinline__ T combine(T sum) const { return access == Access::columns ? sum : warp_sum(sum); }
  __device__ __forceinline__ T& partial(int slot) const { return sweep.partials(slot, source, column); }
  __device__ __forceinline__ void add(int slot, T sum, bool is_first) const {
    sum = combine(sum);
    if (writes) partial(slot) = is_first ? sum : partial(slot) + sum;
  }

  const Sweep<S>& sweep;
  const ThreadItems<access> at;
  int64_t column, group, source;
  bool writes;
  int turns;
};

// Coefficients and sums as `evaluate` uses them.
template <typename Part, typename T>
struct LongColumns {
  template <typename P>
  __device__ __forceinline__ P coeff(int k) const {
    return P::of(coeffs[k]);
  }
  template <typename P>
  __device__ __forceinline__ P slot(int i) const {
    return coeff<P>(i);
  }
  template <typename P>
  __device__ __forceinline__ void add(int k, const P& terms) const {
    if (has_sums) part.add(k, terms.total(), is_first);
  }
  template <typename P>
  __device__ __forceinline__ void add_beyond(const P& below, const P& above) const {
    if (!has_sums) return;
    part.add(part.sweep.degree + 1, below.total(), is_first);
    part.add(part.sweep.degree + 2, above.total(), is_first);
  }

  const Part& part;
  const T* coeffs;
  bool has_sums, is_first;
};

template <typename Form, typename S, typename T = compute_t<S>>
__global__ void __launch_bounds__(max_threads, 2)
    long_sweep(const __grid_constant__ Sweep<S> s, const __grid_constant__ LongTables<T> tables) {
  using Part = LongPart<Form::access, S>;
  using P = typename Part::P;
  const Part part(s);
  const Rows<T> table{tables.table, tables.table + s.degree, tables.table + 2 * s.degree};
  LongColumns<Part, T> columns{part, tables.walk_coeffs + part.group * tables.slots, s.partials.at != nullptr, true};
  for (int turn = 0; turn < part.turns; ++turn) {
    columns.is_first = turn == 0;
    P grad_output{};
    if constexpr (Form::is_backward) grad_output = part.read(s.grad_output, turn);
    const P result = evaluate<Form, AnyDegree>(s, table, part.read(s.x, turn), grad_output, columns);
    if (s.out != nullptr) part.write(turn, result);
  }
}

}  // namespace slaf_ext::cuda
