// The kernels, free of torch. One sweep over x gives y, or both gradients; a second kernel adds the
// sums up. No atomics: what adds to what is fixed, so the same input gives the same bits.
//
// A block serves one *group* of numbers that share a row of coefficients, and its threads read 16 bytes,
// or, where runs of a group do not suit that, one number, at a time. Where runs are short (channels-last,
// features) a block serves `width` neighbouring *columns*, each with coefficients of its own, and a thread
// goes down its column. Either way a thread works on a tile of 16 bytes at a time, whose numbers share
// coefficients, and keeps its sums in registers until the end. `cells` blocks share the work of a group.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../recurrence.h"
#include "storage.cuh"

namespace slaf_ext::cuda {

#ifdef __CUDACC__
// The shared memory that a launch asks for.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}
#endif

enum class Edge : int { extrapolate, zero, clamp, linear };

enum class Access : int { vectors, numbers, columns };

constexpr int max_threads = 256;

// Numbers that a thread works on side by side.
template <typename S>
inline constexpr int tile = 16 / sizeof(S);

template <typename T, int count>
struct Pack {
  T v[count];

  SLAF_INLINE static Pack of(T t) {
    Pack p;
#pragma unroll
    for (int u = 0; u < count; ++u) p.v[u] = t;
    return p;
  }
  // Sums in pairs: the additions of a chain would wait for each other.
  SLAF_INLINE T total() const {
    T t[count];
#pragma unroll
    for (int u = 0; u < count; ++u) t[u] = v[u];
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2) {
#pragma unroll
      for (int u = 0; u < half; ++u) t[u] += t[u + half];
    }
    return t[0];
  }
  template <typename F>
  SLAF_INLINE static Pack make(const F& f) {
    Pack p;
#pragma unroll
    for (int u = 0; u < count; ++u) p.v[u] = f(u);
    return p;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, const Pack& q) {
    return make([&](int u) { return p.v[u] * q.v[u]; });
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, T t) {
    return make([&](int u) { return p.v[u] * t; });
  }
  SLAF_INLINE friend Pack operator+(const Pack& p, T t) {
    return make([&](int u) { return p.v[u] + t; });
  }
  SLAF_INLINE friend Pack operator+(const Pack& p, const Pack& q) {
    return make([&](int u) { return p.v[u] + q.v[u]; });
  }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) {
    return make([&](int u) { return p.v[u] - q.v[u]; });
  }
};

// How the storage is cut. An *item* is what one access moves: a vector or a number.
struct Geometry {
  Access access;
  int width;                         // columns of a block; 1 where it serves a group
  int tiles;                         // of a thread
  int64_t size;                      // numbers in all
  int64_t columns, inner;            // columns, or groups, in all; columns of a group, or numbers of a run
  int64_t pieces, cells;             // blocks side by side; blocks that share a group or the same columns
  int64_t items, item_size;          // of a group, or of a column; numbers of an item
  int64_t step;                      // items from one of a thread's to its next
  int64_t step_offset, step_inside;  // the same in numbers: in memory, and inside a run
  int64_t carry;                     // in memory, from the end of a run to the start of the next
};

// Everything about a sweep but its tables.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  const S* x;
  const S* grad_output;  // null: forward
  S* out;                // y, or the gradient in x; null: not needed
  T* partial;            // sums, a slab of `rows` rows of `columns` numbers for each cell
  int degree, rows;      // degree + 1 rows, and with linear edges two for what lies beyond them
  Edge edge;
  T center, lo, hi;  // the walk sees clamp(x, lo, hi) - center
  Geometry geometry;
};

// Where a thread is: `left` items are to come, the next at `offset`, `inside` a run.
struct Cursor {
  int64_t offset, inside;
  int left;
};

