#include "units.cuh"

namespace slaf_ext::cuda {
template void run_plain<float>(const Problem&, bool, CurrentStream&);
}  // namespace slaf_ext::cuda
