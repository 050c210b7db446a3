#include "units.cuh"

namespace slaf_ext::cuda {
template void run_moments<BFloat16>(const Problem&, double*, double*, Device&);
template void run_normalized_backward<BFloat16>(const Problem&, const double*, const double*, double, Device&);
}  // namespace slaf_ext::cuda
