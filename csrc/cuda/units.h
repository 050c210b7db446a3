// What is compiled for each storage type in source files of its own, side by side: forward_*.cu, backward_*.cu
// and normalized_*.cu.
#pragma once

#include "device.h"
#include "launch.h"

namespace slaf_ext::cuda {

// y.
template <typename S>
void run_forward(const Problem& p, Device& device);

// One or both of the gradients; `by_walk`: with p' walked, where D a would cancel.
template <typename S>
void run_backward(const Problem& p, bool by_walk, Device& device);

// The mean and the variance of phi_1, phi_2, ... over each group.
template <typename S>
void run_moments(const Problem& p, double* mean, double* variance, Device& device);

// The gradients of the normalised form.
template <typename S>
void run_normalized_backward(const Problem& p, const double* mean, const double* variance, double eps, Device& device);

}  // namespace slaf_ext::cuda
