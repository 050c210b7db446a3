// What a sweep over x is told, free of torch, and how a thread gets at its elements, coefficients and sums.
#pragma once

#include <algorithm>

#include "partition.h"
#include "reduce.cuh"
#include "storage.cuh"

namespace slaf_ext::cuda {

enum class Edge : int { extrapolate, zero, clamp, linear };

// What a kernel is compiled for.
template <Walk walk_, bool is_backward_, bool has_edges_, Reading reading_, int width_>
struct Form {
  static constexpr Walk walk = walk_;
  static constexpr bool is_backward = is_backward_, has_edges = has_edges_;
  static constexpr Reading reading = reading_;
  static constexpr int width = width_;  // elements of an item
  static constexpr bool has_columns = reading == Reading::columns;
  static constexpr int lanes = has_columns ? width : 1;  // columns of a thread
};

// Coefficients of neighbouring columns lie an odd number apart, in different banks of shared memory.
SLAF_INLINE constexpr int coeff_pitch(int rows) { return rows | 1; }
// The numbers that they take, so that what follows is aligned.
SLAF_INLINE constexpr int shared_coeffs(int columns, int rows) { return (columns * coeff_pitch(rows) + 3) / 4 * 4; }

// Everything about a sweep but its tables.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  const S* x;
  const S* grad_output;  // null: forward
  S* out;                // y, or the gradient in x; null: not needed
  Partials<T> partials;  // of the sums of a column: with linear edges two more than coefficients
  int degree, rows;      // the coefficients of a column, as the walk takes them: two more in a forward
  Divisor by_rows;
  Edge edge;
  T center, lo, hi;  // the walk sees clamp(x, lo, hi) - center
  Partition partition;
};

// blockIdx.x, read anew each time: what is made of it before and after a loop takes no registers in between.
__device__ __forceinline__ uint32_t block_index() {
#ifdef __CUDA_ARCH__
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
#else
  return blockIdx.x;
#endif
}

// A thread's part of a sweep: items `first`, `first` + `stride`, ... below `count`, item i at `base` + offset(i).
template <Reading reading>
struct Place {
  __device__ __forceinline__ explicit Place(const Partition& p) : partition(p) {
    const uint32_t thread = threadIdx.x, block = block_index();
    cell = p.by_pieces.quotient(block);
    const uint32_t piece = block - cell * p.pieces, whole = p.by_parts.quotient(cell);
    const int64_t start = int64_t{cell - whole * p.parts} * p.share;
    if constexpr (reading == Reading::columns) {
      local = thread % p.across;
      first = thread / p.across;
      stride = p.down;
      column = int64_t{piece} * p.across;
      base = start * p.pitch + column + local;
      const int64_t left = column + local < p.pitch ? p.length - start : 0;
      count = static_cast<uint32_t>(left < p.share ? left : p.share);
    } else {
      local = 0;
      first = thread;
      stride = static_cast<uint32_t>(p.threads);
      column = piece;
      const int64_t run = int64_t{whole} * p.runs;
      base = (run * p.columns + piece) * p.length + start;
      const int64_t left = p.parts > 1 ? p.length - start : (p.outer - run) * p.length;
      count = static_cast<uint32_t>(left < p.share ? left : p.share);
    }
  }
  __device__ __forceinline__ uint32_t offset(uint32_t i) const {
    if constexpr (reading == Reading::columns) return i * static_cast<uint32_t>(partition.pitch);
    return i + partition.run.quotient(i) * partition.carry;
  }
  // Whether this is the block that takes the remainder.
  __device__ __forceinline__ bool is_last() const { return cell + 1 == partition.cells; }

  const Partition& partition;
  int64_t base, column;  // items; the first column of the block: of items, or the group
  uint32_t first, stride, count, local, cell;
};

// After this, what lies in shared memory is read again instead of being kept in registers.
__device__ __forceinline__ void forget_shared() {
#ifdef __CUDA_ARCH__
  asm volatile("" ::: "memory");
#endif
}

