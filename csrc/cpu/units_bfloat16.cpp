#include "units.h"

template struct slaf_ext::cpu::Kernels<slaf_ext::BFloat16>;
