// A task of a sweep: its units are visited strip by strip, and what no strip takes passes through small tiles.
#pragma once

#include "partition.h"
#include "strip.h"

namespace slaf_ext::cpu {

constexpr int strip_vectors = 8;  // of a strip whose units share cache lines, about: they meet in L1
constexpr int tile_vectors = 96;  // a multiple of all steps
constexpr int sum_vectors =
    192;  // summed in fp32 before the sums pass to fp64, which keeps the error at fp32's rounding
constexpr int streamed_strip_bytes = 16384;  // of the results of a strip whose units share cache lines, at most
constexpr int tile_bytes = 2048;             // of the tiles of a task's units, about, where these share cache lines

// What stays the same during a sweep. S is the storage type, T what is computed in.
template <typename S, typename T = compute_t<S>>
struct Sweep {
  unsigned pass;
  const S* x;
  const S* grad_output;      // if the pass has a seed
  S* out;                    // y, or the gradient in x
  RunStrip<S, T> run_strip;  // on elements as they lie in memory; null where they must be copied to tiles first
  RunStrip<T, T> run_tile;   // on tiles
  int step;                  // vectors
  Rows<T> table;
  int degree;
  const Mapping<T>* mapping;
  int slots;  // vectors of coefficients, or of sums, of a unit
  const Partition& partition;
  bool streams;  // whether results are written past the caches
};

// Reads a tile: `vectors` vectors, `stride` elements apart, the first `whole` of them whole and the others of `lanes`
// elements. Fills the others, and the tile up to `padded` vectors, with zeros.
template <int bytes, typename S, typename T>
SLAF_INLINE void gather(const S* from, int64_t stride, int vectors, int whole, int lanes, int padded,
                        T* __restrict__ to) {
  constexpr int W = bytes / sizeof(T);
#pragma GCC unroll 1
  for (int v = 0; v < whole; ++v) store<bytes>(to + v * W, load<bytes>(from + v * stride));
  for (int v = whole; v < vectors; ++v) {
    for (int i = 0; i < W; ++i) to[v * W + i] = i < lanes ? widen(from[v * stride + i]) : T(0);
  }
  for (int i = vectors * W; i < padded * W; ++i) to[i] = T(0);
}
template <int bytes, typename S, typename T>
SLAF_INLINE void scatter(const T* __restrict__ from, int64_t stride, int vectors, int whole, int lanes, S* to) {
  constexpr int W = bytes / sizeof(T);
#pragma GCC unroll 1
  for (int v = 0; v < whole; ++v) store<bytes>(to + v * stride, load<bytes>(from + v * W));
  for (int v = whole; v < vectors; ++v) {
    for (int i = 0; i < lanes; ++i) to[v * stride + i] = narrow<S>(from[v * W + i]);
  }
}

// `vectors` vectors of one unit, the first at `offset`, by way of tiles that stay in L1. Where runs are read only the
// last vector can be short, of `lanes` elements; where columns are read, all are.
template <int bytes, typename S, typename T>
SLAF_INLINE void run_tile(const Sweep<S, T>& s, int64_t offset, int64_t stride, int vectors, int lanes, const T* coeffs,
                          T* sums) {
  constexpr int W = bytes / sizeof(T);
  const bool has_columns = s.partition.has_columns;
  const int padded = (vectors + s.step - 1) / s.step * s.step;
  const int whole = lanes == W ? vectors : has_columns ? 0 : vectors - 1;
  alignas(bytes) T tile[tile_vectors * W], seeds[tile_vectors * W];
  gather<bytes>(s.x + offset, stride, vectors, whole, lanes, padded, tile);
  if (s.pass == moments) {
    const int members = has_columns ? vectors * W : (vectors - 1) * W + lanes;
    for (int i = 0; i < padded * W; ++i) seeds[i] = i < members ? T(1) : T(0);
  } else if (has_seed(s.pass)) {
    gather<bytes>(s.grad_output + offset, stride, vectors, whole, lanes, padded, seeds);
  }
  const bool with_seeds = has_seed(s.pass) || s.pass == moments;
  s.run_tile({s.mapping, tile, with_seeds ? seeds : nullptr, tile, W, W, padded, 1, coeffs, sums, 0, 0, false}, s.table,
             s.degree);
  if (has_out(s.pass)) scatter<bytes>(tile, stride, vectors, whole, lanes, s.out + offset);
}

// A task in progress. `coeffs` holds the blocks of its units, and `sums` and `totals` those of their sums: of a few
// vectors in T, and of all.
template <int bytes, typename S, typename T>
struct TaskRun {
  static constexpr int W = bytes / sizeof(T);

