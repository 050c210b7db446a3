#include "units.cuh"

namespace slaf_ext::cuda {
template void run_forward<BFloat16>(const Problem&, Device&);
}  // namespace slaf_ext::cuda
