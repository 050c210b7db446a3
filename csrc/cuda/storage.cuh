// The storage types on the GPU: conversions in hardware, and memory read 16 bytes at a time.
#pragma once

#include "../cpu/half.h"

namespace slaf_ext::cuda {

using cpu::BFloat16;
using cpu::compute_t;
using cpu::Half;

// 16-bit numbers are converted by single instructions on the GPU; elsewhere, under the tests, in software.
#ifdef __CUDA_ARCH__
SLAF_INLINE float wide(Half t) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(t.bits));
  return wide;
}
SLAF_INLINE Half narrowed(Half, float t) {
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(t));
  return half;
}
SLAF_INLINE BFloat16 narrowed(BFloat16, float t) {
  BFloat16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(t));
  return half;
}
SLAF_INLINE float wide(BFloat16 t) { return __uint_as_float(uint32_t{t.bits} << 16); }
#else
SLAF_INLINE float wide(Half t) { return cpu::widen(t); }
SLAF_INLINE float wide(BFloat16 t) { return cpu::widen(t); }
SLAF_INLINE Half narrowed(Half half, float t) {
  cpu::narrow(&half, t);
  return half;
}
SLAF_INLINE BFloat16 narrowed(BFloat16 half, float t) {
  cpu::narrow(&half, t);
  return half;
}
#endif
SLAF_INLINE float wide(float t) { return t; }
SLAF_INLINE double wide(double t) { return t; }
SLAF_INLINE float narrowed(float, float t) { return t; }
SLAF_INLINE double narrowed(double, double t) { return t; }

// 16 bytes that move as one between memory, aligned alike, and registers.
template <typename S>
struct alignas(16) Neighbours {
  static constexpr int count = 16 / sizeof(S);
  S at[count];

  SLAF_INLINE static Neighbours read(const S* from) { return *reinterpret_cast<const Neighbours*>(from); }
  SLAF_INLINE void write(S* to) const { *reinterpret_cast<Neighbours*>(to) = *this; }
};

// The storage type of coefficients, known at run time: it matters once a block.
enum class Storage { half, bfloat16, single_precision, double_precision };

SLAF_INLINE double read(const void* from, Storage type, int64_t i) {
  switch (type) {
    case Storage::half: return wide(static_cast<const Half*>(from)[i]);
    case Storage::bfloat16: return wide(static_cast<const BFloat16*>(from)[i]);
    case Storage::single_precision: return static_cast<const float*>(from)[i];
    default: return static_cast<const double*>(from)[i];
  }
}
SLAF_INLINE void write(void* to, Storage type, int64_t i, double t) {
  switch (type) {
    case Storage::half: static_cast<Half*>(to)[i] = narrowed(Half{}, static_cast<float>(t)); break;
    case Storage::bfloat16: static_cast<BFloat16*>(to)[i] = narrowed(BFloat16{}, static_cast<float>(t)); break;
    case Storage::single_precision: static_cast<float*>(to)[i] = static_cast<float>(t); break;
    default: static_cast<double*>(to)[i] = t;
  }
}

}  // namespace slaf_ext::cuda
