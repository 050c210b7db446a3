// The arguments of a sweep over x, free of torch, and how a thread gets at its elements, coefficients and sums.
#pragma once

#include <algorithm>

#include "partition.h"
#include "reduce.cuh"
#include "storage.cuh"

namespace slaf_ext::cuda {

// What a sweep is compiled for.
template <Walk walk_, bool is_backward_, bool has_edges_, Access access_, int width_>
struct Form {
  static constexpr Walk walk = walk_;
  static constexpr bool is_backward = is_backward_, has_edges = has_edges_;
  static constexpr Access access = access_;
  static constexpr int width = width_;  // elements of an item
  static constexpr bool has_columns = access == Access::columns;
  static constexpr int lanes = has_columns ? width : 1;  // columns of a thread
};

// The pitch of the coefficients of neighbouring columns is odd, so that they lie in different banks of shared memory.
SLAF_INLINE constexpr int coeff_pitch(int slots) { return slots | 1; }
// The elements of shared memory that they take, rounded up so that what follows is aligned.
SLAF_INLINE constexpr int shared_coeffs(int columns, int slots) { return (columns * coeff_pitch(slots) + 3) / 4 * 4; }

// Everything about a sweep but its tables.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  const S* x;
  const S* grad_output;  // null: forward
  S* out;                // y, or the gradient in x; null: not needed
  Partials<T> partials;
  int degree, slots;  // slots: coefficients of a column, as the walk takes them
  Divisor by_slots;
  Outside outside;
  T center, lo, hi;  // the walk sees clamp(x, lo, hi) - center
  Partition partition;
};

// blockIdx.x, read again each time, so that what is computed from it takes no registers during a loop.
__device__ __forceinline__ uint32_t block_index() {
#ifdef __CUDA_ARCH__
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
#else
  return blockIdx.x;
#endif
}

// A thread's items: `first`, `first` + `stride`, ... below `count`, item i at `base` + offset(i).
template <Access access>
struct ThreadItems {
  __device__ __forceinline__ explicit ThreadItems(const Partition& p) : partition(p) {
    const uint32_t thread = threadIdx.x, block = block_index();
    split = p.by_column_blocks.quotient(block);
    const uint32_t column_block = block - split * p.column_blocks, whole = p.by_run_splits.quotient(split);
    const int64_t start = int64_t{split - whole * p.run_splits} * p.share;
    if constexpr (access == Access::columns) {
      local = thread % p.threads_across;
      first = thread / p.threads_across;
      stride = p.threads_down;
      column = int64_t{column_block} * p.threads_across;
      base = start * p.pitch + column + local;
      const int64_t left = column + local < p.pitch ? p.length - start : 0;
      count = static_cast<uint32_t>(left < p.share ? left : p.share);
    } else {
      local = 0;
      first = thread;
      stride = static_cast<uint32_t>(p.threads);
      column = column_block;
      const int64_t run = int64_t{whole} * p.runs;
      base = (run * p.columns + column_block) * p.length + start;
      const int64_t left = p.run_splits > 1 ? p.length - start : (p.outer - run) * p.length;
      count = static_cast<uint32_t>(left < p.share ? left : p.share);
    }
  }
  __device__ __forceinline__ uint32_t offset(uint32_t i) const {
    if constexpr (access == Access::columns) return i * static_cast<uint32_t>(partition.pitch);
    return i + partition.run.quotient(i) * partition.carry;
  }
  // Whether this is the block that takes the remainder.
  __device__ __forceinline__ bool is_last() const { return split + 1 == partition.splits; }

  const Partition& partition;
  int64_t base, column;  // items; the first column of the block: of items, or the group
  uint32_t first, stride, count, local, split;
};

// Makes the compiler read shared memory again instead of keeping its values in registers.
__device__ __forceinline__ void reload_shared() {
#ifdef __CUDA_ARCH__
  asm volatile("" ::: "memory");
#endif
}

