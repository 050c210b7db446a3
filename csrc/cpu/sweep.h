// One sweep over x: the expansion, or both gradients of it, from a single walk over phi_k.
//
// The storage is cut into *units*, columns of vectors that share one block of coefficients. Where a
// group is long (inner >= 32 numbers) a unit is a group: its vectors lie one after another and every
// lane holds the same coefficients. Where it is short (channels-last, features) a unit is W
// neighbouring lanes of one row, each lane with its own coefficients, and its vectors lie one row
// apart. Only the stride between vectors differs, so both are the same loop.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "vector.h"

namespace slaf_ext::cpu {

// What a sweep does; `forward` has no seed, the others are seeded with grad_output.
enum Pass : unsigned { forward = 1, input_gradient = 2, coeffs_gradient = 4 };

enum class Edge { extrapolate, zero, clamp, linear };

template <typename S>
using compute_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

// `steps` for the walk that a basis needs, compiled for the instruction set in use.
template <typename T>
using Steps = void (*)(const T* x, const T* seed, T* out, int64_t stride, int rows, const Rows<T>& table, int degree,
                       const T* coeffs, T* sums);

// Everything that stays the same during a sweep. S is the storage type, T what is computed in.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  const S* x;
  const S* grad_output;  // unless forward
  S* out;                // y, or the gradient in x
  Steps<T> steps;
  Rows<T> table;
  int degree;
  T center, lo, hi;  // the walk sees clamp(x, lo, hi) - center
  Edge edge;

  // Blocks of `block_rows` rows of W numbers, one block a unit: coefficients, and sums of
  // grad_output psi_k. With linear edges two rows more: slopes below lo and above hi, and the sums
  // of grad_output times the distance beyond.
  const T* coeffs;
  int block_rows;

  // As the storage is cut: `outer` times `units` times `inner` numbers, or, with a unit a column of
  // lanes, `outer` rows of `inner` numbers.
  bool by_lanes;
  int64_t outer, units, inner;
};

// A part of the work whose sums no other part shares.
struct Task {
  int64_t outer_begin, outer_end, unit_begin, unit_end, inner_begin, inner_end;
};

template <int bytes>
inline constexpr int side_by_side = bytes == 64 ? 4 : 3;  // what 32, and 16, registers hold
template <int bytes>
inline constexpr int tile_rows = 40 * side_by_side<bytes>;
// fp32 sums pass to fp64 after about this many rows.
template <int bytes>
inline constexpr int rows_a_flush = 2 * tile_rows<bytes>;

// `count` vectors, `stride` numbers apart, the first at index `at`.
template <Walk kind, int bytes, unsigned pass, int count, typename T>
SLAF_INLINE void step(const T* x, const T* seed, T* out, int64_t at, int64_t stride, const Rows<T>& table, int degree,
                      const T* coeffs, T* sums) {
  constexpr int W = bytes / sizeof(T);
  using P = Pack<T, bytes, count>;
  P first, result;
  if constexpr (pass == forward) {
    for (int u = 0; u < count; ++u) first.v[u] = Vector<T, bytes>{} + T(1);
  } else {
    first = P::read(seed + at, stride);
  }
  for (int u = 0; u < count; ++u) result.v[u] = Vector<T, bytes>{};
  walk<kind>(P::read(x + at, stride), first, table, degree, [&](int k, const P& psi) __attribute__((always_inline)) {
    if constexpr ((pass & (forward | input_gradient)) != 0) result.add_product(psi, load<T, bytes>(coeffs + k * W));
    if constexpr ((pass & coeffs_gradient) != 0) store(sums + k * W, load<T, bytes>(sums + k * W) + psi.total());
  });
  if constexpr ((pass & (forward | input_gradient)) != 0) result.write(out + at, stride);
}

// `rows` rows of W numbers, `stride` numbers apart.
template <Walk kind, int bytes, unsigned pass, typename T>
SLAF_INLINE void steps(const T* x, const T* seed, T* out, int64_t stride, int rows, const Rows<T>& table, int degree,
                       const T* coeffs, T* sums) {
  constexpr int count = side_by_side<bytes>;
  int row = 0;
  for (; row + count <= rows; row += count) {
    step<kind, bytes, pass, count>(x, seed, out, row * stride, stride, table, degree, coeffs, sums);
  }
  for (; row < rows; ++row) {
    step<kind, bytes, pass, 1>(x, seed, out, row * stride, stride, table, degree, coeffs, sums);
  }
}

// The first `lanes` numbers at `from`, and zeros.
template <int bytes, typename S, typename T = compute_t<S>>
SLAF_INLINE Vector<T, bytes> load_lanes(const S* from, int lanes) {
  constexpr int W = bytes / sizeof(T);
  if (lanes == W) return load<T, bytes>(from);
  S padded[W] = {};
  for (int i = 0; i < lanes; ++i) padded[i] = from[i];
  return load<T, bytes>(padded);
}
template <int bytes, typename S, typename V>
SLAF_INLINE void store_lanes(S* to, const V& v, int lanes) {
  constexpr int W = bytes / sizeof(compute_t<S>);
  if (lanes == W) return store(to, v);
  S padded[W];
  store(padded, v);
  for (int i = 0; i < lanes; ++i) to[i] = padded[i];
}

