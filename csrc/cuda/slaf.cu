// The plain form on CUDA devices.
#include <iterator>

#include "../operators.h"
#include "stream.h"
#include "units.h"

namespace slaf_ext::cuda {
namespace {

void run_forward(const Problem& p, const Tensor& x) {
  CurrentStream device(x);
  dispatch_storage(p.type, [&](auto s) { Forward<decltype(s)>::run(p, device); });
}

void run_backward(const Problem& p, const Tensor& x) {
  CurrentStream device(x);
  dispatch_storage(p.type, [&](auto s) { Backward<decltype(s)>::run(p, device); });
}

}  // namespace
}  // namespace slaf_ext::cuda

// For `python -m slaf_ext`: the toolkit that built this, as 1000 major + 10 minor, and the i-th architecture, or 0.
extern "C" __attribute__((visibility("default"))) int slaf_ext_cuda_toolkit() { return CUDART_VERSION; }
extern "C" __attribute__((visibility("default"))) int slaf_ext_cuda_architecture(int i) {
  constexpr int architectures[] = {__CUDA_ARCH_LIST__};
  return i < static_cast<int>(std::size(architectures)) ? architectures[i] : 0;
}

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  slaf_ext::PlainForm<&slaf_ext::cuda::run_forward, &slaf_ext::cuda::run_backward>::register_in(m);
}
