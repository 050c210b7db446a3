// The bodies of units.h, for the files that instantiate them.
#pragma once

#include "normalized.h"
#include "units.h"

namespace slaf_ext::cuda {

template <typename S>
void run_forward(const Problem& p, Device& device) {
  launch_plain<false, S>(p, device);
}

template <typename S>
void run_backward(const Problem& p, bool by_walk, Device& device) {
  by_walk ? launch_walked_backward<S>(p, device) : launch_plain<true, S>(p, device);
}

template <typename S>
void run_moments(const Problem& p, double* mean, double* variance, Device& device) {
  launch_moments<S>(p, mean, variance, device);
}

template <typename S>
void run_normalized_backward(const Problem& p, const double* mean, const double* variance, double eps, Device& device) {
  launch_normalized_backward<S>(p, mean, variance, eps, device);
}

}  // namespace slaf_ext::cuda
