// Vectors of numbers, in GCC's and Clang's own vector types: one text for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>

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
      bits = __builtin_convertvector(narrow_bits<S, Vector<uint32_t, bytes>>(v), Vector<uint16_t, bytes / 2>);
    }
  } else {
    *reinterpret_cast<typename VectorOf<S, bytes>::anywhere*>(to) = v;
  }
}

// `count` vectors worked on side by side, which hides the latency of the recurrence. Loops over them are
// unrolled so that the vectors live in registers.
template <typename T, int bytes, int count>
struct Pack {
  using V = Vector<T, bytes>;
  V v[count];

  SLAF_INLINE static Pack filled(const V& t) {
    Pack p;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) p.v[u] = t;
    return p;
  }
  SLAF_INLINE static Pack filled(T t) { return filled(t - V{}); }  // t + 0 would not be t for -0
  template <typename S>
  SLAF_INLINE static Pack read(const S* from, int64_t stride) {
    Pack p;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) p.v[u] = load<bytes>(from + u * stride);
    return p;
  }
  template <typename S>
  SLAF_INLINE void write(S* to, int64_t stride) const {
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) store<bytes>(to + u * stride, v[u]);
  }
  SLAF_INLINE V total() const {
    V sum = v[0];
#pragma GCC unroll 8
    for (int u = 1; u < count; ++u) sum += v[u];
    return sum;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, const Pack& q) {
    Pack r;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] * q.v[u];
    return r;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, const V& t) {
    Pack r;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] * t;
    return r;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, T t) { return p * (t - V{}); }
  SLAF_INLINE friend Pack operator+(const Pack& p, const Pack& q) {
    Pack r;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] + q.v[u];
    return r;
  }
  SLAF_INLINE friend Pack operator+(const Pack& p, const V& t) {
    Pack r;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] + t;
    return r;
  }
  SLAF_INLINE friend Pack operator+(const Pack& p, T t) { return p + (t - V{}); }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) {
    Pack r;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] - q.v[u];
    return r;
  }
};

}  // namespace slaf_ext::cpu
