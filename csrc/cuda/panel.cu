// Panels of the layer with a polynomial on every edge, on CUDA devices.
#include "panel.cuh"

#include "../operators.h"
#include "stream.h"

namespace slaf_ext::cuda {
namespace {

template <bool is_expansion>
void run_panel(const Panel& p, const Tensor& x) {
  CurrentStream stream(x);
  Device& device = stream;
  dispatch_storage(p.type, [&](auto s) { launch_panel<is_expansion, decltype(s)>(p, device); });
}

}  // namespace
}  // namespace slaf_ext::cuda

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CUDA, m) {
  slaf_ext::PanelForm<&slaf_ext::cuda::run_panel<true>, &slaf_ext::cuda::run_panel<false>>::register_in(m);
}
