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

// A pointer `numbers` further on, if it points to anything.
template <typename S>
SLAF_INLINE S* further(S* from, int64_t numbers) {
  return from == nullptr ? nullptr : from + numbers;
}

// `rows` rows, a multiple of the step, `stride` numbers apart, of `units` vectors side by side. Each unit has a block
// of coefficients and, if the pass has sums, one of sums, `block` numbers after those of the unit before it.
template <typename S, typename T = compute_t<S>>
struct Strip {
  const S* x;
  const S* seed;
  S* out;
  int64_t stride;
  int rows, units;
  const T* coeffs;
  T* sums;
  int64_t block;
};

// The walk over a strip, compiled for a pass, a kind of table and an instruction set.
template <typename S, typename T = compute_t<S>>
using Steps = void (*)(const Strip<S, T>&, const Rows<T>& table, int degree);

// Everything that stays the same during a sweep. S is the storage type, T what is computed in.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  unsigned pass;
  const S* x;
  const S* grad_output;       // if the pass has a seed
  S* out;                     // y, or the gradient in x
  Steps<S, T> steps;          // for numbers as they lie in memory,
  Steps<T, T> scratch_steps;  // and for those that something was done to before,
  int step;                   // so many vectors at a time
  Rows<T> table;
  int degree;
  T center, lo, hi;  // the walk sees clamp(x, lo, hi) - center
  Edge edge;

  // The rows, of W numbers, of a unit's block: coefficients, or sums of grad_output psi_k. With linear edges two rows
  // more: slopes below lo and above hi, and the sums of grad_output times the distance beyond.
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

// Vectors that a step works on: as many as 32, or 16, registers hold with what goes with them. A fourth in the
// gradients' step fits barely, and leaves a processor less room to begin the next one: 3 % slower at degree 8.
constexpr int vectors_a_step(int bytes, unsigned pass) {
  if (pass == forward) return bytes == 64 ? 8 : 4;
  if (pass == normalized_gradient) return bytes == 64 ? 3 : 2;
  return bytes == 64 ? 6 : 3;
}
// Rows, about, of a strip whose units share cache lines, so that they meet in L1; and how many units ahead it asks for
// numbers.
constexpr int low_rows = 8, units_ahead = 4;
// Bytes ahead where vectors lie one after another. Processors foresee such runs, but as far as the page's end: what
// waits at the start of every page is a look at the page table and a line of L3 or memory, and a walk is too long for
// the processor to reach the next numbers before it is done.
constexpr int bytes_ahead = 3072;
constexpr size_t cache_line = 64;
// Rows of a tile, a multiple of all steps.
constexpr int tile_rows = 96;
// Rows whose sums are kept in fp32 before they pass to fp64: many more additions would show beside sums by pairs.
constexpr int summed_rows = 192;

// `count` vectors of one unit, `stride` numbers apart.
template <Walk kind, int bytes, unsigned pass, int count, typename S, typename T, typename Stride, typename Tail>
SLAF_INLINE void step(const S* x, const S* seed, S* out, Stride stride, const Rows<T>& table,
                      const Degree<Tail>& degree, const T* coeffs, T* sums) {
  constexpr int W = bytes / sizeof(T);
  const int K = degree.value() + 1;
  using P = Pack<T, bytes, count>;
  const auto row = [&](const T* block, int k) __attribute__((always_inline)) { return load<bytes>(block + k * W); };
  const auto add = [&](T* block, int k, const P& p)
                       __attribute__((always_inline)) { store<bytes>(block + k * W, row(block, k) + p.total()); };
  const P point = P::read(x, stride);
  if constexpr (pass == forward) {
    const auto coeff = [&](int k) __attribute__((always_inline)) { return P::filled(row(coeffs, k)); };
    expand<kind>(point, table, degree, coeff).write(out, stride);
  } else if constexpr (pass == normalized_gradient) {
    const T *u = coeffs + K * W, *v = u + K * W;
    const P g = P::read(seed, stride);
    const Dual<P> dual{point, P::filled(T(1))}, one{P::filled(T(1)), P::filled(T(0))};
    P sum = P::filled(T(0));
    walk<kind>(dual, one, table, degree, [&](int k, const Dual<P>& psi) __attribute__((always_inline)) {
      sum = sum + psi.slope * (g * row(coeffs, k) + psi.value * row(v, k) + row(u, k));
    });
    sum.write(out, stride);
  } else if constexpr (pass == moments || pass == centered_gradient) {
    // The moments may be given a seed of ones, with zeros where a vector is cut short.
    const P first = has_seed(pass) || seed != nullptr ? P::read(seed, stride) : P::filled(T(1));
    walk<kind>(point, first, table, degree, [&](int k, const P& psi) __attribute__((always_inline)) {
      const P shifted = psi - first * row(coeffs, k);
      add(sums, k, shifted);
      if constexpr (pass == moments) add(sums, K + k, shifted * shifted);
    });
  } else {
    const P g = P::read(seed, stride);
    P slope;
    walk<kind>(point, g, table, degree, [&](int k, const P& psi) __attribute__((always_inline)) {
      if constexpr ((pass & coeffs_gradient) != 0) add(sums, k, psi);
      if constexpr ((pass & input_gradient) != 0) {
        slope = k == 0 ? psi * row(coeffs, k) : slope + psi * row(coeffs, k);
      }
    });
    if constexpr ((pass & input_gradient) != 0) slope.write(out, stride);
  }
}

