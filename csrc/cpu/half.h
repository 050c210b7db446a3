// The 16-bit storage types. Arithmetic happens in float; these conversions are free of branches, so
// that loops over them become vector code for any instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../recurrence.h"

namespace slaf_ext::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What numbers of storage type S are computed in.
template <typename S>
using compute_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

SLAF_INLINE uint32_t bits_of(float t) {
  uint32_t bits;
  std::memcpy(&bits, &t, sizeof(bits));
  return bits;
}
SLAF_INLINE float float_of(uint32_t bits) {
  float t;
  std::memcpy(&t, &bits, sizeof(t));
  return t;
}

SLAF_INLINE double widen(double t) { return t; }
SLAF_INLINE float widen(float t) { return t; }
SLAF_INLINE float widen(BFloat16 t) { return float_of(uint32_t{t.bits} << 16); }
SLAF_INLINE float widen(Half t) {
  // The exponent moves from a bias of 15 to one of 127 by a product with 2^112, which makes subnormals normal.
  const uint32_t value = bits_of(float_of((t.bits & 0x7fffu) << 13) * 0x1p112f);
  const uint32_t special = (t.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // inf and NaN keep their mantissa
  return float_of(value | special | (t.bits & 0x8000u) << 16);
}

// These round to nearest, ties to even.
SLAF_INLINE void narrow(double* to, double t) { *to = t; }
SLAF_INLINE void narrow(float* to, float t) { *to = t; }
SLAF_INLINE void narrow(BFloat16* to, float t) {
  const uint32_t bits = bits_of(t);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(is_nan ? (bits >> 16 | 0x40u) : rounded);
}
SLAF_INLINE void narrow(Half* to, float t) {
  const uint32_t bits = bits_of(t), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal numbers: move the bias and round in the integer; what overflows becomes 0x7c00, inf.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Below 2^-14: adding 1/2 rounds at 2^-24, the spacing of the subnormals.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t small = magnitude < (113u << 23) ? subnormal : normal;
  to->bits = static_cast<uint16_t>((magnitude >= (143u << 23) ? large : small) | sign);
}

}  // namespace slaf_ext::cpu
