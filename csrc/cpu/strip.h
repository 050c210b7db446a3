// The loop over the vectors of a strip: what is read next, prefetched, and left over.
#pragma once

#include "kernel.h"

namespace slaf_ext::cpu {

// A pointer `elements` further on, if it points to anything.
template <typename S>
SLAF_INLINE S* advance(S* from, int64_t elements) {
  return from == nullptr ? nullptr : from + elements;
}

// `units` neighbouring units of `vectors` vectors each, a multiple of the step, `stride` elements apart, and their
// results `out_stride` apart. The blocks of coefficients and sums of two units lie `block` elements apart. Where
// vectors are consecutive, `remainder` more elements may follow them, fewer than a step's.
template <typename S, typename T = compute_t<S>>
struct Strip {
  const Mapping<T>* mapping;  // null where the walk sees x
  const S* x;
  const S* seed;
  S* out;
  int64_t stride, out_stride;
  int vectors, units;
  const T* coeffs;
  T* sums;
  int64_t block;
  int remainder;
  bool streams;  // whether results are written past the caches, where vectors are consecutive
};

// The loop compiled for a pass, a kind of walk and an instruction set.
template <typename S, typename T = compute_t<S>>
using RunStrip = void (*)(const Strip<S, T>&, const Rows<T>& table, int degree);

constexpr int units_ahead = 4;     // prefetched where vectors are not consecutive
constexpr int bytes_ahead = 3072;  // prefetched where they are, across the page's end, where the processor stops
constexpr size_t cache_line = 64;  // bytes

// Prefetches `count` places, `stride` elements apart; those of `out` unless it is null.
template <int count, unsigned pass, typename S>
SLAF_INLINE void prefetch(const S* x, const S* seed, const S* out, int64_t distance, int64_t stride) {
#pragma GCC unroll 8
  for (int u = 0; u < count; ++u) {
    const int64_t at = distance + u * stride;
    __builtin_prefetch(x + at);
    if constexpr (has_seed(pass)) __builtin_prefetch(seed + at);
  }
  if (!has_out(pass) || out == nullptr) return;
#pragma GCC unroll 8
  for (int u = 0; u < count; ++u) __builtin_prefetch(out + distance + u * stride, 1);
}

template <int bytes>
SLAF_INLINE bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// n zeros, and n elements with all bits set.
template <typename U, int n>
struct Mask {
  U bits[2 * n]{};
  constexpr Mask() {
    for (int i = n; i < 2 * n; ++i) bits[i] = ~U{0};
  }
};
template <typename U, int n>
inline constexpr Mask<U, n> mask;

// Copies the last `remainder` of n elements, and zeros in place of those before them; by W, as they are read later.
template <int n, int W, typename S>
SLAF_INLINE void copy_last(const S* from, int remainder, S* to) {
  using U = std::conditional_t<is_half_v<S>, uint16_t, std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>>;
  using V = typename VectorOf<U, W * sizeof(U)>::anywhere;
  for (int i = 0; i < n; i += W) {
    *reinterpret_cast<V*>(to + i) =
        *reinterpret_cast<const V*>(from + i) & *reinterpret_cast<const V*>(mask<U, n>.bits + remainder + i);
  }
}

// A tail of the degree that is a Constant is for consecutive vectors and no mapping.
template <Walk kind, int bytes, unsigned pass, typename Tail, typename S, typename T>
SLAF_INLINE void run_strip(const Strip<S, T>& s, const Rows<T>& table, int degree) {
  constexpr int count = vectors_per_step(bytes, pass, kind), W = bytes / sizeof(T);
  constexpr bool dense = !std::is_same_v<Tail, int>;
  constexpr int size = sizeof(S), line = cache_line / size, lines = (count * W + line - 1) / line;
  // In half types it takes longer to compute a result than to write it.
  constexpr bool can_stream = has_out(pass) && has_streams<bytes> && !is_half_v<S>;
  // Copies, as for all that the compiler knows the results could overwrite the table.
  T a[2], b[2];
  Rows<T> rows = table;
  if constexpr (has_one_factor(kind)) {
    std::copy_n(table.a, 2, a);
    std::copy_n(table.b, 2, b);
    rows = {a, b, nullptr};
  }
  const Degree<Tail> n = in_blocks<Tail>(degree);
  using Stride = std::conditional_t<dense, Constant<W>, int64_t>;
  Stride stride, out_stride;
  if constexpr (!dense) {
    stride = s.stride;
    out_stride = s.out_stride;
  }
  const Mapping<T>* mapping = dense ? nullptr : s.mapping;
  const int64_t block = s.block;
  const int units = dense ? 1 : s.units;
  for (int unit = 0; unit < units; ++unit) {
    const T* coeffs = s.coeffs + unit * block;
    T* sums = advance(s.sums, unit * block);
    const S* x = s.x + unit * W;
    const S* seed = advance(s.seed, unit * W);
    S* out = advance(s.out, unit * W);
    // What the next step works on; x, seed and out are where the step after it begins.
    const S *now_x = x, *now_seed = seed;
    S* now_out = out;
    int left = s.vectors;
    const bool streams = can_stream && s.streams && stride == W && is_aligned<bytes>(out);
    alignas(bytes) S streamed[count * W];
    const auto proceed = [&]() __attribute__((always_inline)) {
      now_x = x, now_seed = seed, now_out = out;
      x += count * stride;
      if (has_seed(pass) || (pass == moments && seed != nullptr)) seed += count * stride;
      if (has_out(pass)) out += count * out_stride;
    };
    // The remainder is handled first, by an overlapping step: the main loop writes again what it writes too early.
    // Sums must not count what lies before the remainder.
    alignas(bytes) S last_x[count * W], last_seed[count * W];
    if (s.remainder > 0) {
      const int64_t at = (s.vectors - count) * W + s.remainder;
      now_x = x + at;
      now_seed = advance(seed, at);
      now_out = advance(out, at);
      left += count;
      if constexpr (has_sums(pass)) {
        copy_last<count * W, W>(now_x, s.remainder, last_x);
        now_x = last_x;
        if constexpr (pass == moments) {
          std::fill_n(last_seed, count * W - s.remainder, S(0));
          std::fill_n(last_seed + count * W - s.remainder, s.remainder, S(1));
        } else {
          copy_last<count * W, W>(now_seed, s.remainder, last_seed);
        }
        now_seed = last_seed;
      }
    } else {
      proceed();
    }
    // A few units further on, or at the start of the next step.
    const int next = unit + units_ahead;
    const int64_t ahead = next < units ? units_ahead * W : s.vectors * stride + (next - units - unit) * W;
    for (; left > 0; left -= count) {
      if (stride == W) {
        prefetch<lines, pass>(now_x, now_seed, streams ? nullptr : now_out, bytes_ahead / size, line);
      } else {
        // A buffer for results is in L1 already.
        prefetch<count, pass>(now_x, now_seed, out_stride == stride ? now_out : nullptr, ahead, stride);
      }
      const bool streams_now = streams && is_aligned<bytes>(now_out);  // not so before the remainder
      Step<kind, bytes, pass, count, S, T, Stride, Tail>{
          now_x, now_seed, streams_now ? +streamed : now_out, stride, out_stride, rows, n, mapping, coeffs, sums}
          .run();
      if constexpr (can_stream) {
        if (streams_now) stream<bytes, count>(streamed, now_out);
      }
      proceed();
    }
  }
}

}  // namespace slaf_ext::cpu
