// One sweep over x: the expansion, or both gradients of it, from a single walk over phi_k.
//
// The storage is cut into *units*, columns of vectors that share one block of coefficients. Where a
// group is long (inner >= 32 numbers) a unit is a group: its vectors lie one after another and every
// lane holds the same coefficients. Where it is short (channels-last, features) a unit is W
// neighbouring lanes of one row, each lane with its own coefficients, and its vectors lie one row
// apart. Only the stride between vectors differs, so both are the same loop.
#pragma once

#include <algorithm>
#include <type_traits>

#include "half.h"
#include "vector.h"

namespace slaf_ext::cpu {

// What a sweep does. `forward` and `moments` have no seed, the others are seeded with grad_output.
enum Pass : unsigned {
  forward = 1,
  input_gradient = 2,
  coeffs_gradient = 4,
  // For the normalised form. The blocks of coefficients hold shifts c_k for the first two.
  moments = 8,               // sums of psi_k - c_k and of its square
  centered_gradient = 16,    // sums of grad_output (psi_k - c_k)
  normalized_gradient = 32,  // the sum over k of psi_k' (a_k grad_output + u_k + v_k psi_k), the rows a, u, v
};
constexpr bool has_seed(unsigned pass) { return (pass & (forward | moments)) == 0; }
constexpr bool has_out(unsigned pass) { return (pass & (forward | input_gradient | normalized_gradient)) != 0; }
constexpr bool has_sums(unsigned pass) { return (pass & (coeffs_gradient | moments | centered_gradient)) != 0; }

enum class Edge { extrapolate, zero, clamp, linear };

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
template <int bytes, unsigned pass>
inline constexpr int vectors_a_step = pass == normalized_gradient ? (side_by_side<bytes> + 1) / 2 : side_by_side<bytes>;
template <int bytes>
inline constexpr int tile_rows = 40 * side_by_side<bytes>;
// fp32 sums pass to fp64 after about this many rows, 40 additions: many more would show beside sums by pairs.
template <int bytes>
inline constexpr int rows_a_flush = tile_rows<bytes>;

// `count` vectors, `stride` numbers apart, the first at index `at`.
template <Walk kind, int bytes, unsigned pass, int count, typename T>
SLAF_INLINE void step(const T* x, const T* seed, T* out, int64_t at, int64_t stride, const Rows<T>& table, int degree,
                      const T* coeffs, T* sums) {
  constexpr int W = bytes / sizeof(T);
  using P = Pack<T, bytes, count>;
  P first, result;
  // A sweep without a seed may be given one of ones, with zeros where a vector is cut short.
  if (has_seed(pass) || (pass == moments && seed != nullptr)) {
    first = P::read(seed + at, stride);
  } else {
    first = P::filled(T(1));
  }
  result = P::filled(T(0));
  if constexpr (pass == normalized_gradient) {
    const T *u = coeffs + (degree + 1) * W, *v = u + (degree + 1) * W;
    const Dual<P> dual_x{P::read(x + at, stride), P::filled(T(1))}, one{P::filled(T(1)), P::filled(T(0))};
    walk<kind>(dual_x, one, table, degree, [&](int k, const Dual<P>& psi) __attribute__((always_inline)) {
      P inner = P::filled(T(0));
      inner.add_product(first, load<T, bytes>(coeffs + k * W));
      inner.add_product(psi.value, load<T, bytes>(v + k * W));
      for (int i = 0; i < count; ++i) result.v[i] += psi.slope.v[i] * (inner.v[i] + load<T, bytes>(u + k * W));
    });
    result.write(out + at, stride);
    return;
  }
  if constexpr (pass == moments || pass == centered_gradient) {
    T* squares = sums + (degree + 1) * W;
    walk<kind>(P::read(x + at, stride), first, table, degree, [&](int k, const P& psi) __attribute__((always_inline)) {
      P shifted = psi;
      shifted.add_product(first, -load<T, bytes>(coeffs + k * W));
      store(sums + k * W, load<T, bytes>(sums + k * W) + shifted.total());
      if constexpr (pass == moments) {
        store(squares + k * W, load<T, bytes>(squares + k * W) + (shifted * shifted).total());
      }
    });
    return;
  }
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
  constexpr int count = vectors_a_step<bytes, pass>;
  int row = 0;
  for (; row + count <= rows; row += count) {
    step<kind, bytes, pass, count>(x, seed, out, row * stride, stride, table, degree, coeffs, sums);
  }
  for (; row < rows; ++row) {
    step<kind, bytes, pass, 1>(x, seed, out, row * stride, stride, table, degree, coeffs, sums);
  }
}

// Reads a tile, and fills up vectors that are cut short with zeros. Where a unit is a group only the
// last vector can be short: `lanes` numbers; where it is a column of lanes, all are.
template <int W, typename S, typename T>
SLAF_INLINE void gather(const S* from, int64_t stride, int rows, int lanes, bool by_lanes, T* __restrict__ to) {
  if (!by_lanes) {
    const int n = (rows - 1) * W + lanes;
    for (int i = 0; i < n; ++i) to[i] = widen(from[i]);
    for (int i = n; i < rows * W; ++i) to[i] = T(0);
  } else if (lanes == W) {
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < W; ++i) to[row * W + i] = widen(from[row * stride + i]);
    }
  } else {
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < W; ++i) to[row * W + i] = i < lanes ? widen(from[row * stride + i]) : T(0);
    }
  }
}
template <int W, typename S, typename T>
SLAF_INLINE void scatter(const T* __restrict__ from, int64_t stride, int rows, int lanes, bool by_lanes, S* to) {
  if (!by_lanes) {
    const int n = (rows - 1) * W + lanes;
    for (int i = 0; i < n; ++i) narrow(to + i, from[i]);
  } else {
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < lanes; ++i) narrow(to + row * stride + i, from[row * W + i]);
    }
  }
}

