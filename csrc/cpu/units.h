// The sweeps, compiled for every pass, kind of walk and instruction set. Each storage type has a source file of its
// own, units_*.cpp, so that they compile side by side.
#pragma once

#include "isa.h"
#include "task.h"

namespace slaf_ext::cpu {

// The functions of a sweep over elements of type S. `run_strip` is null where they must be copied to tiles first.
template <typename S, typename T = compute_t<S>>
struct Kernels {
  void (*run_task)(const Sweep<S, T>&, const Task&, const T* coeffs, T* sums, double* totals, double* partial);
  RunStrip<S, T> run_strip;

  // `dense`: the vectors of a strip are consecutive, and the walk sees x.
  static Kernels choose(unsigned pass, Walk kind, int degree, bool dense, Isa isa);
};

struct TaskBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    run_task<bytes>(a...);
  }
};

template <Walk kind, unsigned pass, typename Tail>
struct StripBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    run_strip<kind, bytes, pass, Tail>(a...);
  }
};

// The normalised form and the walked gradient have one walk, right for every table, to limit compile time.
constexpr bool has_every_walk(unsigned pass) {
  return (pass & (moments | centered_gradient | normalized_gradient | walked_gradient)) == 0;
}
constexpr Walk compiled_walk(unsigned pass, Walk kind) { return has_every_walk(pass) ? kind : Walk::general; }

// The tails of the degree are compiled one by one for what a training step runs on consecutive vectors.
template <Walk kind, unsigned pass, typename S>
RunStrip<S> strip_for_tail(int degree, bool dense, Isa isa) {
  constexpr bool in_training = pass == forward || pass == both_gradients;
  if constexpr (in_training && kind != Walk::general && !std::is_same_v<S, double>) {
    if (dense && isa != Isa::baseline && degree > 0) {
      switch ((degree - 1) % Degree<Constant<0>>::block + 1) {
        case 1: return compiled_for<StripBody<kind, pass, Constant<1>>, RunStrip<S>>(isa);
        case 2: return compiled_for<StripBody<kind, pass, Constant<2>>, RunStrip<S>>(isa);
        case 3: return compiled_for<StripBody<kind, pass, Constant<3>>, RunStrip<S>>(isa);
        default: return compiled_for<StripBody<kind, pass, Constant<4>>, RunStrip<S>>(isa);
      }
    }
  }
  return compiled_for<StripBody<kind, pass, int>, RunStrip<S>>(isa);
}

template <unsigned pass, typename S>
RunStrip<S> strip_for(Walk kind, int degree, bool dense, Isa isa) {
  if constexpr (has_every_walk(pass)) {
    switch (kind) {
      case Walk::scaled: return strip_for_tail<Walk::scaled, pass, S>(degree, dense, isa);
      case Walk::uniform: return strip_for_tail<Walk::uniform, pass, S>(degree, dense, isa);
      case Walk::power: return strip_for_tail<Walk::power, pass, S>(degree, dense, isa);
      case Walk::general: break;
    }
  }
  return strip_for_tail<Walk::general, pass, S>(degree, dense, isa);
}

template <typename S, typename T>
Kernels<S, T> Kernels<S, T>::choose(unsigned pass, Walk kind, int degree, bool dense, Isa isa) {
  Kernels k{compiled_for<TaskBody, decltype(run_task)>(isa), nullptr};
  const auto consider = [&](auto candidate) {
    if (pass == candidate.value) k.run_strip = strip_for<candidate.value, S>(kind, degree, dense, isa);
  };
  consider(std::integral_constant<unsigned, forward>{});
  consider(std::integral_constant<unsigned, both_gradients>{});
  if constexpr (!is_half_v<S>) {
    consider(std::integral_constant<unsigned, input_gradient>{});
    consider(std::integral_constant<unsigned, coeffs_gradient>{});
    consider(std::integral_constant<unsigned, moments>{});
    consider(std::integral_constant<unsigned, centered_gradient>{});
    consider(std::integral_constant<unsigned, normalized_gradient>{});
    consider(std::integral_constant<unsigned, walked_gradient>{});
  }
  return k;
}

extern template struct Kernels<float>;
extern template struct Kernels<double>;
extern template struct Kernels<Half>;
extern template struct Kernels<BFloat16>;

}  // namespace slaf_ext::cpu
