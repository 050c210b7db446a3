// The sweeps, compiled for every pass, kind of table and instruction set. Each storage type has a source file
// of its own, kernels_*.cpp, so that they compile side by side.
#pragma once

#include "isa.h"
#include "sweep.h"

namespace slaf_ext::cpu {

// What a sweep over numbers of type S is made of. `steps` is null where they must be widened to scratch tiles first.
template <typename S, typename T = compute_t<S>>
struct Kernels {
  void (*run_task)(const Sweep<S, T>&, const Task&, const Room<T>&, double* partial);
  Steps<S, T> steps;
};

template <typename S>
Kernels<S> kernels(unsigned pass, Walk kind, Isa isa);

struct TaskBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    run_task<bytes>(a...);
  }
};

template <Walk kind, unsigned pass>
struct StepsBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    steps<kind, bytes, pass>(a...);
  }
};

template <unsigned pass, typename S>
Steps<S> steps_for(Walk kind, Isa isa) {
  // For the normalised form one walk, right for every table: all of them would take long to compile.
  constexpr bool every_walk = (pass & (moments | centered_gradient | normalized_gradient)) == 0;
  if constexpr (every_walk) {
    switch (kind) {
      case Walk::scaled: return compiled_for<StepsBody<Walk::scaled, pass>, Steps<S>>(isa);
      case Walk::uniform: return compiled_for<StepsBody<Walk::uniform, pass>, Steps<S>>(isa);
      case Walk::power: return compiled_for<StepsBody<Walk::power, pass>, Steps<S>>(isa);
      case Walk::general: break;
    }
  }
  return compiled_for<StepsBody<Walk::general, pass>, Steps<S>>(isa);
}

template <typename S>
Kernels<S> kernels(unsigned pass, Walk kind, Isa isa) {
  Kernels<S> k{compiled_for<TaskBody, decltype(Kernels<S>::run_task)>(isa), nullptr};
  constexpr unsigned both_gradients = input_gradient | coeffs_gradient;
  if (pass == forward) k.steps = steps_for<forward, S>(kind, isa);
  if (pass == both_gradients) k.steps = steps_for<both_gradients, S>(kind, isa);
  if constexpr (!is_half<S>) {
    if (pass == input_gradient) k.steps = steps_for<input_gradient, S>(kind, isa);
    if (pass == coeffs_gradient) k.steps = steps_for<coeffs_gradient, S>(kind, isa);
    if (pass == moments) k.steps = steps_for<moments, S>(kind, isa);
    if (pass == centered_gradient) k.steps = steps_for<centered_gradient, S>(kind, isa);
    if (pass == normalized_gradient) k.steps = steps_for<normalized_gradient, S>(kind, isa);
  }
  return k;
}

extern template Kernels<float> kernels<float>(unsigned, Walk, Isa);
extern template Kernels<double> kernels<double>(unsigned, Walk, Isa);
extern template Kernels<Half> kernels<Half>(unsigned, Walk, Isa);
extern template Kernels<BFloat16> kernels<BFloat16>(unsigned, Walk, Isa);

}  // namespace slaf_ext::cpu