// `rows` vectors, cut short to `lanes` as in `gather`, the first at `offset`. Numbers that need more than the
// recurrence (another storage type, a domain, a vector cut short) pass through `scratch`, four tiles that stay in L1.
template <int bytes, unsigned pass, typename S, typename T>
SLAF_INLINE void tile(const Sweep<S, T>& s, int64_t offset, int64_t stride, int rows, int lanes, const T* coeffs,
                      T* sums, T* scratch) {
  constexpr int W = bytes / sizeof(T);
  using V = Vector<T, bytes>;
  const S* x = s.x + offset;
  const S* grad_output = has_seed(pass) ? s.grad_output + offset : nullptr;
  S* out = has_out(pass) ? s.out + offset : nullptr;
  if constexpr (std::is_same_v<S, T>) {
    if (lanes == W && s.edge == Edge::extrapolate && s.center == 0) {
      s.steps(x, grad_output, out, stride, rows, s.table, s.degree, coeffs, sums);
      return;
    }
  }
  const int n = rows * W;
  const T lo = s.lo, hi = s.hi, center = s.center;
  T* __restrict__ raw = scratch;
  T* __restrict__ mapped = raw + tile_rows<bytes> * W;
  T* __restrict__ seeds = mapped + tile_rows<bytes> * W;
  T* __restrict__ beyond = seeds + tile_rows<bytes> * W;
  gather<W>(x, stride, rows, lanes, s.by_lanes, raw);
  if (s.edge == Edge::extrapolate) {
    for (int i = 0; i < n; ++i) mapped[i] = raw[i] - center;
  } else {
    for (int i = 0; i < n; ++i) mapped[i] = (raw[i] < lo ? lo : raw[i] > hi ? hi : raw[i]) - center;
  }
  if constexpr (pass == moments) {
    for (int i = 0; i < n; ++i) seeds[i] = s.by_lanes || i < (rows - 1) * W + lanes ? T(1) : T(0);
  } else if constexpr (pass != forward) {
    gather<W>(grad_output, stride, rows, lanes, s.by_lanes, seeds);
    if (s.edge == Edge::zero) {
      for (int i = 0; i < n; ++i) seeds[i] = (raw[i] < lo) | (raw[i] > hi) ? T(0) : seeds[i];
    }
  }
  if (s.edge == Edge::linear) {
    for (int i = 0; i < n; ++i) beyond[i] = raw[i] > hi ? raw[i] - hi : T(0);
    for (int i = 0; i < n; ++i) raw[i] = raw[i] < lo ? raw[i] - lo : T(0);
    if constexpr ((pass & coeffs_gradient) != 0) {
      T* tails = sums + (s.degree + 1) * W;
      V below = load<T, bytes>(tails), above = load<T, bytes>(tails + W);
      for (int i = 0; i < n; i += W) {
        below += load<T, bytes>(seeds + i) * load<T, bytes>(raw + i);
        above += load<T, bytes>(seeds + i) * load<T, bytes>(beyond + i);
      }
      store(tails, below);
      store(tails + W, above);
    }
  }
  s.steps(mapped, seeds, mapped, W, rows, s.table, s.degree, coeffs, sums);
  if constexpr (has_out(pass)) {
    if (pass == forward && s.edge == Edge::linear) {
      const T* slopes = coeffs + (s.degree + 1) * W;
      const V below = load<T, bytes>(slopes), above = load<T, bytes>(slopes + W);
      for (int i = 0; i < n; i += W) {
        const V inside = load<T, bytes>(mapped + i);
        store(mapped + i, inside + load<T, bytes>(raw + i) * below + load<T, bytes>(beyond + i) * above);
      }
    }
    // The gradient of `clamp` vanishes outside, and `zero` does by name.
    if (s.edge == Edge::zero || (s.edge == Edge::clamp && pass != forward)) {
      for (int i = 0; i < n; ++i) mapped[i] = (raw[i] < lo) | (raw[i] > hi) ? T(0) : mapped[i];
    }
    scatter<W>(mapped, stride, rows, lanes, s.by_lanes, out);
  }
}

