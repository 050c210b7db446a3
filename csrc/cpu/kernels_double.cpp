#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<double> kernels<double>(unsigned, Walk, int, bool, Isa);
}  // namespace slaf_ext::cpu