// Asks for `count` lines, `stride` numbers apart, before their turn comes.
template <int count, unsigned pass, typename S>
SLAF_INLINE void prefetch(const S* x, const S* seed, const S* out, int64_t distance, int64_t stride) {
#pragma GCC unroll 8
  for (int u = 0; u < count; ++u) {
    const int64_t at = distance + u * stride;
    __builtin_prefetch(x + at);
    if constexpr (has_seed(pass)) __builtin_prefetch(seed + at);
    if constexpr (has_out(pass)) __builtin_prefetch(out + at, 1);
  }
}

// The walk over a strip. Code for one tail of the degree is for vectors that lie one after another.
template <Walk kind, int bytes, unsigned pass, typename Tail, typename S, typename T>
SLAF_INLINE void steps(const Strip<S, T>& s, const Rows<T>& table, int degree) {
  constexpr int count = vectors_a_step(bytes, pass), W = bytes / sizeof(T);
  constexpr bool dense = !std::is_same_v<Tail, int>;
  constexpr int size = sizeof(S), line = cache_line / size, lines = (count * W + line - 1) / line;
  // Copies, since what is written could overlap the originals for all that a compiler knows.
  T a[2], b[2];
  Rows<T> rows = table;
  if constexpr (has_one_factor(kind)) {
    std::copy_n(table.a, 2, a);
    std::copy_n(table.b, 2, b);
    rows = {a, b, nullptr};
  }
  const Degree<Tail> n = in_blocks<Tail>(degree);
  const auto stride = [&]() __attribute__((always_inline)) {
    if constexpr (dense) {
      return Constant<W>{};
    } else {
      return s.stride;
    }
  }();
  const int64_t block = s.block;
  const int units = dense ? 1 : s.units;
  for (int unit = 0; unit < units; ++unit) {
    const T* coeffs = s.coeffs + unit * block;
    T* sums = further(s.sums, unit * block);
    const S* x = s.x + unit * W;
    const S* seed = further(s.seed, unit * W);
    S* out = further(s.out, unit * W);
    // A few units further on, or in the rows below.
    const int next = unit + units_ahead;
    const int64_t ahead = next < units ? units_ahead * W : s.rows * stride + (next - units - unit) * W;
    for (int left = s.rows; left > 0; left -= count) {
      if (stride == W) {
        prefetch<lines, pass>(x, seed, out, bytes_ahead / size, line);
      } else {
        prefetch<count, pass>(x, seed, out, ahead, stride);
      }
      step<kind, bytes, pass, count>(x, seed, out, stride, rows, n, coeffs, sums);
      x += count * stride;
      if (has_seed(pass) || (pass == moments && seed != nullptr)) seed += count * stride;
      if (has_out(pass)) out += count * stride;
    }
  }
}

