#include "units.cuh"

namespace slaf_ext::cuda {
template void run_moments<Half>(const Problem&, double*, double*, Device&);
template void run_normalized_backward<Half>(const Problem&, const double*, const double*, double, Device&);
}  // namespace slaf_ext::cuda
