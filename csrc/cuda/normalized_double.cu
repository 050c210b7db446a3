#include "units.cuh"

namespace slaf_ext::cuda {
template void run_moments<double>(const Problem&, double*, double*, Device&);
template void run_normalized_backward<double>(const Problem&, const double*, const double*, double, Device&);
}  // namespace slaf_ext::cuda
