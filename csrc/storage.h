// The storage types, the types that they are computed in, and what happens outside the domain.
//
// The conversions of 16-bit types have no branches and serve single values and vectors alike: U is uint32_t or a
// vector of it, F is float or a vector of it.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "recurrence.h"

namespace slaf_ext {

// What happens outside [lo, hi]. `zero` is the derivative of `clamp`, which is the derivative of `linear`.
enum class Outside : int { extrapolate, zero, clamp, linear };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename S>
inline constexpr bool is_half_v = std::is_same_v<S, Half> || std::is_same_v<S, BFloat16>;

// The type that elements of storage type S are computed in.
template <typename S>
using compute_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

// A storage type known at run time.
enum class Storage { half, bfloat16, single_precision, double_precision };

// Calls f with a value of the storage type.
template <typename F>
void dispatch_storage(Storage type, const F& f) {
  switch (type) {
    case Storage::half: return f(Half{});
    case Storage::bfloat16: return f(BFloat16{});
    case Storage::single_precision: return f(float{});
    case Storage::double_precision: return f(double{});
  }
}

// The value of type S that has these 16 bits.
template <typename S, typename F, typename U>
SLAF_INLINE F widen_bits(U bits) {
  if constexpr (std::is_same_v<S, BFloat16>) return __builtin_bit_cast(F, bits << 16);
  // A product with 2^112 moves the exponent from a bias of 15 to one of 127, and makes subnormals normal.
  const U value = __builtin_bit_cast(U, __builtin_bit_cast(F, (bits & 0x7fffu) << 13) * 0x1p112f);
  const U zero = bits ^ bits;
  const U special = (bits & 0x7c00u) == 0x7c00u ? zero + 0x7f800000u : zero;  // inf and NaN keep their mantissa
  return __builtin_bit_cast(F, value | special | (bits & 0x8000u) << 16);
}
// The upper 16 bits of this are the nearest bfloat16, ties to even. A NaN whose lower 16 bits are all set would become
// -0, but none arises: NaNs come from 16-bit values, from operations, or from coefficients, which `quiet` has seen.
template <typename U, typename F>
SLAF_INLINE U rounded_bits(F t) {
  const U bits = __builtin_bit_cast(U, t);
  return bits + 0x7fffu + (bits >> 16 & 1u);
}
// The 16 bits of the nearest value of type S, ties to even.
template <typename S, typename U, typename F>
SLAF_INLINE U narrow_bits(F t) {
  if constexpr (std::is_same_v<S, BFloat16>) return rounded_bits<U>(t) >> 16;
  const U bits = __builtin_bit_cast(U, t), zero = bits ^ bits;
  const U magnitude = bits & 0x7fffffffu;
  // Normal values: move the bias and round in the integer; what overflows becomes 0x7c00, inf.
  const U normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Below 2^-14: adding 1/2 rounds at 2^-24, the spacing of the subnormals.
  const U subnormal = __builtin_bit_cast(U, __builtin_bit_cast(F, magnitude) + 0.5f) - 0x3f000000u;
  const U large = magnitude > 0x7f800000u ? zero + 0x7e00u : zero + 0x7c00u;
  const U small = magnitude < (113u << 23) ? subnormal : normal;
  return (magnitude >= (143u << 23) ? large : small) | (bits >> 16 & 0x8000u);
}

// The same value, with one NaN for all NaNs.
template <typename T>
SLAF_INLINE T quiet(T t) {
  return t == t ? t : std::numeric_limits<T>::quiet_NaN();
}

template <typename S>
SLAF_INLINE compute_t<S> widen(S t) {
  if constexpr (is_half_v<S>)
    return widen_bits<S, float>(uint32_t{t.bits});
  else
    return t;
}
template <typename S>
SLAF_INLINE S narrow(compute_t<S> t) {
  if constexpr (is_half_v<S>)
    return {static_cast<uint16_t>(narrow_bits<S, uint32_t>(t))};
  else
    return t;
}

}  // namespace slaf_ext
