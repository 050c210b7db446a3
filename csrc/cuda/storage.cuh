// Elements on their way between memory and registers, and their conversion.
#pragma once

#include "../storage.h"

namespace slaf_ext::cuda {

// Values that one thread computes side by side.
template <typename T, int count>
struct Pack {
  T v[count];

  template <typename F>
  SLAF_INLINE static Pack make(const F& f) {
    Pack p;
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] = f(i);
    return p;
  }
  SLAF_INLINE static Pack of(T t) {
    Pack p;
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] = t;
    return p;
  }
  // Summed in pairs, since in a chain every addition would wait for the one before.
  SLAF_INLINE T total() const {
    Pack t = *this;
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) t.v[i] += t.v[i + half];
    }
    return t.v[0];
  }
  // In place, without `make`: the compiler meets these by the thousand.
  SLAF_INLINE friend Pack operator*(Pack p, const Pack& q) {
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] *= q.v[i];
    return p;
  }
  SLAF_INLINE friend Pack operator*(Pack p, T t) {
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] *= t;
    return p;
  }
  SLAF_INLINE friend Pack operator+(Pack p, T t) {
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] += t;
    return p;
  }
  SLAF_INLINE friend Pack operator+(Pack p, const Pack& q) {
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] += q.v[i];
    return p;
  }
  SLAF_INLINE friend Pack operator-(Pack p, const Pack& q) {
#pragma unroll
    for (int i = 0; i < count; ++i) p.v[i] -= q.v[i];
    return p;
  }
};

// 16-bit elements are converted in pairs, by the GPU's instructions, or in software under the tests.
#ifdef __CUDA_ARCH__
SLAF_INLINE Pack<float, 2> widen_pair(Half, uint32_t pair) {
  Pack<float, 2> wide;
  asm("{.reg .f16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;}"
      : "=f"(wide.v[0]), "=f"(wide.v[1])
      : "r"(pair));
  return wide;
}
SLAF_INLINE uint32_t narrow_pair(Half, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SLAF_INLINE uint32_t narrow_pair(BFloat16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SLAF_INLINE Pack<float, 2> widen_pair(BFloat16, uint32_t pair) {
  return {{__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)}};
}
#else
template <typename S>
SLAF_INLINE Pack<float, 2> widen_pair(S, uint32_t pair) {
  return {{widen(S{static_cast<uint16_t>(pair)}), widen(S{static_cast<uint16_t>(pair >> 16)})}};
}
template <typename S>
SLAF_INLINE uint32_t narrow_pair(S, float low, float high) {
  return narrow<S>(low).bits | static_cast<uint32_t>(narrow<S>(high).bits) << 16;
}
#endif

// Neighbouring elements, aligned to their size, that one load or store moves.
template <typename S, int count>
struct alignas(count * sizeof(S)) Item {
  using T = compute_t<S>;
  static constexpr bool is_paired = is_half_v<S> && count > 1;
  using Unit = std::conditional_t<is_paired, uint32_t, S>;
  Unit at[count * sizeof(S) / sizeof(Unit)];

  SLAF_INLINE Pack<T, count> widen() const {
    Pack<T, count> wide;
    if constexpr (is_paired) {
#pragma unroll
      for (int i = 0; i < count; i += 2) {
        const auto pair = widen_pair(S{}, at[i / 2]);
        wide.v[i] = pair.v[0];
        wide.v[i + 1] = pair.v[1];
      }
    } else if constexpr (is_half_v<S>) {
      wide.v[0] = widen_pair(S{}, at[0].bits).v[0];
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) wide.v[i] = at[i];
    }
    return wide;
  }
  SLAF_INLINE static Item narrow(const Pack<T, count>& wide) {
    Item item;
    if constexpr (is_paired) {
#pragma unroll
      for (int i = 0; i < count; i += 2) item.at[i / 2] = narrow_pair(S{}, wide.v[i], wide.v[i + 1]);
    } else if constexpr (is_half_v<S>) {
      item.at[0] = {static_cast<uint16_t>(narrow_pair(S{}, wide.v[0], 0.0f))};
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) item.at[i] = wide.v[i];
    }
    return item;
  }
};

// Coefficients, whose storage type is known at run time: it matters once a block.
SLAF_INLINE double read(const void* from, Storage type, int64_t i) {
  const auto at = [&](auto s) { return Item<decltype(s), 1>{{static_cast<const decltype(s)*>(from)[i]}}.widen().v[0]; };
  switch (type) {
    case Storage::half: return at(Half{});
    case Storage::bfloat16: return at(BFloat16{});
    case Storage::single_precision: return at(float{});
    default: return at(double{});
  }
}
SLAF_INLINE void write(void* to, Storage type, int64_t i, double t) {
  const auto put = [&](auto s) {
    using S = decltype(s);
    static_cast<S*>(to)[i] = Item<S, 1>::narrow({{static_cast<compute_t<S>>(t)}}).at[0];
  };
  switch (type) {
    case Storage::half: return put(Half{});
    case Storage::bfloat16: return put(BFloat16{});
    case Storage::single_precision: return put(float{});
    default: return put(double{});
  }
}

}  // namespace slaf_ext::cuda
