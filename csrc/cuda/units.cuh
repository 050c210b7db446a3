// The bodies of units.h, for the files that instantiate them.
#pragma once

#include "normalized.h"
#include "slaf.h"
#include "units.h"

namespace slaf_ext::cuda {

template <typename S>
void Forward<S>::run(const Problem& p, Device& device) {
  launch_plain<false, S>(p, device);
}

template <typename S>
void Backward<S>::run(const Problem& p, Device& device) {
  launch_backward<S>(p, device);
}

template <typename S>
void Normalized<S>::moments(const Problem& p, double* mean, double* variance, Device& device) {
  launch_moments<S>(p, mean, variance, device);
}

template <typename S>
void Normalized<S>::backward(const Problem& p, const Moments& moments, Device& device) {
  launch_normalized_backward<S>(p, moments, device);
}

}  // namespace slaf_ext::cuda