// Keeps a pointer in registers; the compiler would keep its terms, and add them again for every item.
template <typename T>
__device__ __forceinline__ T* in_registers(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// The same for shared memory, whose address the compiler would find again in every basic block.
template <typename T>
__device__ __forceinline__ T* shared_in_registers(T* pointer) {
#ifdef __CUDA_ARCH__
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
  asm("" : "+r"(address));
  pointer = static_cast<T*>(__cvta_shared_to_generic(address));
#endif
  return pointer;
}

// A thread's elements. In a turn it reads `unroll` items before it uses the first.
template <typename Form, int unroll, int highest, typename S>
struct Elements {
  using T = compute_t<S>;
  static constexpr bool has_grad = Form::is_backward;
  static constexpr int width = Form::width;
  // Elements that are computed side by side: few where many sums take the registers.
  static constexpr int batch = std::min(width, highest > 16 ? 2 : 4);
  using Items = Item<S, width>;
  using P = Pack<T, batch>;

  __device__ __forceinline__ explicit Elements(const Sweep<S>& s)
      : sweep(s),
        at(s.partition),
        x(in_registers(reinterpret_cast<const Items*>(s.x) + at.base)),
        grad_output(in_registers(reinterpret_cast<const Items*>(s.grad_output) + at.base)),
        out(in_registers(reinterpret_cast<Items*>(s.out) + at.base)) {
    read(at.first);
  }
  __device__ __forceinline__ bool has_items() const { return is_valid[0]; }
  __device__ __forceinline__ void next() { read(i + unroll * at.stride); }

  // Calls f(x, grad_output, is_valid) for the elements of the turn, and writes the result.
  template <typename F>
  __device__ __forceinline__ void map(bool writes, const F& f) {
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const Pack<T, width> from = x_items[u].widen();
      Pack<T, width> grad_from{}, result;
      if constexpr (has_grad) grad_from = grad_items[u].widen();
#pragma unroll
      for (int first = 0; first < width; first += batch) {
        const auto part = [&](const auto& all) { return P::make([&](int e) { return all.v[first + e]; }); };
        const P y = f(part(from), part(grad_from), is_valid[u]);
#pragma unroll
        for (int e = 0; e < batch; ++e) result.v[first + e] = y.v[e];
      }
      if (is_valid[u] && writes) out[index(u)] = Items::narrow(result);
    }
  }
  // The same for the remainder, the elements after the last whole item.
  template <typename F>
  __device__ __forceinline__ void map_remainder(bool writes, const F& f) {
    if constexpr (!Form::has_columns && width > 1) {
      const Partition& p = sweep.partition;
      if (static_cast<int>(threadIdx.x) >= p.remainder || !ThreadItems<Form::access>(p).is_last()) return;
      using One = Item<S, 1>;
      const int64_t place = p.length * width + threadIdx.x;
      Pack<T, 1> grad_from{};
      if constexpr (has_grad) grad_from = One{{sweep.grad_output[place]}}.widen();
      const auto y = f(One{{sweep.x[place]}}.widen(), grad_from, true);
      if (writes) sweep.out[place] = One::narrow(y).at[0];
    }
  }

  // Items beyond the thread's share are zeros, which add nothing to sums; the first of a turn always lies within it.
  __device__ __forceinline__ void read(uint32_t first) {
    i = first;
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const uint32_t j = i + u * at.stride;
      is_valid[u] = j < at.count;
      if (has_grad && u > 0) x_items[u] = grad_items[u] = {};
      if (!is_valid[u]) continue;
      if constexpr (!Form::has_columns) offset[u] = at.offset(j);
      x_items[u] = x[index(u)];
      if constexpr (has_grad) grad_items[u] = grad_output[index(u)];
    }
  }
  // For columns, computing this again is cheaper than a register.
  __device__ __forceinline__ uint32_t index(int u) const {
    if constexpr (Form::has_columns) return at.offset(i + u * at.stride);
    return offset[u];
  }

  const Sweep<S>& sweep;
  const ThreadItems<Form::access> at;
  const Items *x, *grad_output;
  Items* out;
  Items x_items[unroll] = {}, grad_items[has_grad ? unroll : 1] = {};
  uint32_t offset[Form::has_columns ? 1 : unroll] = {}, i = 0;
  bool is_valid[unroll] = {};
};