// A thread's part of the work.
struct Part {
  __device__ __forceinline__ explicit Part(const Geometry& g) {
    const int64_t piece = blockIdx.x % g.pieces;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    cell = blockIdx.x / g.pieces;
    height = threads / g.width;
    if (g.access == Access::columns) {
      local = thread % g.width;
      row = thread / g.width;
      column = piece * g.width + local;
      valid = row < height && column < g.columns;
    } else {
      local = 0;
      row = thread;
      column = piece;
      valid = true;
    }
    const int64_t item = cell * height + row, number = item * g.item_size;
    if (g.access == Access::columns) {
      at = {item * g.columns + column, 0, 0};
    } else {
      const int64_t run = number / g.inner, inside = number % g.inner;
      at = {(run * g.columns + column) * g.inner + inside, inside, 0};
    }
    if (valid && item < g.items) at.left = static_cast<int>((g.items - item + g.step - 1) / g.step);
  }

  int64_t cell, column;
  int local, row, height;  // its column in the block, and its row of `height`
  bool valid;
  Cursor at;
};

template <Access access>
__device__ __forceinline__ void advance(Cursor& at, const Geometry& g) {
  --at.left;
  at.offset += g.step_offset;
  if constexpr (access != Access::columns) {
    at.inside += g.step_inside;
    if (at.inside >= g.inner) {
      at.inside -= g.inner;
      at.offset += g.carry;
    }
  }
}

// A tile from memory; zeros where nothing is left.
template <Access access, typename S, typename P>
__device__ __forceinline__ void read_tile(const S* from, Cursor at, const Geometry& g, P& to) {
  constexpr int count = tile<S>;
  if constexpr (access == Access::vectors) {
    if (at.left > 0 && at.offset + count <= g.size) {
      const auto numbers = Neighbours<S>::read(from + at.offset);
#pragma unroll
      for (int u = 0; u < count; ++u) to.v[u] = wide(numbers.at[u]);
    } else {
#pragma unroll
      for (int u = 0; u < count; ++u) to.v[u] = at.left > 0 && at.offset + u < g.size ? wide(from[at.offset + u]) : 0;
    }
  } else {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      to.v[u] = at.left > 0 ? wide(from[at.offset]) : 0;
      advance<access>(at, g);
    }
  }
}

template <Access access, typename S, typename P>
__device__ __forceinline__ void write_tile(S* to, Cursor at, const Geometry& g, const P& from) {
  constexpr int count = tile<S>;
  if constexpr (access == Access::vectors) {
    if (at.left > 0 && at.offset + count <= g.size) {
      Neighbours<S> numbers;
#pragma unroll
      for (int u = 0; u < count; ++u) numbers.at[u] = narrowed(S{}, from.v[u]);
      numbers.write(to + at.offset);
    } else if (at.left > 0) {
#pragma unroll
      for (int u = 0; u < count; ++u) {
        if (at.offset + u < g.size) to[at.offset + u] = narrowed(S{}, from.v[u]);
      }
    }
  } else {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (at.left > 0) to[at.offset] = narrowed(S{}, from.v[u]);
      advance<access>(at, g);
    }
  }
}

// Calls f(std::integral_constant<Access, ...>) for what all threads share, so no thread waits for another.
template <typename F>
__device__ __forceinline__ void dispatch_access(Access access, const F& f) {
  if (access == Access::vectors) {
    f(std::integral_constant<Access, Access::vectors>{});
  } else if (access == Access::numbers) {
    f(std::integral_constant<Access, Access::numbers>{});
  } else {
    f(std::integral_constant<Access, Access::columns>{});
  }
}

// What a linear edge adds `distance` beyond it. A slope of 0 is flat at infinity too, where 0 * inf would be NaN.
template <typename T>
__device__ __forceinline__ T tangent(T slope, T distance) {
  const T rise = slope * distance;
  return slope == T(0) ? T(0) : rise;
}

