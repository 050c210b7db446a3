// GCC's and Clang's vector types: one source for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <utility>

#include "../storage.h"

namespace slaf_ext::cpu {

template <typename T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
  // The same in memory, at any address aligned for one element.
  typedef T anywhere __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};
template <typename T, int bytes>
using Vector = typename VectorOf<T, bytes>::type;

// Whether the compiler is told the instruction for a conversion: it knows none for vectors of half the width.
#ifdef __x86_64__
template <int bytes>
inline constexpr bool has_conversions = bytes > 16;
#else
template <int bytes>
inline constexpr bool has_conversions = false;
#endif

// Vectors of what S is computed in, from and to memory that holds S.
template <int bytes, typename S>
SLAF_INLINE Vector<compute_t<S>, bytes> load(const S* from) {
  if constexpr (is_half_v<S>) {
    using V = Vector<float, bytes>;
    using U = Vector<uint32_t, bytes>;
    const auto& bits = *reinterpret_cast<const typename VectorOf<uint16_t, bytes / 2>::anywhere*>(from);
    if constexpr (has_conversions<bytes> && std::is_same_v<S, Half>) {
      V v;
      asm("vcvtph2ps %1, %0" : "=v"(v) : "m"(bits));
      return v;
    } else if constexpr (has_conversions<bytes>) {
      U u;
      asm("vpmovzxwd %1, %0" : "=v"(u) : "m"(bits));
      return widen_bits<S, V>(u);
    } else {
      return widen_bits<S, V>(__builtin_convertvector(bits, U));
    }
  } else {
    return *reinterpret_cast<const typename VectorOf<S, bytes>::anywhere*>(from);
  }
}
template <int bytes, typename S>
SLAF_INLINE void store(S* to, const Vector<compute_t<S>, bytes>& v) {
  if constexpr (is_half_v<S>) {
    auto& bits = *reinterpret_cast<typename VectorOf<uint16_t, bytes / 2>::anywhere*>(to);
    if constexpr (has_conversions<bytes> && std::is_same_v<S, Half>) {
      asm("vcvtps2ph $0, %1, %0" : "=m"(bits) : "v"(v));  // 0: to nearest, ties to even
    } else {
      const auto words = narrow_bits<S, Vector<uint32_t, bytes>>(v);
      if constexpr (bytes == 32 && has_conversions<bytes>) {
        Vector<uint16_t, 16> halves;
        asm("vextracti128 $1, %1, %0\n\tvpackusdw %0, %x1, %0" : "=&x"(halves) : "x"(words));
        bits = halves;
      } else {
        bits = __builtin_convertvector(words, Vector<uint16_t, bytes / 2>);
      }
    }
  } else {
    *reinterpret_cast<typename VectorOf<S, bytes>::anywhere*>(to) = v;
  }
}

// Whether vectors are written past the caches, which then need not read what is overwritten. 16 bytes at a time that
// takes twice as long as through them.
#ifdef __x86_64__
template <int bytes>
inline constexpr bool has_streams = bytes > 16;
// Copies `count` vectors so; other threads see them after a `fence`.
template <int bytes, int count>
SLAF_INLINE void stream(const void* from, void* to) {
  using V = Vector<float, bytes>;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    asm volatile("vmovntps %1, %0" : "=m"(static_cast<V*>(to)[i]) : "v"(static_cast<const V*>(from)[i]));
  }
}
inline void fence() { asm volatile("sfence" ::: "memory"); }
#else
template <int bytes>
inline constexpr bool has_streams = false;
template <int bytes, int count>
void stream(const void*, void*);
inline void fence() {}
#endif

