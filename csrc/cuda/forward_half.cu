#include "units.cuh"

namespace slaf_ext::cuda {
template void run_forward<Half>(const Problem&, Device&);
}  // namespace slaf_ext::cuda