// Asks for a column of the rows that come next: processors foresee runs of memory, not columns.
template <unsigned pass, typename S, typename T>
SLAF_INLINE void prefetch(const Sweep<S, T>& s, int64_t offset, int rows) {
  for (int row = 0; row < rows; ++row) {
    const int64_t at = offset + row * s.inner;
    __builtin_prefetch(s.x + at);
    if constexpr (has_seed(pass)) __builtin_prefetch(s.grad_output + at);
    if constexpr (has_out(pass)) __builtin_prefetch(s.out + at, 1);
  }
}

// A task. `partial` receives the sums of its units in fp64: a block each where lanes differ, and else
// the block's rows, summed over their lanes. `sums` and `scratch` are room for the blocks and four tiles.
template <int bytes, unsigned pass, typename S, typename T>
SLAF_INLINE void run_task(const Sweep<S, T>& s, const Task& task, double* partial, T* sums, T* scratch) {
  constexpr int W = bytes / sizeof(T);
  const int64_t block = int64_t{s.block_rows} * W, units = task.unit_end - task.unit_begin;
  const T* coeffs = s.coeffs + task.unit_begin * block;
  int64_t unflushed = 0;
  auto flush = [&]() __attribute__((always_inline)) {
    if constexpr (has_sums(pass)) {
      for (int64_t i = 0; i < units * block; i += W) {
        for (int lane = 0; lane < W; ++lane) {
          partial[s.by_lanes ? i + lane : i / W] += static_cast<double>(sums[i + lane]);
          sums[i + lane] = 0;
        }
      }
    }
    unflushed = 0;
  };
  if constexpr (has_sums(pass)) {
    for (int64_t i = 0; i < units * block; ++i) sums[i] = 0;
  }
  // Where units share cache lines, their tiles are low enough to meet in L1.
  constexpr int count = side_by_side<bytes>;
  const int64_t low = std::max<int64_t>(2048 / (units * bytes) / count * count, count);
  const int64_t tallest = s.by_lanes ? std::min<int64_t>(low, tile_rows<bytes>) : tile_rows<bytes>;
  const int64_t length = task.inner_end - task.inner_begin;
  for (int64_t o = task.outer_begin; o < task.outer_end; o += s.by_lanes ? tallest : 1) {
    int64_t done = 0;
    do {
      const int64_t left = s.by_lanes ? task.outer_end - o : (length - done + W - 1) / W;
      const int rows = static_cast<int>(std::min(left, tallest));
      for (int64_t u = 0; u < units; ++u) {
        const int64_t unit = task.unit_begin + u;
        if (s.by_lanes) {
          const int64_t offset = o * s.inner + unit * W;
          const int lanes = static_cast<int>(std::min<int64_t>(W, s.inner - unit * W));
          prefetch<pass>(s, offset + rows * s.inner, rows);
          tile<bytes, pass>(s, offset, s.inner, rows, lanes, coeffs + u * block, sums + u * block, scratch);
        } else {
          const int64_t offset = (o * s.units + unit) * s.inner + task.inner_begin + done;
          const int last = static_cast<int>(std::min<int64_t>(W, length - done - (rows - 1) * W));
          tile<bytes, pass>(s, offset, W, rows, last, coeffs + u * block, sums + u * block, scratch);
        }
      }
      done += rows * W;
      if ((unflushed += rows) >= rows_a_flush<bytes>) flush();
    } while (!s.by_lanes && done < length);
  }
  flush();
}

}  // namespace slaf_ext::cpu
