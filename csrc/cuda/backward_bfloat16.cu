#include "units.cuh"

template struct slaf_ext::cuda::Backward<slaf_ext::BFloat16>;
