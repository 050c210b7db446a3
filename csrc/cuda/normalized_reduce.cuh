// What follows the sweeps of the normalised form: their partial sums become moments and gradients.
#pragma once

#include "normalized.cuh"

namespace slaf_ext::cuda {

// The mean and the variance of phi_k over a group, from the partial sums of `moments`.
template <typename T>
struct FinishMoments {
  Partials<T> partials;
  ReduceShape shape;
  int degree;
  double members;  // of a group
  double *mean, *variance;
  const double* weights_in_memory;  // the scales; null where they fit below
  double weights[33];
};

template <typename T>
__global__ void __launch_bounds__(max_reduce_threads) finish_moments(const __grid_constant__ FinishMoments<T> f) {
  const GroupReducer<T> reducer(f.partials, f.shape);
  const int K = f.degree + 1, k = reducer.k + 1;
  const double scale = f.weights_in_memory != nullptr ? f.weights_in_memory[k] : f.weights[k];
  const auto at = [&](int64_t source, int slot, int64_t column) -> double { return f.partials(slot, source, column); };
  const double mean = reducer.total([&](int64_t source, int64_t column) {
    if (at(source, 0, column) == 0) return 0.0;
    return at(source, 0, column) * at(source, 2 * K + k, column) +
           at(source, k, column) / at(source, 3 * K + k, column);
  }) / f.members;
  // The spread about the source's mean, and the spread of the source's mean about the group's.
  const double squares = reducer.total([&](int64_t source, int64_t column) {
    const double count = at(source, 0, column), scaling = at(source, 3 * K + k, column);
    if (count == 0) return 0.0;
    const double moved = at(source, k, column) / count, within = at(source, K + k, column) - count * moved * moved;
    const double between = at(source, 2 * K + k, column) + moved / scaling - mean;
    return (within < 0 ? 0 : within) / scaling / scaling + count * between * between;
  });
  if (!reducer.writes()) return;
  f.mean[reducer.group * f.degree + k - 1] = scale * mean;
  f.variance[reducer.group * f.degree + k - 1] = scale * scale * squares / f.members;
}

// The gradient in the coefficients and the factors of the last sweep, from the partial sums of `centered_gradient`.
template <typename T>
struct FinishGradient {
  Partials<T> partials;
  ReduceShape shape;
  int degree;
  double members;
  Moments moments;
  const void* coeffs;
  void* grad;
  Storage coeffs_type;
  T* factors;                       // a, u, v of every group; null: not needed
  const double* weights_in_memory;  // the scales; null where they fit below
  double weights[33];
};

template <typename T>
__global__ void __launch_bounds__(max_reduce_threads) finish_gradient(const __grid_constant__ FinishGradient<T> f) {
  const GroupReducer<T> reducer(f.partials, f.shape);
  const int K = f.degree + 1, k = reducer.k;
  const double scale = f.weights_in_memory != nullptr ? f.weights_in_memory[k] : f.weights[k];
  const double total = reducer.total(0);
  if (k == 0) {
    if (reducer.writes()) write(f.grad, f.coeffs_type, reducer.group * K, total);
    return;
  }
  const double sum = reducer.total(k);
  if (!reducer.writes()) return;
  const double mean = f.moments.mean[reducer.group * f.degree + k - 1];
  // The sums were centred at a rounded mean, and their terms scaled.
  const double inverse = 1 / scale, variance = f.moments.variance[reducer.group * f.degree + k - 1];
  const double deviation = sqrt(variance + f.moments.eps);
  const double centered = sum / scaling_of<T>(variance, f.moments.eps, inverse);
  const double dw = scale * (centered + (shift_of<T>(mean, inverse) - mean * inverse) * total) / deviation;
  write(f.grad, f.coeffs_type, reducer.group * K + k, dw);
  if (f.factors == nullptr) return;
  const double weight = read(f.coeffs, f.coeffs_type, reducer.group * K + k) / deviation;
  const double v = -dw / (f.members * deviation);
  T* const factors = f.factors + reducer.group * coeff_slots(Pass::normalized_gradient, f.degree);
  factors[k] = static_cast<T>(scale * weight);
  factors[K + k] = static_cast<T>(-total / f.members - v * mean);
  factors[2 * K + k] = static_cast<T>(scale * v);
}

}  // namespace slaf_ext::cuda
