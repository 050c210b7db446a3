#include "units.cuh"

template struct slaf_ext::cuda::Forward<slaf_ext::Half>;
