#include "units.cuh"

template struct slaf_ext::cuda::Backward<float>;
