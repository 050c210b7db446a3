#include "units.h"

template struct slaf_ext::cpu::Kernels<double>;
