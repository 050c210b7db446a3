#include "units.cuh"

namespace slaf_ext::cuda {
template void run_forward<float>(const Problem&, Device&);
}  // namespace slaf_ext::cuda