// Adds terms of a thread's elements to its sums, one for each of its columns.
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

// The columns of a block, or its group, with their coefficients in shared memory.
template <typename Form, typename T>
struct Block {
  template <typename S>
  __device__ __forceinline__ Block(const Sweep<S, T>& s, const ThreadItems<Form::access>& at)
      : partition(s.partition),
        by_slots(s.by_slots),
        slots(s.slots),
        pitch(coeff_pitch(slots)),
        columns(Form::has_columns ? static_cast<int>(partition.threads_across) * Form::width : 1),
        first(at.column * Form::lanes),
        group(Form::has_columns ? first / partition.inner : first),
        shared(shared_memory<T>()),
        own(shared_in_registers(shared + at.local * Form::lanes * pitch)) {}

  // Copies `count` coefficients of each of the block's groups into the workspace. Ends with a barrier.
  __device__ __forceinline__ const double* stage(const void* coeffs, Storage type, int count) const {
    double* const to = reinterpret_cast<double*>(workspace());
    const int64_t left = partition.columns - first;
    const int groups = group_of(static_cast<int>(left < columns ? left : columns) - 1) + 1;
    for_threads(groups * count, [&](int i) { to[i] = read(coeffs, type, group * count + i); });
    return to;
  }
  // Calls f(coefficients, slot, g) for every slot of every column, which is of the block's g-th group. Ends with a
  // barrier.
  template <typename F>
  __device__ __forceinline__ void for_coeffs(const F& f) const {
    for_threads(columns * slots, [&](int i) {
      const int local = Form::has_columns ? static_cast<int>(by_slots.quotient(i)) : 0;
      if (first + local < partition.columns) f(shared + local * pitch, i - local * slots, group_of(local));
    });
  }
  // The coefficients in a slot, for elements of this thread.
  template <typename P>
  __device__ __forceinline__ P coeff(int slot) const {
    return P::make([&](int i) { return own[(Form::has_columns ? i : 0) * pitch + slot]; });
  }
  // Calls sink(i, local, total) with the first `used` sums of all threads, added over the block.
  template <typename Sums, typename Sink>
  __device__ __forceinline__ void reduce(const Sums& sums, int used, const Sink& sink) const {
    if constexpr (Form::has_columns) {
      reduce_columns<Form::width>(sums, used, static_cast<int>(partition.threads_across), workspace(), sink);
    } else {
      reduce_group(sums, used, workspace(), sink);
    }
  }
  // Stores a sum of a column for the kernel that adds those of all blocks.
  __device__ __forceinline__ void store(const Partials<T>& partials, int slot, uint32_t split, int local,
                                        T total) const {
    if (first + local < partition.columns) partials(slot, split, first + local) = total;
  }

  // Shared memory after the coefficients.
  __device__ __forceinline__ T* workspace() const { return shared + shared_coeffs(columns, slots); }
  // The group of a column, counted from the block's first group.
  __device__ __forceinline__ int group_of(int local) const {
    if constexpr (!Form::has_columns) return 0;
    const auto into = static_cast<uint32_t>(first - group * partition.inner);
    return static_cast<int>(partition.by_inner.quotient(into + local));
  }
  // Calls f(i) for every i below `count`, each in one of the threads. Ends with a barrier.
  template <typename F>
  __device__ __forceinline__ void for_threads(int count, const F& f) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) f(i);
    __syncthreads();
  }

  const Partition& partition;
  const Divisor by_slots;
  int slots, pitch, columns;
  int64_t first, group;
  T *shared, *own;
};

}  // namespace slaf_ext::cuda
