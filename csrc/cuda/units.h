// What is compiled for each storage type in source files of its own, side by side: forward_*.cu, backward_*.cu and
// normalized_*.cu.
#pragma once

#include "../problem.h"
#include "device.h"

namespace slaf_ext::cuda {

template <typename S>
struct Forward {
  static void run(const Problem& p, Device& device);
};

template <typename S>
struct Backward {
  static void run(const Problem& p, Device& device);
};

template <typename S>
struct Normalized {
  static void moments(const Problem& p, double* mean, double* variance, Device& device);
  static void backward(const Problem& p, const Moments& moments, Device& device);
};

}  // namespace slaf_ext::cuda
