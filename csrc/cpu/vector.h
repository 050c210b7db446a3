// Vectors of numbers, in GCC's and Clang's own vector types: one text for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <utility>

#include "half.h"

namespace slaf_ext::cpu {

template <typename T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
  // The same in memory, at any address that suits one number.
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
  if constexpr (is_half<S>) {
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
  if constexpr (is_half<S>) {
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
  template <typename S>
  SLAF_INLINE static Pack read(const S* from, int64_t stride) {
    return {{load<bytes>(from + u * stride)...}};
  }
  template <typename S>
  SLAF_INLINE void write(S* to, int64_t stride) const {
    (store<bytes>(to + u * stride, v[u]), ...);
  }
  SLAF_INLINE V total() const { return (... + v[u]); }
  SLAF_INLINE friend Pack operator*(const Pack& p, const Pack& q) { return {{(p.v[u] * q.v[u])...}}; }
  SLAF_INLINE friend Pack operator*(const Pack& p, const V& t) { return {{(p.v[u] * t)...}}; }
  SLAF_INLINE friend Pack operator*(const Pack& p, T t) { return p * (t - V{}); }
  SLAF_INLINE friend Pack operator+(const Pack& p, const Pack& q) { return {{(p.v[u] + q.v[u])...}}; }
  SLAF_INLINE friend Pack operator+(const Pack& p, const V& t) { return {{(p.v[u] + t)...}}; }
  SLAF_INLINE friend Pack operator+(const Pack& p, T t) { return p + (t - V{}); }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) { return {{(p.v[u] - q.v[u])...}}; }
};

}  // namespace slaf_ext::cpu
