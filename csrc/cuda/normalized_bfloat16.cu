#include "units.cuh"

template struct slaf_ext::cuda::Normalized<slaf_ext::BFloat16>;