// One tile of a thread, whose cursor passes on to the next. Coefficient k is coeffs[k]. Calls
// sum(k, t) with the sums of grad_output psi_k over the tile, and adds those beyond the edges to `below` and `above`.
template <Walk kind, bool has_sums, int certain, typename S, typename T, typename Tail, typename Sum>
__device__ __forceinline__ void sweep_tile(const Sweep<S, T>& s, Cursor& at, const Rows<T>& table,
                                           const Degree<Tail>& degree, const T* coeffs, T& below, T& above,
                                           const Sum& sum) {
  using P = Pack<T, tile<S>>;
  P x, seed = P::of(T(1));
  const bool forward = s.grad_output == nullptr;
  dispatch_access(s.geometry.access, [&](auto access) {
    read_tile<access.value>(s.x, at, s.geometry, x);
    if (!forward) read_tile<access.value>(s.grad_output, at, s.geometry, seed);
  });

  // All that x itself is needed for stands before the walk, where it frees its registers.
  P mapped, result = P::of(T(0));
  unsigned outside = 0;
#pragma unroll
  for (int u = 0; u < tile<S>; ++u) mapped.v[u] = x.v[u] - s.center;
  if (s.edge != Edge::extrapolate) {
    const bool is_linear = s.edge == Edge::linear;
#pragma unroll
    for (int u = 0; u < tile<S>; ++u) {
      const T t = x.v[u], inside = t < s.lo ? s.lo : t > s.hi ? s.hi : t;
      mapped.v[u] = inside - s.center;
      outside |= (t < s.lo || t > s.hi ? 1u : 0u) << u;
      if (is_linear) {
        const T past_lo = t < s.lo ? t - s.lo : T(0), past_hi = t > s.hi ? t - s.hi : T(0);
        if (forward) result.v[u] = tangent(coeffs[s.degree + 1], past_lo) + tangent(coeffs[s.degree + 2], past_hi);
        if constexpr (has_sums) {
          below += seed.v[u] * past_lo;
          above += seed.v[u] * past_hi;
        }
      }
      if (s.edge == Edge::zero && !forward && (outside >> u & 1u) != 0) seed.v[u] = T(0);
    }
    // The gradient of `clamp` vanishes outside, and `zero` does by name.
    if (is_linear || (s.edge == Edge::clamp && forward)) outside = 0;
  }

  if (!has_sums && forward) {
    const auto coeff = [&](int k) { return P::of(coeffs[k]); };
    // Where the kernel's degree is the operator's, the compiler knows it.
    result = result + (certain == degree.value() ? expand<kind>(mapped, table, degree, coeff)
                                                 : expand<kind>(mapped, table, in_blocks(s.degree), coeff));
  } else {
    walk<kind>(mapped, seed, table, degree, [&](int k, const P& psi) {
      // Degrees that share a kernel walk as far as the highest of them.
      if (k > certain && k > s.degree) return;
      // D a has no phi_degree: its 0 must not meet an infinite psi. `long_sweep` multiplies all the same, since it
      // would spill registers, and so does degree 0, whose psi is finite.
      const bool is_last = certain == 0 ? false : k >= certain && k == s.degree;
      if (!is_last) result = result + psi * coeffs[k];
      if constexpr (has_sums) sum(k, psi.total());
    });
  }
  if (outside != 0) {
#pragma unroll
    for (int u = 0; u < tile<S>; ++u) {
      if ((outside >> u & 1u) != 0) result.v[u] = T(0);
    }
  }

  dispatch_access(s.geometry.access, [&](auto access) {
    if (s.out != nullptr) write_tile<access.value>(s.out, at, s.geometry, result);
#pragma unroll
    for (int u = 0; u < (access.value == Access::vectors ? 1 : tile<S>); ++u) advance<access.value>(at, s.geometry);
  });
}

// The same sum in every lane of a warp.
template <typename T>
__device__ __forceinline__ T warp_sum(T t) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) t += __shfl_xor_sync(0xffffffffu, t, distance);
  return t;
}