// `rows` rows of `lanes` numbers, the first at `offset`. Numbers that need more than the recurrence
// (another storage type, a domain, a vector cut short) pass through `scratch`, which stays in L1.
template <int bytes, unsigned pass, typename S, typename T>
SLAF_INLINE void tile(const Sweep<S, T>& s, int64_t offset, int64_t stride, int rows, int lanes, const T* coeffs,
                      T* sums, T* scratch) {
  constexpr int W = bytes / sizeof(T);
  constexpr bool has_out = (pass & (forward | input_gradient)) != 0;
  using V = Vector<T, bytes>;
  const S* x = s.x + offset;
  const S* grad_output = pass == forward ? nullptr : s.grad_output + offset;
  S* out = has_out ? s.out + offset : nullptr;
  if constexpr (std::is_same_v<S, T>) {
    if (lanes == W && s.edge == Edge::extrapolate && s.center == 0) {
      s.steps(x, grad_output, out, stride, rows, s.table, s.degree, coeffs, sums);
      return;
    }
  }
  T* mapped = scratch;
  T* seeds = scratch + tile_rows<bytes> * W;
  for (int row = 0; row < rows; ++row) {
    const V raw = load_lanes<bytes>(x + row * stride, lanes);
    const V below = raw < s.lo ? raw - s.lo : V{}, above = raw > s.hi ? raw - s.hi : V{};
    V inside = raw;
    if (s.edge != Edge::extrapolate) inside = raw < s.lo ? V{} + s.lo : (raw > s.hi ? V{} + s.hi : raw);
    store(mapped + row * W, inside - s.center);
    if constexpr (pass != forward) {
      V seed = load_lanes<bytes>(grad_output + row * stride, lanes);
      if (s.edge == Edge::zero) seed = (raw < s.lo) | (raw > s.hi) ? V{} : seed;
      store(seeds + row * W, seed);
      if constexpr ((pass & coeffs_gradient) != 0) {
        if (s.edge == Edge::linear) {
          T* beyond = sums + (s.degree + 1) * W;
          store(beyond, load<T, bytes>(beyond) + (raw < s.lo ? seed * below : V{}));
          store(beyond + W, load<T, bytes>(beyond + W) + (raw > s.hi ? seed * above : V{}));
        }
      }
    }
  }
  s.steps(mapped, seeds, mapped, W, rows, s.table, s.degree, coeffs, sums);
  if constexpr (has_out) {
    const T* slopes = coeffs + (s.degree + 1) * W;
    for (int row = 0; row < rows; ++row) {
      V result = load<T, bytes>(mapped + row * W);
      if (s.edge != Edge::extrapolate) {
        const V raw = load_lanes<bytes>(x + row * stride, lanes);
        const auto is_below = raw<s.lo, is_above = raw> s.hi;
        if (pass == forward && s.edge == Edge::linear) {
          result = is_below ? result + (raw - s.lo) * load<T, bytes>(slopes) : result;
          result = is_above ? result + (raw - s.hi) * load<T, bytes>(slopes + W) : result;
        }
        // The gradient of `clamp` vanishes outside, and `zero` does by name.
        if (s.edge == Edge::zero || (s.edge == Edge::clamp && pass != forward)) {
          result = is_below | is_above ? V{} : result;
        }
      }
      store_lanes<bytes>(out + row * stride, result, lanes);
    }
  }
}

// A task: `partial` receives the sums of its units, a block each, in fp64; `sums` and `scratch` are
// room for as many blocks and for two tiles.
template <int bytes, unsigned pass, typename S, typename T>
SLAF_INLINE void run_task(const Sweep<S, T>& s, const Task& task, double* partial, T* sums, T* scratch) {
  constexpr int W = bytes / sizeof(T);
  const int64_t block = int64_t{s.block_rows} * W, units = task.unit_end - task.unit_begin;
  const T* coeffs = s.coeffs + task.unit_begin * block;
  int64_t unflushed = 0;
  auto flush = [&]() __attribute__((always_inline)) {
    if constexpr ((pass & coeffs_gradient) != 0) {
      for (int64_t i = 0; i < units * block; ++i) {
        partial[i] += static_cast<double>(sums[i]);
        sums[i] = 0;
      }
    }
    unflushed = 0;
  };
  if constexpr ((pass & coeffs_gradient) != 0) {
    for (int64_t i = 0; i < units * block; ++i) sums[i] = 0;
  }
  // Where units share cache lines, their tiles are low enough to meet in L1.
  constexpr int count = side_by_side<bytes>;
  const int64_t low = std::max<int64_t>(8192 / (units * bytes) / count * count, count);
  const int64_t tallest = s.by_lanes ? std::min<int64_t>(low, tile_rows<bytes>) : tile_rows<bytes>;
  const int64_t length = task.inner_end - task.inner_begin;
  for (int64_t o = task.outer_begin; o < task.outer_end; o += s.by_lanes ? tallest : 1) {
    int64_t done = 0;
    do {
      const int64_t left = s.by_lanes ? (task.outer_end - o) * W : length - done;
      const int rows = static_cast<int>(std::clamp<int64_t>(left / W, 1, tallest));
      for (int64_t u = 0; u < units; ++u) {
        const int64_t unit = task.unit_begin + u;
        const int64_t offset =
            s.by_lanes ? o * s.inner + unit * W : (o * s.units + unit) * s.inner + task.inner_begin + done;
        const int64_t lanes = std::min<int64_t>(W, s.by_lanes ? s.inner - unit * W : left);
        tile<bytes, pass>(s, offset, s.by_lanes ? s.inner : W, rows, static_cast<int>(lanes), coeffs + u * block,
                          sums + u * block, scratch);
      }
      done += rows * W;
      if ((unflushed += rows) >= rows_a_flush<bytes>) flush();
    } while (!s.by_lanes && done < length);
  }
  flush();
}

}  // namespace slaf_ext::cpu
