#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<float> kernels<float>(unsigned, Walk, int, bool, Isa);
}  // namespace slaf_ext::cpu