// The coefficients of the walk, in fp64, from those of the operator, of which group g has `coeffs(k)`. Row r of
//     forward              scale_r coeffs_r, and two rows more, the slopes at the edges
//     gradient in x        scale_r sum_k D_kr coeffs_k, with D below its diagonal row by row
template <typename Coeffs>
__device__ __forceinline__ double walk_coeff(int r, int degree, bool forward, const double* weights,
                                             const Coeffs& coeffs) {
  if (forward && r <= degree) return weights[r] * coeffs(r);
  double sum = 0;
#pragma unroll 1
  for (int k = forward ? 0 : r + 1; k <= degree; ++k) {
    const double weight = forward ? weights[(r - degree) * (degree + 1) + k] : weights[k * (k - 1) / 2 + r];
    // D is half zeros where the basis respects parity, and 0 * inf must not make a NaN there.
    if (weight != 0) sum += weight * coeffs(k);
  }
  return sum;
}

// The numbers that `walk_coeff` and `reduce` need: scales and slopes, or D.
constexpr int64_t scale_count(int64_t degree) { return 3 * (degree + 1); }
constexpr int64_t weight_count(int64_t degree) { return std::max(scale_count(degree), degree * (degree + 1) / 2); }

// A sweep and its tables, as the argument of a kernel: nothing is copied to the device before it.
template <typename S, int highest>
struct TabledSweep {
  using T = compute_t<S>;
  Sweep<S> sweep;
  const void* coeffs;
  Storage coeffs_type;
  T a[highest + 1], b[highest + 1], c[highest + 1];
  double weights[weight_count(highest)];
};

// Blocks that an SM's 65,536 registers are to hold at once.
template <typename S, int highest, bool has_sums>
inline constexpr int resident_blocks = [] {
  constexpr int words = sizeof(compute_t<S>) / 4, packs = 4 * tile<S> * words;
  return 65536 / max_threads / ((words == 1 ? 24 : 64) + packs + (has_sums ? words * (highest + 1) + 10 : 0));
}();

// Coefficients of neighbouring columns lie an odd number apart, in different banks of shared memory.
SLAF_INLINE constexpr int coeff_pitch(int rows) { return rows | 1; }

// Sums that meet in shared memory at a time, with room for one of every thread each.
constexpr int room_rows = 8;

// The first `used` of the sums that every thread of a block has, over those that share a column (or the group):
// sink(index, local, column, total). Ends with a barrier, so that threads see what the others' sinks wrote.
template <int count, typename T, typename Sink>
__device__ __forceinline__ void add_up(const T (&sums)[count], int used, const Part& part, const Geometry& g, T* room,
                                       const Sink& sink) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  // Where threads share a group their sums meet in warps first; then columns, or warps, meet in `room`.
  const bool by_columns = g.access == Access::columns;
  const int heaps = by_columns ? threads / g.width : threads / 32;
#pragma unroll
  for (int first = 0; first < count; first += room_rows) {
#pragma unroll
    for (int i = first; i < first + room_rows && i < count; ++i) {
      const int slot = i - first;
      if (by_columns) {
        room[slot * threads + thread] = sums[i];
      } else {
        const T t = warp_sum(sums[i]);
        if (thread % 32 == 0) room[slot * threads + thread / 32] = t;
      }
    }
    __syncthreads();
    const int left = used - first, slots = left < room_rows ? left : room_rows;
#pragma unroll 1
    for (int i = thread; i < slots * g.width; i += threads) {
      const int slot = i / g.width, local = i % g.width;
      const int64_t column = part.column - part.local + local;
      if (column >= g.columns) continue;
      double t = 0;
#pragma unroll 1
      for (int heap = 0; heap < heaps; ++heap) t += room[slot * threads + heap * g.width + local];
      sink(first + slot, local, column, static_cast<T>(t));
    }
    __syncthreads();
  }
}

