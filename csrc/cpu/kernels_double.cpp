#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<double> kernels<double>(unsigned, Walk, Isa);
}  // namespace slaf_ext::cpu
