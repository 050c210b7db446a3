#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<BFloat16> kernels<BFloat16>(unsigned, Walk, int, bool, Isa);
}  // namespace slaf_ext::cpu