// Degrees up to the highest of `Range`, in registers.
template <Walk kind, typename Range, bool has_sums, typename S>
__global__ void __launch_bounds__(max_threads, (resident_blocks<S, Range::highest, has_sums>))
    sweep(const __grid_constant__ TabledSweep<S, Range::highest> args) {
  using T = compute_t<S>;
  constexpr int highest = Range::highest;
  const Sweep<S>& s = args.sweep;
  const Geometry& g = s.geometry;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool by_columns = g.access == Access::columns;
  const int pitch = coeff_pitch(s.rows);
  T* const coeffs = shared_memory<T>();
  T* const room = coeffs + g.width * pitch;

  Part part(g);
#pragma unroll 1
  for (int i = thread; i < g.width * s.rows; i += threads) {
    const int local = i / s.rows, r = i % s.rows;
    const int64_t column = part.column - part.local + local;
    if (column >= g.columns) continue;
    const int64_t row = (by_columns ? column / g.inner : column) * (s.degree + 1);
    coeffs[local * pitch + r] =
        static_cast<T>(walk_coeff(r, s.degree, s.grad_output == nullptr, args.weights,
                                  [&](int k) { return read(args.coeffs, args.coeffs_type, row + k); }));
  }
  __syncthreads();

  T sums[highest + 1] = {}, below = 0, above = 0;
#pragma unroll 1
  for (int i = 0; i < g.tiles; ++i) {
    sweep_tile<kind, has_sums, Range::lowest>(s, part.at, Rows<T>{args.a, args.b, args.c}, in_blocks(highest),
                                              coeffs + part.local * pitch, below, above,
                                              [&](int k, T t) { sums[k] += t; });
  }
  if constexpr (has_sums) {
    const auto store = [&](int row, int64_t column, T t) {
      s.partial[(part.cell * s.rows + row) * g.columns + column] = t;
    };
    add_up(sums, s.degree + 1, part, g, room, [&](int k, int, int64_t column, T t) { store(k, column, t); });
    if (s.edge == Edge::linear) {
      const T beyond[] = {below, above};
      add_up(beyond, 2, part, g, room, [&](int i, int, int64_t column, T t) { store(s.degree + 1 + i, column, t); });
    }
  }
}

// Numbers on their way to the device as the argument of a kernel.
struct Parcel {
  static constexpr int capacity = 3500;  // an argument holds 32,764 bytes
  int count;
  double numbers[capacity];
};

// static: each file that launches it has its own.
static __global__ void __launch_bounds__(max_threads) unpack(const __grid_constant__ Parcel parcel, double* to) {
  for (int i = static_cast<int>(threadIdx.x); i < parcel.count; i += static_cast<int>(blockDim.x)) {
    to[i] = parcel.numbers[i];
  }
}

// What degrees beyond the registers read from memory.
template <typename T>
struct LongTables {
  const double* rows;     // all a, all b, all c
  const double* weights;  // as walk_coeff takes them
  const void* coeffs;
  Storage coeffs_type;
  int degree, row_count;
  int64_t groups;
  bool forward;
  T* table;        // the rows in T
  T* walk_coeffs;  // row_count numbers for each group
};

template <typename T>
__global__ void __launch_bounds__(max_threads) make_tables(const LongTables<T> t) {
  const int64_t all = blockDim.x * static_cast<int64_t>(gridDim.x);
  const int64_t first = blockDim.x * static_cast<int64_t>(blockIdx.x) + threadIdx.x;
  for (int64_t i = first; i < 3 * t.degree; i += all) t.table[i] = static_cast<T>(t.rows[i]);
  for (int64_t i = first; i < t.row_count * t.groups; i += all) {
    const int64_t row = i / t.row_count * (t.degree + 1);
    t.walk_coeffs[i] = static_cast<T>(walk_coeff(static_cast<int>(i % t.row_count), t.degree, t.forward, t.weights,
                                                 [&](int k) { return read(t.coeffs, t.coeffs_type, row + k); }));
  }
}

