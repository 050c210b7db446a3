#include "units.cuh"

namespace slaf_ext::cuda {
template void run_backward<Half>(const Problem&, bool, Device&);
}  // namespace slaf_ext::cuda
