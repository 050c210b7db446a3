// The sweeps, compiled for every pass, kind of table and instruction set. Each storage type has a source file
// of its own, kernels_*.cpp, so that they compile side by side.
#pragma once

#include "isa.h"
#include "sweep.h"

namespace slaf_ext::cpu {

// What a sweep over numbers of type S is made of. `steps` is null where they must be widened to scratch tiles first.
template <typename S, typename T = compute_t<S>>
struct Kernels {
  void (*run_task)(const Sweep<S, T>&, const Task&, const T* coeffs, T* sums, double* totals, double* partial);
  Steps<S, T> steps;
};

// `dense`: the vectors of a strip lie one after another, and the walk sees them as they are.
template <typename S>
Kernels<S> kernels(unsigned pass, Walk kind, int degree, bool dense, Isa isa);

struct TaskBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    run_task<bytes>(a...);
  }
};

template <Walk kind, unsigned pass, typename Tail>
struct StepsBody {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    steps<kind, bytes, pass, Tail>(a...);
  }
};

// The walk for a kind of table. For the normalised form and the walked gradient there is one, right for every table:
// all of them would take long to compile.
constexpr bool has_every_walk(unsigned pass) {
  return (pass & (moments | centered_gradient | normalized_gradient | walked_gradient)) == 0;
}
constexpr Walk walked(unsigned pass, Walk kind) { return has_every_walk(pass) ? kind : Walk::general; }

// The tails of the degree are compiled one by one for what a training step runs on vectors that lie one after another.
template <Walk kind, unsigned pass, typename S>
Steps<S> steps_for_tail(int tail, bool dense, Isa isa) {
  constexpr bool in_training = pass == forward || pass == both_gradients;
  if constexpr (in_training && kind != Walk::general && !std::is_same_v<S, double>) {
    if (dense && isa != Isa::baseline) {
      switch (tail) {
        case 1: return compiled_for<StepsBody<kind, pass, Constant<1>>, Steps<S>>(isa);
        case 2: return compiled_for<StepsBody<kind, pass, Constant<2>>, Steps<S>>(isa);
        case 3: return compiled_for<StepsBody<kind, pass, Constant<3>>, Steps<S>>(isa);
        case 4: return compiled_for<StepsBody<kind, pass, Constant<4>>, Steps<S>>(isa);
        default: break;
      }
    }
  }
  return compiled_for<StepsBody<kind, pass, int>, Steps<S>>(isa);
}

template <unsigned pass, typename S>
Steps<S> steps_for(Walk kind, int tail, bool dense, Isa isa) {
  if constexpr (has_every_walk(pass)) {
    switch (kind) {
      case Walk::scaled: return steps_for_tail<Walk::scaled, pass, S>(tail, dense, isa);
      case Walk::uniform: return steps_for_tail<Walk::uniform, pass, S>(tail, dense, isa);
      case Walk::power: return steps_for_tail<Walk::power, pass, S>(tail, dense, isa);
      case Walk::general: break;
    }
  }
  return steps_for_tail<Walk::general, pass, S>(tail, dense, isa);
}

template <typename S>
Kernels<S> kernels(unsigned pass, Walk kind, int degree, bool dense, Isa isa) {
  constexpr int block = Degree<Constant<0>>::block;
  const int tail = degree > 0 ? (degree - 1) % block + 1 : 0;
  Kernels<S> k{compiled_for<TaskBody, decltype(Kernels<S>::run_task)>(isa), nullptr};
  if (pass == forward) k.steps = steps_for<forward, S>(kind, tail, dense, isa);
  if (pass == both_gradients) k.steps = steps_for<both_gradients, S>(kind, tail, dense, isa);
  if constexpr (!is_half<S>) {
    if (pass == input_gradient) k.steps = steps_for<input_gradient, S>(kind, tail, dense, isa);
    if (pass == coeffs_gradient) k.steps = steps_for<coeffs_gradient, S>(kind, tail, dense, isa);
    if (pass == moments) k.steps = steps_for<moments, S>(kind, tail, dense, isa);
    if (pass == centered_gradient) k.steps = steps_for<centered_gradient, S>(kind, tail, dense, isa);
    if (pass == normalized_gradient) k.steps = steps_for<normalized_gradient, S>(kind, tail, dense, isa);
    if (pass == walked_gradient) k.steps = steps_for<walked_gradient, S>(kind, tail, dense, isa);
  }
  return k;
}

extern template Kernels<float> kernels<float>(unsigned, Walk, int, bool, Isa);
extern template Kernels<double> kernels<double>(unsigned, Walk, int, bool, Isa);
extern template Kernels<Half> kernels<Half>(unsigned, Walk, int, bool, Isa);
extern template Kernels<BFloat16> kernels<BFloat16>(unsigned, Walk, int, bool, Isa);

}  // namespace slaf_ext::cpu
