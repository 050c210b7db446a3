#include "units.cuh"

namespace slaf_ext::cuda {
template void run_backward<BFloat16>(const Problem&, bool, Device&);
}  // namespace slaf_ext::cuda
