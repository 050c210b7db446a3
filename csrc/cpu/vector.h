// Vectors of numbers, in GCC's and Clang's own vector types: one text for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#include "../recurrence.h"

namespace slaf_ext::cpu {

// The 16-bit storage types. Arithmetic happens in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <typename T, int bytes>
using Vector = typename VectorOf<T, bytes>::type;

// Memory may lie at any address that suits one number.
template <typename V>
SLAF_INLINE V load_bits(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}
template <typename To, typename From>
SLAF_INLINE To reinterpret(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return load_bits<To>(&from);
}

template <typename T, int bytes>
SLAF_INLINE Vector<T, bytes> load(const T* from) {
  return load_bits<Vector<T, bytes>>(from);
}
template <typename T, int bytes>
SLAF_INLINE Vector<float, bytes> load(const BFloat16* from) {
  const auto wide = __builtin_convertvector(load_bits<Vector<uint16_t, bytes / 2>>(from), Vector<uint32_t, bytes>);
  return reinterpret<Vector<float, bytes>>(wide << 16);
}
template <typename T, int bytes>
SLAF_INLINE Vector<float, bytes> load(const Half* from) {
  const auto wide = __builtin_convertvector(load_bits<Vector<uint16_t, bytes / 2>>(from), Vector<uint32_t, bytes>);
  // The exponent moves from a bias of 15 to one of 127 by a product with 2^112, which normalises subnormals too.
  const auto value = reinterpret<Vector<float, bytes>>((wide & 0x7fff) << 13) * 0x1p112f;
  const auto bits = reinterpret<Vector<uint32_t, bytes>>(value);
  const auto special = (wide & 0x7c00) == 0x7c00;  // inf and NaN keep their mantissa
  const auto magnitude = special ? (bits | 0x7f800000u) : bits;
  return reinterpret<Vector<float, bytes>>(magnitude | (wide & 0x8000) << 16);
}

template <typename T, typename V>
SLAF_INLINE void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}
// Rounds to nearest, ties to even.
template <typename V>
SLAF_INLINE void store(BFloat16* to, const V& v) {
  const auto bits = reinterpret<Vector<uint32_t, sizeof(V)>>(v);
  const auto rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const auto is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const auto narrow = is_nan ? (bits >> 16 | 0x40) : rounded;
  const auto out = __builtin_convertvector(narrow, Vector<uint16_t, sizeof(V) / 2>);
  std::memcpy(to, &out, sizeof(out));
}
template <typename V>
SLAF_INLINE void store(Half* to, const V& v) {
  using U = Vector<uint32_t, sizeof(V)>;
  const U bits = reinterpret<U>(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  // Normal numbers: move the bias, round in the integer; what overflows becomes 0x7c00, inf.
  const U normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Below 2^-14: an addition of 1/2 rounds at 2^-24, the spacing of half's subnormals.
  const U subnormal = reinterpret<U>(reinterpret<V>(magnitude) + 0.5f) - 0x3f000000u;
  const U large = magnitude > 0x7f800000 ? (U{} + 0x7e00) : (U{} + 0x7c00);
  U narrow = magnitude < (113u << 23) ? subnormal : normal;
  narrow = magnitude >= (143u << 23) ? large : narrow;
  const auto out = __builtin_convertvector(narrow | sign, Vector<uint16_t, sizeof(V) / 2>);
  std::memcpy(to, &out, sizeof(out));
}

// `count` vectors worked on side by side, which hides the latency of the recurrence.
template <typename T, int bytes, int count>
struct Pack {
  Vector<T, bytes> v[count];

  SLAF_INLINE static Pack read(const T* from, int64_t stride) {
    Pack p;
    for (int u = 0; u < count; ++u) p.v[u] = load<T, bytes>(from + u * stride);
    return p;
  }
  SLAF_INLINE void write(T* to, int64_t stride) const {
    for (int u = 0; u < count; ++u) store(to + u * stride, v[u]);
  }
  SLAF_INLINE Vector<T, bytes> total() const {
    Vector<T, bytes> sum = v[0];
    for (int u = 1; u < count; ++u) sum += v[u];
    return sum;
  }
  // Adds p times one number, or one vector, to every vector.
  template <typename F>
  SLAF_INLINE void add_product(const Pack& p, const F& factor) {
    for (int u = 0; u < count; ++u) v[u] += p.v[u] * factor;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, const Pack& q) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] * q.v[u];
    return r;
  }
  SLAF_INLINE friend Pack operator*(const Pack& p, T t) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] * t;
    return r;
  }
  SLAF_INLINE friend Pack operator+(const Pack& p, T t) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] + t;
    return r;
  }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] - q.v[u];
    return r;
  }
};

}  // namespace slaf_ext::cpu
