#include "kernels.h"

namespace slaf_ext::cpu {
template Kernels<Half> kernels<Half>(unsigned, Walk, int, bool, Isa);
}  // namespace slaf_ext::cpu