// Keeps a pointer in registers. The compiler would keep its parts, and add them up again for every item.
template <typename T>
__device__ __forceinline__ T* whole(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// A thread's elements: it reads `unroll` items in a turn, before it uses the first.
template <typename Form, int unroll, int highest, typename S>
struct Elements {
  using T = compute_t<S>;
  static constexpr bool has_grad = Form::is_backward;
  static constexpr int width = Form::width;
  // Elements that are computed side by side: few where many sums take the registers.
  static constexpr int together = std::min(width, highest > 16 ? 2 : 4);
  using Items = Item<S, width>;
  using P = Pack<T, together>;

  __device__ __forceinline__ explicit Elements(const Sweep<S>& s)
      : sweep(s),
        at(s.partition),
        x(whole(reinterpret_cast<const Items*>(s.x) + at.base)),
        grad_output(whole(reinterpret_cast<const Items*>(s.grad_output) + at.base)),
        out(whole(reinterpret_cast<Items*>(s.out) + at.base)) {
    read(at.first);
  }
  __device__ __forceinline__ bool has_items() const { return is_there[0]; }
  __device__ __forceinline__ void next() { read(i + unroll * at.stride); }

  // Calls f(x, grad_output, is_there) for the elements of the turn, and writes what it returns.
  template <typename F>
  __device__ __forceinline__ void map(bool writes, const F& f) {
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const Pack<T, width> from = x_items[u].widen();
      Pack<T, width> grad_from{}, result;
      if constexpr (has_grad) grad_from = grad_items[u].widen();
#pragma unroll
      for (int first = 0; first < width; first += together) {
        const auto part = [&](const auto& all) { return P::make([&](int e) { return all.v[first + e]; }); };
        const P y = f(part(from), part(grad_from), is_there[u]);
#pragma unroll
        for (int e = 0; e < together; ++e) result.v[first + e] = y.v[e];
      }
      if (is_there[u] && writes) out[place(u)] = Items::narrow(result);
    }
  }
  // The same for the remainder, the elements after the last whole item.
  template <typename F>
  __device__ __forceinline__ void map_ragged(bool writes, const F& f) {
    if constexpr (!Form::has_columns && width > 1) {
      const Partition& p = sweep.partition;
      if (static_cast<int>(threadIdx.x) >= p.ragged || !Place<Form::reading>(p).is_last()) return;
      using One = Item<S, 1>;
      const int64_t place = p.length * width + threadIdx.x;
      Pack<T, 1> grad_from{};
      if constexpr (has_grad) grad_from = One{{sweep.grad_output[place]}}.widen();
      const auto y = f(One{{sweep.x[place]}}.widen(), grad_from, true);
      if (writes) sweep.out[place] = One::narrow(y).at[0];
    }
  }

  // Items beyond the thread's share are zeros, which add nothing to its sums. The first of a turn needs none: a turn
  // that begins beyond the share is not computed.
  __device__ __forceinline__ void read(uint32_t first) {
    i = first;
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const uint32_t j = i + u * at.stride;
      is_there[u] = j < at.count;
      if (has_grad && u > 0) x_items[u] = grad_items[u] = {};
      if (!is_there[u]) continue;
      if constexpr (!Form::has_columns) offset[u] = at.offset(j);
      x_items[u] = x[place(u)];
      if constexpr (has_grad) grad_items[u] = grad_output[place(u)];
    }
  }
  // Where an item lies. For columns, to compute it again is cheaper than a register.
  __device__ __forceinline__ uint32_t place(int u) const {
    if constexpr (Form::has_columns) return at.offset(i + u * at.stride);
    return offset[u];
  }

  const Sweep<S>& sweep;
  const Place<Form::reading> at;
  const Items *x, *grad_output;
  Items* out;
  Items x_items[unroll] = {}, grad_items[has_grad ? unroll : 1] = {};
  uint32_t offset[Form::has_columns ? 1 : unroll] = {}, i = 0;
  bool is_there[unroll] = {};
};