// Reads a tile, and fills up vectors that are cut short, and rows as far as `padded`, with zeros. Where a unit is a
// group only the last vector can be short: `lanes` numbers; where it is a column of lanes, all are.
template <int W, typename S, typename T>
SLAF_INLINE void gather(const S* from, int64_t stride, int rows, int padded, int lanes, bool by_lanes,
                        T* __restrict__ to) {
  const int n = by_lanes ? rows * W : (rows - 1) * W + lanes;
  for (int i = n; i < padded * W; ++i) to[i] = T(0);
  if (!by_lanes) {
    for (int i = 0; i < n; ++i) to[i] = widen(from[i]);
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

// `rows` vectors of one unit, cut short to `lanes` as in `gather`, the first at `offset`. Numbers that need more than
// the recurrence (a domain, a vector cut short, too few rows for a step) pass through four tiles that stay in L1.
template <int bytes, typename S, typename T>
SLAF_INLINE void tile(const Sweep<S, T>& s, int64_t offset, int64_t stride, int rows, int lanes, const T* coeffs,
                      T* sums) {
  constexpr int W = bytes / sizeof(T);
  using V = Vector<T, bytes>;
  const int padded = (rows + s.step - 1) / s.step * s.step, n = padded * W;
  const T lo = s.lo, hi = s.hi, center = s.center;
  alignas(bytes) T scratch[4 * tile_rows * W];
  T* __restrict__ raw = scratch;
  T* __restrict__ mapped = raw + tile_rows * W;
  T* __restrict__ seeds = mapped + tile_rows * W;
  T* __restrict__ beyond = seeds + tile_rows * W;
  gather<W>(s.x + offset, stride, rows, padded, lanes, s.by_lanes, raw);
  if (s.edge == Edge::extrapolate) {
    for (int i = 0; i < n; ++i) mapped[i] = raw[i] - center;
  } else {
    for (int i = 0; i < n; ++i) mapped[i] = (raw[i] < lo ? lo : raw[i] > hi ? hi : raw[i]) - center;
  }
  if (s.pass == moments) {
    const int given = s.by_lanes ? rows * W : (rows - 1) * W + lanes;
    for (int i = 0; i < n; ++i) seeds[i] = i < given ? T(1) : T(0);
  } else if (has_seed(s.pass)) {
    gather<W>(s.grad_output + offset, stride, rows, padded, lanes, s.by_lanes, seeds);
    if (s.edge == Edge::zero) {
      for (int i = 0; i < n; ++i) seeds[i] = (raw[i] < lo) | (raw[i] > hi) ? T(0) : seeds[i];
    }
  }
  if (s.edge == Edge::linear) {
    for (int i = 0; i < n; ++i) beyond[i] = raw[i] > hi ? raw[i] - hi : T(0);
    for (int i = 0; i < n; ++i) raw[i] = raw[i] < lo ? raw[i] - lo : T(0);
    if ((s.pass & coeffs_gradient) != 0) {
      T* tails = sums + (s.degree + 1) * W;
      V below = load<bytes>(tails), above = load<bytes>(tails + W);
      for (int i = 0; i < n; i += W) {
        below += load<bytes>(seeds + i) * load<bytes>(raw + i);
        above += load<bytes>(seeds + i) * load<bytes>(beyond + i);
      }
      store<bytes>(tails, below);
      store<bytes>(tails + W, above);
    }
  }
  const bool with_seeds = has_seed(s.pass) || s.pass == moments;
  s.scratch_steps({mapped, with_seeds ? seeds : nullptr, mapped, W, padded, 1, coeffs, sums, 0}, s.table, s.degree);
  if (!has_out(s.pass)) return;
  if (s.pass == forward && s.edge == Edge::linear) {
    const T* slopes = coeffs + (s.degree + 1) * W;
    const V below = load<bytes>(slopes), above = load<bytes>(slopes + W);
    for (int i = 0; i < n; i += W) {
      const V inside = load<bytes>(mapped + i);
      store<bytes>(mapped + i, inside + load<bytes>(raw + i) * below + load<bytes>(beyond + i) * above);
    }
  }
  // The gradient of `clamp` vanishes outside, and `zero` does by name.
  if (s.edge == Edge::zero || (s.edge == Edge::clamp && s.pass != forward)) {
    for (int i = 0; i < n; ++i) mapped[i] = (raw[i] < lo) | (raw[i] > hi) ? T(0) : mapped[i];
  }
  scatter<W>(mapped, stride, rows, lanes, s.by_lanes, s.out + offset);
}

// A task. `coeffs` holds the blocks of its units; `sums`, of a few rows, and `totals`, of all, are room for theirs.
// `partial` receives the sums of its units: a block each where lanes differ, and else the block's rows, summed over
// their lanes.
template <int bytes, typename S, typename T>
SLAF_INLINE void run_task(const Sweep<S, T>& s, const Task& task, const T* coeffs, T* __restrict__ sums,
                          double* __restrict__ totals, double* partial) {
  constexpr int W = bytes / sizeof(T);
  const int64_t block = int64_t{s.block_rows} * W, units = task.unit_end - task.unit_begin;
  const int64_t numbers = has_sums(s.pass) ? units * block : 0;
  std::fill_n(sums, numbers, T(0));
  std::fill_n(totals, numbers, 0.0);
  int64_t unflushed = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    for (int64_t i = 0; i < numbers; ++i) {
      totals[i] += static_cast<double>(sums[i]);
      sums[i] = 0;
    }
    unflushed = 0;
  };
  // Where a row is shorter than a vector, no unit is whole.
  const bool direct =
      s.steps != nullptr && s.edge == Edge::extrapolate && s.center == 0 && !(s.by_lanes && s.inner < W);
  const auto strip = [&](int64_t offset, int64_t stride, int64_t rows, int64_t width,
                         int64_t unit) __attribute__((always_inline)) {
    if (rows == 0 || width == 0) return;
    s.steps({s.x + offset, further(s.grad_output, offset), further(s.out, offset), stride, static_cast<int>(rows),
             static_cast<int>(width), coeffs + unit * block, sums + unit * block, block},
            s.table, s.degree);
  };

  // Where units share cache lines, their tiles are low enough to meet in L1. Nothing but sums limits a long strip.
  const int64_t length = task.inner_end - task.inner_begin;
  const int64_t least = std::max(low_rows / s.step, 1) * s.step;
  const int64_t low = direct ? least : std::clamp<int64_t>(2048 / (units * bytes) / s.step * s.step, least, tile_rows);
  const int64_t longest = has_sums(s.pass) ? summed_rows : length / W + 1;
  const int64_t tallest = s.by_lanes ? low : direct ? longest : tile_rows;
  for (int64_t o = task.outer_begin; o < task.outer_end; o += s.by_lanes ? tallest : 1) {
    for (int64_t done = 0; done < length; done += tallest * W) {
      int64_t rows;
      if (s.by_lanes) {
        rows = std::min(task.outer_end - o, tallest);
        const int64_t first = task.unit_begin * W, offset = o * s.inner + first;
        const int64_t whole = direct ? std::min(units, (s.inner - first) / W) : 0, steps = rows / s.step * s.step;
        strip(offset, s.inner, steps, whole, 0);
        for (int64_t u = steps < rows ? 0 : whole; u < units; ++u) {
          const int64_t begin = u < whole ? steps : 0;
          const int lanes = static_cast<int>(std::min<int64_t>(W, s.inner - first - u * W));
          tile<bytes>(s, offset + begin * s.inner + u * W, s.inner, static_cast<int>(rows - begin), lanes,
                      coeffs + u * block, sums + u * block);
        }
        done = length;
      } else {
        const int64_t left = std::min(length - done, tallest * W);
        rows = (left + W - 1) / W;
        const int64_t whole = direct ? left / W / s.step * s.step : 0;
        for (int64_t u = 0; u < units; ++u) {
          const int64_t offset = (o * s.units + task.unit_begin + u) * s.inner + task.inner_begin + done;
          strip(offset, W, whole, 1, u);
          if (whole < rows) {
            const int last = static_cast<int>(left - (rows - 1) * W);
            tile<bytes>(s, offset + whole * W, W, static_cast<int>(rows - whole), last, coeffs + u * block,
                        sums + u * block);
          }
        }
      }
      if ((unflushed += rows) >= summed_rows) flush();
    }
  }
  flush();
  for (int64_t i = 0; i < numbers; ++i) {
    double& to = s.by_lanes ? partial[i] : partial[i / W];
    to = s.by_lanes || i % W == 0 ? totals[i] : to + totals[i];
  }
}

}  // namespace slaf_ext::cpu