// Of 2 W consecutive bfloat16, the W at even or at odd places. No element changes its lane, which reading or writing in
// order would need.
template <int bytes, bool odd>
SLAF_INLINE Vector<float, bytes> load_every_other(const BFloat16* from) {
  using U = Vector<uint32_t, bytes>;
  const Vector<uint16_t, bytes> words = *reinterpret_cast<const typename VectorOf<uint16_t, bytes>::anywhere*>(from);
  const U pairs = __builtin_bit_cast(U, words);
  return __builtin_bit_cast(Vector<float, bytes>, odd ? pairs & 0xffff0000u : pairs << 16);
}
template <int bytes, int... i>
SLAF_INLINE void store_alternating(BFloat16* to, const Vector<float, bytes>& even, const Vector<float, bytes>& odd,
                                   std::integer_sequence<int, i...>) {
  using U = Vector<uint32_t, bytes>;
  using Words = Vector<uint16_t, bytes>;
  const auto low = __builtin_bit_cast(Words, rounded_bits<U>(even) >> 16);
  const auto high = __builtin_bit_cast(Words, rounded_bits<U>(odd));
  *reinterpret_cast<typename VectorOf<uint16_t, bytes>::anywhere*>(to) =
      __builtin_shufflevector(low, high, (i % 2 == 0 ? i : i + bytes / 2)...);
}

// `count` vectors worked on side by side, which hides the latency of the recurrence. Written without loops, which the
// compiler would have to unroll before it keeps the vectors in registers.
template <typename T, int bytes, int count, typename = std::make_integer_sequence<int, count>>
struct Pack;
template <typename T, int bytes, int count, int... u>
struct Pack<T, bytes, count, std::integer_sequence<int, u...>> {
  using V = Vector<T, bytes>;
  V v[count];

  SLAF_INLINE static Pack filled(const V& t) { return {{((void)u, t)...}}; }
  SLAF_INLINE static Pack filled(T t) { return filled(t - V{}); }  // t + 0 would not be t for -0
  // Vectors `stride` elements apart. A constant stride says that they are consecutive and that all lanes are treated
  // alike, so that an element may be in any lane if all are read and written in the same order.
  template <typename S, typename Stride>
  SLAF_INLINE static Pack read(const S* from, Stride stride) {
    return {{read_one<u>(from, stride)...}};
  }
  template <typename S, typename Stride>
  SLAF_INLINE void write(S* to, Stride stride) const {
    (write_one<u>(to, stride), ...);
  }
  SLAF_INLINE V total() const { return (... + v[u]); }
  SLAF_INLINE friend Pack operator*(const Pack& p, const Pack& q) { return {{(p.v[u] * q.v[u])...}}; }
  SLAF_INLINE friend Pack operator*(const Pack& p, const V& t) { return {{(p.v[u] * t)...}}; }
  SLAF_INLINE friend Pack operator*(const Pack& p, T t) { return p * (t - V{}); }
  SLAF_INLINE friend Pack operator*(T t, const Pack& p) { return p * t; }
  SLAF_INLINE Pack& operator+=(const Pack& p) { return *this = *this + p; }
  SLAF_INLINE friend Pack operator+(const Pack& p, const Pack& q) { return {{(p.v[u] + q.v[u])...}}; }
  SLAF_INLINE friend Pack operator+(const Pack& p, const V& t) { return {{(p.v[u] + t)...}}; }
  SLAF_INLINE friend Pack operator+(const Pack& p, T t) { return p + (t - V{}); }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) { return {{(p.v[u] - q.v[u])...}}; }

 private:
  template <typename S, typename Stride, int i>
  static constexpr bool is_paired =
      std::is_same_v<S, BFloat16> && !std::is_same_v<Stride, int64_t> && (i % 2 == 1 || i + 1 < count);

  template <int i, typename S, typename Stride>
  SLAF_INLINE static V read_one(const S* from, Stride stride) {
    if constexpr (is_paired<S, Stride, i>) {
      return load_every_other<bytes, i % 2 == 1>(from + i / 2 * 2 * stride);
    } else {
      return load<bytes>(from + i * stride);
    }
  }
  template <int i, typename S, typename Stride>
  SLAF_INLINE void write_one(S* to, Stride stride) const {
    if constexpr (!is_paired<S, Stride, i>) {
      store<bytes>(to + i * stride, v[i]);
    } else if constexpr (i % 2 == 1) {
      store_alternating<bytes>(to + (i - 1) * stride, v[i - 1], v[i], std::make_integer_sequence<int, bytes / 2>{});
    }
  }
};

}  // namespace slaf_ext::cpu