// Adds terms of a thread's elements to its sums, of which each of its columns has one.
template <bool has_columns, typename Lanes, typename P>
SLAF_INLINE void accumulate(Lanes& sum, const P& terms) {
  if constexpr (has_columns)
    sum = sum + terms;
  else
    sum.v[0] += terms.total();
}

// The same for the squares of terms.
template <bool has_columns, typename Lanes, typename T, int n>
SLAF_INLINE void accumulate_squares(Lanes& sum, const Pack<T, n>& terms) {
#pragma unroll
  for (int i = 0; i < n; ++i) sum.v[has_columns ? i : 0] += terms.v[i] * terms.v[i];
}

// The columns of a block, or its group, and their coefficients in shared memory.
template <typename Form, typename T>
struct Block {
  template <typename S>
  __device__ __forceinline__ Block(const Sweep<S, T>& s, const Place<Form::reading>& at)
      : partition(s.partition),
        by_rows(s.by_rows),
        rows(s.rows),
        pitch(coeff_pitch(rows)),
        columns(Form::has_columns ? static_cast<int>(partition.across) * Form::width : 1),
        first(at.column * Form::lanes),
        group(Form::has_columns ? first / partition.inner : first),
        shared(shared_memory<T>()),
        own(shared + at.local * Form::lanes * pitch) {}

  // Copies the coefficients of the block's groups, `count` of each, into the workspace. Ends with a barrier.
  __device__ __forceinline__ const double* stage(const void* coeffs, Storage type, int count) const {
    double* const to = reinterpret_cast<double*>(workspace());
    const int64_t left = partition.columns - first;
    const int groups = group_of(static_cast<int>(left < columns ? left : columns) - 1) + 1;
    for_threads(groups * count, [&](int i) { to[i] = read(coeffs, type, group * count + i); });
    return to;
  }
  // Calls f(coefficients, r, g) to make number r of the coefficients of a column, which is of the block's g-th group.
  // Ends with a barrier.
  template <typename F>
  __device__ __forceinline__ void for_coeffs(const F& f) const {
    for_threads(columns * rows, [&](int i) {
      const int local = Form::has_columns ? static_cast<int>(by_rows.quotient(i)) : 0;
      if (first + local < partition.columns) f(shared + local * pitch, i - local * rows, group_of(local));
    });
  }
  // Row r of the coefficients, for elements of this thread.
  template <typename P>
  __device__ __forceinline__ P row(int r) const {
    return P::make([&](int i) { return own[(Form::has_columns ? i : 0) * pitch + r]; });
  }
  // The first `used` of the sums that every thread has, added over the block: sink(i, local, total).
  template <typename Sums, typename Sink>
  __device__ __forceinline__ void reduce(const Sums& sums, int used, const Sink& sink) const {
    if constexpr (Form::has_columns) {
      reduce_columns<Form::width>(sums, used, static_cast<int>(partition.across), workspace(), sink);
    } else {
      reduce_group(sums, used, workspace(), sink);
    }
  }
  // The sums of a column, for the kernel that adds up those of all blocks.
  __device__ __forceinline__ void store(const Partials<T>& partials, int row, uint32_t cell, int local, T total) const {
    if (first + local < partition.columns) partials(row, cell, first + local) = total;
  }

  // What lies in shared memory behind the coefficients.
  __device__ __forceinline__ T* workspace() const { return shared + shared_coeffs(columns, rows); }
  // The group of a column, counted from the block's first.
  __device__ __forceinline__ int group_of(int local) const {
    if constexpr (!Form::has_columns) return 0;
    const auto into = static_cast<uint32_t>(first - group * partition.inner);
    return static_cast<int>(partition.by_inner.quotient(into + local));
  }
  // Calls f(i) for every i below `count`, shared out among the threads. Ends with a barrier.
  template <typename F>
  __device__ __forceinline__ void for_threads(int count, const F& f) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) f(i);
    __syncthreads();
  }

  const Partition& partition;
  const Divisor by_rows;
  int rows, pitch, columns;
  int64_t first, group;
  T *shared, *own;
};

}  // namespace slaf_ext::cuda