// Any degree: tables and sums in memory. A warp, or where columns differ a thread, has a slab of sums to itself.
template <Walk kind, bool has_sums, typename S, typename T = compute_t<S>>
__global__ void __launch_bounds__(max_threads, 2)
    long_sweep(const __grid_constant__ Sweep<S> s, const __grid_constant__ LongTables<T> tables) {
  const Geometry& g = s.geometry;
  const bool by_columns = g.access == Access::columns;
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  Part part(g);
  const T* table = tables.table;
  const int64_t group = !part.valid ? 0 : by_columns ? part.column / g.inner : part.column;
  const T* coeffs = tables.walk_coeffs + group * tables.row_count;
  const int64_t slab = by_columns ? part.cell * part.height + part.row : part.cell * warps + thread / 32;
  const bool writes = by_columns ? part.valid : thread % 32 == 0;

  const auto add = [&](int r, T t, bool is_first) {
    if (!by_columns) t = warp_sum(t);
    if (!writes) return;
    T* const slot = s.partial + (slab * s.rows + r) * g.columns + part.column;
    *slot = is_first ? t : *slot + t;
  };
  T below = 0, above = 0;
  for (int i = 0; i < g.tiles; ++i) {
    sweep_tile<kind, has_sums, 0>(s, part.at, Rows<T>{table, table + s.degree, table + 2 * s.degree},
                                  in_blocks(s.degree), coeffs, below, above, [&](int k, T t) { add(k, t, i == 0); });
  }
  if (has_sums && s.edge == Edge::linear) {
    add(s.degree + 1, below, true);
    add(s.degree + 2, above, true);
  }
}

// Slabs of sums, and how the threads of a block share them: each of `width` neighbouring groups has `height` threads,
// a power of two, and a block serves one k.
struct Slabs {
  int64_t count, columns, groups;  // columns / groups columns of a slab belong to a group
  int rows;
  int width, height;
};

// A thread's part in adding up slabs.
struct Adder {
  __device__ __forceinline__ explicit Adder(const Slabs& s) : slabs(s), inner(s.columns / s.groups) {
    const int64_t blocks = (s.groups + s.width - 1) / s.width;
    x = static_cast<int>(threadIdx.x) % s.width;
    y = static_cast<int>(threadIdx.x) / s.width;
    k = static_cast<int>(blockIdx.x / blocks);
    group = blockIdx.x % blocks * s.width + x;
  }
  // The sum of term(slab, column) over the group, the same in all its threads. All threads of the block must call it.
  template <typename Term>
  __device__ __forceinline__ double total(const Term& term) const {
    double sum = 0;
    if (group < slabs.groups) {
      for (int64_t i = y; i < slabs.count * inner; i += slabs.height) sum += term(i / inner, group * inner + i % inner);
    }
    double* const room = shared_memory<double>();
    const int thread = static_cast<int>(threadIdx.x);
    room[thread] = sum;
    for (int half = slabs.height / 2; half > 0; half /= 2) {
      __syncthreads();
      if (y < half) room[thread] += room[thread + half * slabs.width];
    }
    __syncthreads();
    sum = room[x];
    __syncthreads();
    return sum;
  }
  // Whether this thread writes the result of its group.
  __device__ __forceinline__ bool writes() const { return y == 0 && group < slabs.groups; }

  const Slabs& slabs;
  int64_t inner, group;
  int x, y, k;
};

// The gradient in the coefficients, from all slabs: grad_k = scale_k sums_k, and what lies beyond linear edges.
template <typename T>
struct Reduction {
  const T* partial;
  Slabs slabs;
  int degree;
  void* grad;
  Storage grad_type;
  const double* far_scales;  // scale, slopes at lo, slopes at hi: here, or where they fit
  double scales[scale_count(32)];
};

template <typename T>
__global__ void __launch_bounds__(1024) reduce(const __grid_constant__ Reduction<T> r) {
  const Adder adder(r.slabs);
  const int K = r.degree + 1, k = adder.k;
  const double* scales = r.far_scales != nullptr ? r.far_scales : r.scales;
  const double sum = adder.total([&](int64_t slab, int64_t column) {
    const T* at = r.partial + slab * r.slabs.rows * r.slabs.columns + column;
    double t = scales[k] * at[k * r.slabs.columns];
    for (int row = K; row < r.slabs.rows; ++row) {
      const double slope = scales[(row - K + 1) * K + k];
      if (slope != 0) t += slope * at[row * r.slabs.columns];  // the sum may be infinite
    }
    return t;
  });
  if (adder.writes()) write(r.grad, r.grad_type, adder.group * K + k, sum);
}

}  // namespace slaf_ext::cuda
