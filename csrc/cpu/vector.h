// Vectors of numbers, in GCC's and Clang's own vector types: one text for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#include "../recurrence.h"

namespace slaf_ext::cpu {

template <typename T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <typename T, int bytes>
using Vector = typename VectorOf<T, bytes>::type;

// Memory may lie at any address that suits one number.
template <typename T, int bytes>
SLAF_INLINE Vector<T, bytes> load(const T* from) {
  Vector<T, bytes> v;
  std::memcpy(&v, from, bytes);
  return v;
}
template <typename T, typename V>
SLAF_INLINE void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

// `count` vectors worked on side by side, which hides the latency of the recurrence.
template <typename T, int bytes, int count>
struct Pack {
  Vector<T, bytes> v[count];

  SLAF_INLINE static Pack filled(T t) {
    Pack p;
    for (int u = 0; u < count; ++u) p.v[u] = Vector<T, bytes>{} + t;
    return p;
  }
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
  SLAF_INLINE friend Pack operator+(const Pack& p, const Pack& q) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] + q.v[u];
    return r;
  }
  SLAF_INLINE friend Pack operator-(const Pack& p, const Pack& q) {
    Pack r;
    for (int u = 0; u < count; ++u) r.v[u] = p.v[u] - q.v[u];
    return r;
  }
};

// A function of x and its derivative: a walk over these visits phi_k(x) and phi_k'(x).
template <typename P>
struct Dual {
  P value, slope;

  template <typename T>
  SLAF_INLINE friend Dual operator*(const Dual& a, T t) {
    return {a.value * t, a.slope * t};
  }
  template <typename T>
  SLAF_INLINE friend Dual operator+(const Dual& a, T t) {
    return {a.value + t, a.slope};
  }
  SLAF_INLINE friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.value * b.value, a.value * b.slope + a.slope * b.value};
  }
  SLAF_INLINE friend Dual operator-(const Dual& a, const Dual& b) { return {a.value - b.value, a.slope - b.slope}; }
};

}  // namespace slaf_ext::cpu
