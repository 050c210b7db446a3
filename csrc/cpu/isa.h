// The choice of instruction set, made when the program runs: one binary for every x86-64, and for ARM.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>

namespace slaf_ext::cpu {

enum class Isa { baseline, avx2, avx512 };

// What this machine has, capped by ATEN_CPU_CAPABILITY (default, avx2, avx512) as torch's own kernels are.
inline Isa best_isa() {
  static const Isa best = [] {
    Isa isa = Isa::baseline;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      isa = Isa::avx2;
    if (isa == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      isa = Isa::avx512;
    }
    if (const char* asked = std::getenv("ATEN_CPU_CAPABILITY")) {
      if (std::string(asked) == "default") isa = Isa::baseline;
      if (std::string(asked) == "avx2") isa = std::min(isa, Isa::avx2);
    }
#endif
    return isa;
  }();
  return best;
}

inline int vector_bytes(Isa isa) { return isa == Isa::avx512 ? 64 : isa == Isa::avx2 ? 32 : 16; }

// Body::run<vector_bytes>(...) compiled for one instruction set. It must be always inlined: code takes
// the target of the function that it is inlined into.
template <typename Body, typename... A>
void run_baseline(A... a) {
  Body::template run<16>(a...);
}
#ifdef __x86_64__
template <typename Body, typename... A>
__attribute__((target("avx2,fma"))) void run_avx2(A... a) {
  Body::template run<32>(a...);
}
template <typename Body, typename... A>
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))) void run_avx512(A... a) {
  Body::template run<64>(a...);
}
#endif

// The one of these for `isa`, as a function of type F.
template <typename Body, typename F>
F compiled_for([[maybe_unused]] Isa isa) {
#ifdef __x86_64__
  if (isa == Isa::avx512) return &run_avx512<Body>;
  if (isa == Isa::avx2) return &run_avx2<Body>;
#endif
  return &run_baseline<Body>;
}

}  // namespace slaf_ext::cpu
