#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<float> kernels<float>(unsigned, Walk, Isa);
}  // namespace slaf_ext::cpu
