// The 16-bit storage types. Arithmetic happens in float; these conversions are free of branches, and
// written for one number or a vector of them alike: U is uint32_t or a vector of it, F float or a vector.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../recurrence.h"

namespace slaf_ext::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename S>
inline constexpr bool is_half = std::is_same_v<S, Half> || std::is_same_v<S, BFloat16>;

// What numbers of storage type S are computed in.
template <typename S>
using compute_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

// The number of type S that has these 16 bits, and the 16 bits nearest to a number (ties to even).
template <typename S, typename F, typename U>
SLAF_INLINE F widen_bits(U bits) {
  if constexpr (std::is_same_v<S, BFloat16>) return __builtin_bit_cast(F, bits << 16);
  // The exponent moves from a bias of 15 to one of 127 by a product with 2^112, which makes subnormals normal.
  const U value = __builtin_bit_cast(U, __builtin_bit_cast(F, (bits & 0x7fffu) << 13) * 0x1p112f);
  const U zero = bits ^ bits;
  const U special = (bits & 0x7c00u) == 0x7c00u ? zero + 0x7f800000u : zero;  // inf and NaN keep their mantissa
  return __builtin_bit_cast(F, value | special | (bits & 0x8000u) << 16);
}
// The upper 16 bits of this are the bfloat16 nearest to a number. A NaN whose last 16 bits are set would be rounded to
// -0. There is none: they come from numbers of 16 bits, from an operation, or from coefficients, which `quiet` has
// seen.
template <typename U, typename F>
SLAF_INLINE U rounded_bits(F t) {
  const U bits = __builtin_bit_cast(U, t);
  return bits + 0x7fffu + (bits >> 16 & 1u);
}
template <typename S, typename U, typename F>
SLAF_INLINE U narrow_bits(F t) {
  if constexpr (std::is_same_v<S, BFloat16>) return rounded_bits<U>(t) >> 16;
  const U bits = __builtin_bit_cast(U, t), zero = bits ^ bits;
  const U magnitude = bits & 0x7fffffffu;
  // Normal numbers: move the bias and round in the integer; what overflows becomes 0x7c00, inf.
  const U normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Below 2^-14: adding 1/2 rounds at 2^-24, the spacing of the subnormals.
  const U subnormal = __builtin_bit_cast(U, __builtin_bit_cast(F, magnitude) + 0.5f) - 0x3f000000u;
  const U large = magnitude > 0x7f800000u ? zero + 0x7e00u : zero + 0x7c00u;
  const U small = magnitude < (113u << 23) ? subnormal : normal;
  return (magnitude >= (143u << 23) ? large : small) | (bits >> 16 & 0x8000u);
}

// A number as it is, but all NaNs alike.
template <typename T>
SLAF_INLINE T quiet(T t) {
  return t == t ? t : std::numeric_limits<T>::quiet_NaN();
}

SLAF_INLINE double widen(double t) { return t; }
SLAF_INLINE float widen(float t) { return t; }
SLAF_INLINE float widen(BFloat16 t) { return widen_bits<BFloat16, float>(uint32_t{t.bits}); }
SLAF_INLINE float widen(Half t) { return widen_bits<Half, float>(uint32_t{t.bits}); }

SLAF_INLINE void narrow(double* to, double t) { *to = t; }
SLAF_INLINE void narrow(float* to, float t) { *to = t; }
template <typename S>
SLAF_INLINE void narrow(S* to, float t) {
  to->bits = static_cast<uint16_t>(narrow_bits<S, uint32_t>(t));
}

}  // namespace slaf_ext::cpu
