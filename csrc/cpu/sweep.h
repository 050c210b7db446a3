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
  // For bases in which D a cancels.
  walked_gradient = 64,  // grad_output times the sum over k of a_k psi_k'
};
constexpr bool has_seed(unsigned pass) { return (pass & (forward | moments)) == 0; }
constexpr bool has_out(unsigned pass) {
  return (pass & (forward | input_gradient | normalized_gradient | walked_gradient)) != 0;
}
constexpr bool has_sums(unsigned pass) { return (pass & (coeffs_gradient | moments | centered_gradient)) != 0; }

enum class Edge { extrapolate, zero, clamp, linear };

// The walk sees clamp(x, lo, hi) - center; without edges, lo and hi are infinite.
template <typename T>
struct Mapping {
  Edge edge;
  T center, lo, hi;

  template <typename V>
  SLAF_INLINE V apply(const V& x) const {
    const V low = lo - V{}, high = hi - V{};
    return (x < low ? low : x > high ? high : x) - center;
  }
  // t inside, 0 outside. Comparisons are not combined: gcc 12 would leave AVX-512's vectors for it.
  template <typename V>
  SLAF_INLINE V cut(const V& t, const V& x) const {
    const V beyond = x > hi ? x - hi : below(x);
    return beyond == 0 ? t : V{};
  }
  // How far x lies beyond an edge.
  template <typename V>
  SLAF_INLINE V below(const V& x) const {
    return x < lo ? x - lo : V{};
  }
  template <typename V>
  SLAF_INLINE V above(const V& x) const {
    return x > hi ? x - hi : V{};
  }
};

// A pointer `numbers` further on, if it points to anything.
template <typename S>
SLAF_INLINE S* further(S* from, int64_t numbers) {
  return from == nullptr ? nullptr : from + numbers;
}

// `rows` rows, a multiple of the step, `stride` numbers apart, of `units` vectors side by side. Each unit has a block
// of coefficients and, if the pass has sums, one of sums, `block` numbers after those of the unit before it. Behind the
// rows of a unit whose vectors lie one after another there may be `rest` numbers more, fewer than a step's.
template <typename S, typename T = compute_t<S>>
struct Strip {
  const Mapping<T>* mapping;  // or null, where the walk sees x
  const S* x;
  const S* seed;
  S* out;
  int64_t stride;
  int rows, units;
  const T* coeffs;
  T* sums;
  int64_t block;
  int rest;
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
  Steps<S, T> steps;          // for numbers as they lie in memory, or null,
  Steps<T, T> scratch_steps;  // and for those that were copied before,
  int step;                   // so many vectors at a time
  Rows<T> table;
  int degree;
  const Mapping<T>* mapping;

  // The rows, of W numbers, of a unit's block: coefficients, or sums of grad_output psi_k. With linear edges two rows
  // more: slopes below lo and above hi, and the sums of grad_output times the distance beyond.
  int block_rows;

  // As the storage is cut: `outer` times `units` times `inner` numbers, or, with a unit a column of
  // lanes, `outer` rows of `inner` numbers.
  bool by_lanes;
  int64_t outer, units, inner;
  const int64_t* group_of;  // by lanes, the group of every number of a row
};

// A part of the work, and the groups that it meets.
struct Task {
  int64_t outer_begin, outer_end, unit_begin, unit_end, inner_begin, inner_end;
  int64_t group_begin, group_end;
};

constexpr unsigned both_gradients = input_gradient | coeffs_gradient;