  const Sweep<S, T>& s;
  const Partition& p;
  const Task& task;
  const T* coeffs;
  T* sums;
  double* totals;
  int64_t block, units;
  // Whether strips are run. Where a matrix row is shorter than a vector, no unit is whole.
  bool has_strips;

  // All vectors of all units, in strips that are high enough to be fast, and low enough where units share cache lines
  // to meet in L1. Otherwise nothing but sums limits a strip.
  SLAF_INLINE void run() const {
    const int64_t length = task.inner_end - task.inner_begin;
    const int64_t least = std::max(strip_vectors / s.step, 1) * s.step;
    const int64_t low =
        has_strips ? least : std::clamp<int64_t>(tile_bytes / (units * bytes) / s.step * s.step, least, tile_vectors);
    const int64_t longest = has_sums(s.pass) ? sum_vectors : length / W + 1;
    const int64_t tallest = p.has_columns ? low : has_strips ? longest : tile_vectors;
    int64_t unflushed = 0;
    const auto count = [&](int64_t vectors) __attribute__((always_inline)) {
      if ((unflushed += vectors) < sum_vectors) return;
      flush();
      unflushed = 0;
    };
    for (int64_t o = task.outer_begin; o < task.outer_end; o += p.has_columns ? tallest : 1) {
      if (p.has_columns) {
        const int64_t vectors = std::min(task.outer_end - o, tallest);
        run_columns(o, vectors);
        count(vectors);
      } else {
        for (int64_t done = 0; done < length; done += tallest * W) {
          const int64_t elements = std::min(length - done, tallest * W);
          run_runs(o, task.inner_begin + done, elements);
          count((elements + W - 1) / W);
        }
      }
    }
    flush();
    if (s.streams) fence();
  }

  // `vectors` vectors of every unit, in matrix rows from `o` on.
  SLAF_INLINE void run_columns(int64_t o, int64_t vectors) const {
    const int64_t first = task.unit_begin * W, offset = o * p.inner + first;
    const int64_t whole = has_strips ? std::min(units, (p.inner - first) / W) : 0, steps = vectors / s.step * s.step;
    if (steps > 0 && whole > 0 && !stream_columns(offset, steps, whole)) run_strip(offset, p.inner, steps, whole, 0, 0);
    for (int64_t u = steps < vectors ? 0 : whole; u < units; ++u) {
      const int64_t begin = u < whole ? steps : 0;
      const int lanes = static_cast<int>(std::min<int64_t>(W, p.inner - first - u * W));
      run_tile<bytes>(s, offset + begin * p.inner + u * W, p.inner, static_cast<int>(vectors - begin), lanes,
                      coeffs + u * block, sums + u * block);
    }
  }