// Vectors that a step works on: as many as 32, or 16, registers hold with what goes with them. A fourth of AVX2 in the
// step of both gradients fits barely, and only beside a factor that is the same for every row.
constexpr int vectors_a_step(int bytes, unsigned pass, Walk kind) {
  if (pass == forward) return bytes == 64 ? 8 : 4;
  if (pass == normalized_gradient || pass == walked_gradient) return bytes == 64 ? 3 : 2;
  if (pass == both_gradients && bytes == 32 && has_one_factor(kind)) return 4;
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
                      const Degree<Tail>& degree, const Mapping<T>* mapping, const T* coeffs, T* sums) {
  constexpr int W = bytes / sizeof(T);
  const int K = degree.value() + 1;
  using P = Pack<T, bytes, count>;
  using V = Vector<T, bytes>;
  const auto row = [&](const T* block, int k) __attribute__((always_inline)) { return load<bytes>(block + k * W); };
  const auto add = [&](T* block, int k, const P& p)
                       __attribute__((always_inline)) { store<bytes>(block + k * W, row(block, k) + p.total()); };
  // What a mapping asks for is done in memory, by loops that are not unrolled: they stand beside every walk.
  alignas(bytes) T room[count * W];
  const auto replace = [&](P& p, auto&& f) __attribute__((always_inline)) {
    p.write(+room, W);
#pragma GCC unroll 1
    for (int u = 0; u < count; ++u) {
      store<bytes>(room + u * W, f(load<bytes>(room + u * W), load<bytes>(x + u * stride)));
    }
    p = P::read(+room, W);
  };
  const auto cut = [&](const V& t, const V& raw) __attribute__((always_inline)) { return mapping->cut(t, raw); };
  const bool is_linear = mapping != nullptr && mapping->edge == Edge::linear;
  const bool is_zero = mapping != nullptr && mapping->edge == Edge::zero;
  // The gradient of `clamp` vanishes outside, and `zero` does by name.
  const bool is_cut = is_zero || (pass != forward && mapping != nullptr && mapping->edge == Edge::clamp);
  P point = P::read(x, stride);
  if (mapping != nullptr) {
    replace(point, [&](const V& t, const V&) __attribute__((always_inline)) { return mapping->apply(t); });
  }
  if constexpr (pass == forward) {
    const auto coeff = [&](int k) __attribute__((always_inline)) { return P::filled(row(coeffs, k)); };
    P y = expand<kind>(point, table, degree, coeff);
    if (is_linear) {
      // A tangent of slope 0 is flat at infinity too, where 0 * inf would be NaN.
      const auto tangent = [](const V& slope, const V& distance)
                               __attribute__((always_inline)) { return slope == 0 ? V{} : slope * distance; };
      replace(y, [&](const V& t, const V& raw) __attribute__((always_inline)) {
        return t + tangent(row(coeffs, K), mapping->below(raw)) + tangent(row(coeffs, K + 1), mapping->above(raw));
      });
    }
    if (is_cut) replace(y, cut);
    y.write(out, stride);
  } else if constexpr (pass == normalized_gradient || pass == walked_gradient) {
    const T *u = coeffs + K * W, *v = u + K * W;
    const P g = P::read(seed, stride);
    const Dual<P> dual{point, P::filled(T(1))}, one{P::filled(T(1)), P::filled(T(0))};
    P sum = P::filled(T(0));
    walk<kind>(dual, one, table, degree, [&](int k, const Dual<P>& psi) __attribute__((always_inline)) {
      if constexpr (pass == walked_gradient) {
        sum = sum + psi.slope * row(coeffs, k);
      } else {
        sum = sum + psi.slope * (g * row(coeffs, k) + psi.value * row(v, k) + row(u, k));
      }
    });
    if constexpr (pass == walked_gradient) sum = g * sum;
    if (is_cut) replace(sum, cut);
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
    P g = P::read(seed, stride);
    if (is_zero) replace(g, cut);
    P slope;
    walk<kind>(point, g, table, degree, [&](auto k, const P& psi) __attribute__((always_inline)) {
      if constexpr ((pass & coeffs_gradient) != 0) add(sums, k, psi);
      if constexpr ((pass & input_gradient) != 0 && !std::is_same_v<decltype(k), Last>) {  // p' is of a lower degree
        slope = k == 0 ? psi * row(coeffs, k) : slope + psi * row(coeffs, k);
      }
    });
    if constexpr ((pass & coeffs_gradient) != 0) {
      if (is_linear) {
#pragma GCC unroll 1
        for (int u = 0; u < count; ++u) {
          const V weight = load<bytes>(seed + u * stride), raw = load<bytes>(x + u * stride);
          store<bytes>(sums + K * W, row(sums, K) + weight * mapping->below(raw));
          store<bytes>(sums + (K + 1) * W, row(sums, K + 1) + weight * mapping->above(raw));
        }
      }
    }
    if constexpr ((pass & input_gradient) != 0) {
      if (is_cut) replace(slope, cut);
      slope.write(out, stride);
    }
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

// n zeros, and n numbers with all bits set.
template <typename U, int n>
struct Mask {
  U bits[2 * n]{};
  constexpr Mask() {
    for (int i = n; i < 2 * n; ++i) bits[i] = ~U{0};
  }
};
template <typename U, int n>
inline constexpr Mask<U, n> mask;

// The last `rest` numbers of n, and zeros before them whatever stood there; by W, as they are read afterwards.
template <int n, int W, typename S>
SLAF_INLINE void copy_last(const S* from, int rest, S* to) {
  using U = std::conditional_t<is_half<S>, uint16_t, std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>>;
  using V = typename VectorOf<U, W * sizeof(U)>::anywhere;
  for (int i = 0; i < n; i += W) {
    *reinterpret_cast<V*>(to + i) =
        *reinterpret_cast<const V*>(from + i) & *reinterpret_cast<const V*>(mask<U, n>.bits + rest + i);
  }
}

// The walk over a strip. Code for one tail of the degree is for vectors that lie one after another, and no mapping.
template <Walk kind, int bytes, unsigned pass, typename Tail, typename S, typename T>
SLAF_INLINE void steps(const Strip<S, T>& s, const Rows<T>& table, int degree) {
  constexpr int count = vectors_a_step(bytes, pass, kind), W = bytes / sizeof(T);
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
  const Mapping<T>* mapping = dense ? nullptr : s.mapping;
  const int64_t block = s.block;
  const int units = dense ? 1 : s.units;
  for (int unit = 0; unit < units; ++unit) {
    const T* coeffs = s.coeffs + unit * block;
    T* sums = further(s.sums, unit * block);
    const S* x = s.x + unit * W;
    const S* seed = further(s.seed, unit * W);
    S* out = further(s.out, unit * W);
    // What the next step works on, and what the steps after it begin with.
    const S *now_x = x, *now_seed = seed;
    S* now_out = out;
    int left = s.rows;
    const auto proceed = [&]() __attribute__((always_inline)) {
      now_x = x, now_seed = seed, now_out = out;
      x += count * stride;
      if (has_seed(pass) || (pass == moments && seed != nullptr)) seed += count * stride;
      if (has_out(pass)) out += count * stride;
    };
    // The rest is the end of one step more, which comes first: what it writes too early is written over. Sums must not
    // count its beginning.
    alignas(bytes) S last_x[count * W], last_seed[count * W];
    if (s.rest > 0) {
      const int64_t at = (s.rows - count) * W + s.rest;
      now_x = x + at;
      now_seed = further(seed, at);
      now_out = further(out, at);
      left += count;
      if constexpr (has_sums(pass)) {
        copy_last<count * W, W>(now_x, s.rest, last_x);
        now_x = last_x;
        if constexpr (pass == moments) {
          std::fill_n(last_seed, count * W - s.rest, S(0));
          std::fill_n(last_seed + count * W - s.rest, s.rest, S(1));
        } else {
          copy_last<count * W, W>(now_seed, s.rest, last_seed);
        }
        now_seed = last_seed;
      }
    } else {
      proceed();
    }
    // A few units further on, or in the rows below.
    const int next = unit + units_ahead;
    const int64_t ahead = next < units ? units_ahead * W : s.rows * stride + (next - units - unit) * W;
    for (; left > 0; left -= count) {
      if (stride == W) {
        prefetch<lines, pass>(now_x, now_seed, now_out, bytes_ahead / size, line);
      } else {
        prefetch<count, pass>(now_x, now_seed, now_out, ahead, stride);
      }
      step<kind, bytes, pass, count>(now_x, now_seed, now_out, stride, rows, n, mapping, coeffs, sums);
      proceed();
    }
  }
}

// Reads a tile of `rows` vectors, `stride` numbers apart, of which the first `whole` are whole and the others `lanes`
// numbers; fills up those, and rows as far as `padded`, with zeros.
template <int bytes, typename S, typename T>
SLAF_INLINE void gather(const S* from, int64_t stride, int rows, int whole, int lanes, int padded, T* __restrict__ to) {
  constexpr int W = bytes / sizeof(T);
#pragma GCC unroll 1
  for (int row = 0; row < whole; ++row) store<bytes>(to + row * W, load<bytes>(from + row * stride));
  for (int row = whole; row < rows; ++row) {
    for (int i = 0; i < W; ++i) to[row * W + i] = i < lanes ? widen(from[row * stride + i]) : T(0);
  }
  for (int i = rows * W; i < padded * W; ++i) to[i] = T(0);
}
template <int bytes, typename S, typename T>
SLAF_INLINE void scatter(const T* __restrict__ from, int64_t stride, int rows, int whole, int lanes, S* to) {
  constexpr int W = bytes / sizeof(T);
#pragma GCC unroll 1
  for (int row = 0; row < whole; ++row) store<bytes>(to + row * stride, load<bytes>(from + row * W));
  for (int row = whole; row < rows; ++row) {
    for (int i = 0; i < lanes; ++i) narrow(to + row * stride + i, from[row * W + i]);
  }
}

// `rows` vectors of one unit, the first at `offset`: what is no whole step, or of a type that steps do not read, passes
// through tiles that stay in L1. Where a unit is a group only the last vector can be short: `lanes` numbers; where it
// is a column of lanes, all are.
template <int bytes, typename S, typename T>
SLAF_INLINE void tile(const Sweep<S, T>& s, int64_t offset, int64_t stride, int rows, int lanes, const T* coeffs,
                      T* sums) {
  constexpr int W = bytes / sizeof(T);
  const int padded = (rows + s.step - 1) / s.step * s.step;
  const int whole = lanes == W ? rows : s.by_lanes ? 0 : rows - 1;
  alignas(bytes) T numbers[tile_rows * W], seeds[tile_rows * W];
  gather<bytes>(s.x + offset, stride, rows, whole, lanes, padded, numbers);
  if (s.pass == moments) {
    const int given = s.by_lanes ? rows * W : (rows - 1) * W + lanes;
    for (int i = 0; i < padded * W; ++i) seeds[i] = i < given ? T(1) : T(0);
  } else if (has_seed(s.pass)) {
    gather<bytes>(s.grad_output + offset, stride, rows, whole, lanes, padded, seeds);
  }
  const bool with_seeds = has_seed(s.pass) || s.pass == moments;
  s.scratch_steps({s.mapping, numbers, with_seeds ? seeds : nullptr, numbers, W, padded, 1, coeffs, sums, 0, 0},
                  s.table, s.degree);
  if (has_out(s.pass)) scatter<bytes>(numbers, stride, rows, whole, lanes, s.out + offset);
}

// A task. `coeffs` holds the blocks of its units; `sums`, of a few rows, and `totals`, of all, are room for theirs.
// `partial` receives the sums of its groups: a row of them for every row of a block.
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
  const bool direct = s.steps != nullptr && !(s.by_lanes && s.inner < W);
  const auto strip = [&](int64_t offset, int64_t stride, int64_t rows, int64_t width, int64_t unit, int64_t rest)
                         __attribute__((always_inline)) {
                           s.steps({s.mapping, s.x + offset, further(s.grad_output, offset), further(s.out, offset),
                                    stride, static_cast<int>(rows), static_cast<int>(width), coeffs + unit * block,
                                    sums + unit * block, block, static_cast<int>(rest)},
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
        if (steps > 0 && whole > 0) strip(offset, s.inner, steps, whole, 0, 0);
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
        const int64_t whole = left / W / s.step * s.step;
        for (int64_t u = 0; u < units; ++u) {
          const int64_t offset = (o * s.units + task.unit_begin + u) * s.inner + task.inner_begin + done;
          if (direct && whole > 0) {
            strip(offset, W, whole, 1, u, left - whole * W);
          } else {
            const int last = static_cast<int>(left - (rows - 1) * W);
            tile<bytes>(s, offset, W, static_cast<int>(rows), last, coeffs + u * block, sums + u * block);
          }
        }
      }
      if ((unflushed += rows) >= summed_rows) flush();
    }
  }
  flush();
  if (!has_sums(s.pass)) return;
  const int64_t groups = task.group_end - task.group_begin;
  std::fill_n(partial, s.block_rows * groups, 0.0);
  for (int64_t u = task.unit_begin; u < task.unit_end; ++u) {
    const int64_t lanes = s.by_lanes ? std::min<int64_t>(W, s.inner - u * W) : W;
    for (int k = 0; k < s.block_rows; ++k, totals += W) {
      double* to = partial + k * groups - task.group_begin;
      for (int64_t i = 0; i < lanes; ++i) to[s.by_lanes ? s.group_of[u * W + i] : u] += totals[i];
    }
  }
}

}  // namespace slaf_ext::cpu