  // A strip whose results are written past the caches, matrix row by matrix row: unit by unit, with their lines a
  // matrix row apart, that took longer than through the caches. False where it cannot be.
  SLAF_INLINE bool stream_columns(int64_t offset, int64_t vectors, int64_t width) const {
    if constexpr (has_streams<bytes> && !is_half_v<S>) {
      constexpr int64_t most = streamed_strip_bytes / sizeof(S);
      const bool aligned = is_aligned<bytes>(s.out + offset) && p.inner % W == 0;
      if (!s.streams || !has_out(s.pass) || !aligned || vectors * width * W > most) return false;
      alignas(bytes) S results[most];
      auto strip = strip_at(offset, p.inner, vectors, width, 0, 0);
      strip.out = results;
      strip.out_stride = width * W;
      strip.streams = false;
      s.run_strip(strip, s.table, s.degree);
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t u = 0; u < width; ++u) {
          stream<bytes, 1>(results + (v * width + u) * W, s.out + offset + v * p.inner + u * W);
        }
      }
      return true;
    }
    return false;
  }

  // `elements` consecutive elements of a run of every unit, from `i` on.
  SLAF_INLINE void run_runs(int64_t o, int64_t i, int64_t elements) const {
    const int64_t vectors = (elements + W - 1) / W, whole = elements / W / s.step * s.step;
    for (int64_t u = 0; u < units; ++u) {
      const int64_t offset = (o * p.units + task.unit_begin + u) * p.inner + i;
      if (has_strips && whole > 0) {
        run_strip(offset, W, whole, 1, u, elements - whole * W);
      } else {
        run_tile<bytes>(s, offset, W, static_cast<int>(vectors), static_cast<int>(elements - (vectors - 1) * W),
                        coeffs + u * block, sums + u * block);
      }
    }
  }

  SLAF_INLINE void run_strip(int64_t offset, int64_t stride, int64_t vectors, int64_t width, int64_t unit,
                             int64_t remainder) const {
    s.run_strip(strip_at(offset, stride, vectors, width, unit, remainder), s.table, s.degree);
  }
  SLAF_INLINE Strip<S, T> strip_at(int64_t offset, int64_t stride, int64_t vectors, int64_t width, int64_t unit,
                                   int64_t remainder) const {
    return {s.mapping,
            s.x + offset,
            advance(s.grad_output, offset),
            advance(s.out, offset),
            stride,
            stride,
            static_cast<int>(vectors),
            static_cast<int>(width),
            coeffs + unit * block,
            sums + unit * block,
            block,
            static_cast<int>(remainder),
            s.streams};
  }

  SLAF_INLINE void flush() const {
    for (int64_t i = 0; i < (has_sums(s.pass) ? units * block : 0); ++i) {
      totals[i] += static_cast<double>(sums[i]);
      sums[i] = 0;
    }
  }
};

// Runs a task, and writes the sums of its groups to `partial`: of each slot, those of all groups.
template <int bytes, typename S, typename T>
SLAF_INLINE void run_task(const Sweep<S, T>& s, const Task& task, const T* coeffs, T* __restrict__ sums,
                          double* __restrict__ totals, double* partial) {
  constexpr int W = bytes / sizeof(T);
  const Partition& p = s.partition;
  const int64_t block = int64_t{s.slots} * W, units = task.unit_end - task.unit_begin;
  if (has_sums(s.pass)) {
    std::fill_n(sums, units * block, T(0));
    std::fill_n(totals, units * block, 0.0);
  }
  const bool has_strips = s.run_strip != nullptr && !(p.has_columns && p.inner < W);
  TaskRun<bytes, S, T>{s, p, task, coeffs, sums, totals, block, units, has_strips}.run();
  if (!has_sums(s.pass)) return;
  const int64_t groups = task.group_end - task.group_begin;
  std::fill_n(partial, s.slots * groups, 0.0);
  for (int64_t u = task.unit_begin; u < task.unit_end; ++u) {
    const int64_t lanes = p.has_columns ? std::min<int64_t>(W, p.inner - u * W) : W;
    for (int slot = 0; slot < s.slots; ++slot, totals += W) {
      double* to = partial + slot * groups - task.group_begin;
      for (int64_t i = 0; i < lanes; ++i) to[p.has_columns ? p.group_of[u * W + i] : u] += totals[i];
    }
  }
}

}  // namespace slaf_ext::cpu
