// The operators on CUDA devices: torch's tensors, allocator and streams around launch.h.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <iterator>
#include <stdexcept>
#include <string>

#include "../ops.h"
#include "launch.h"

// torch declares it only where it is built with CUDA itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace slaf_ext::cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("slaf_ext could not ") + what + ": " + cudaGetErrorString(status) +
                             "; run `python -m slaf_ext` to compare the architectures of this build with your GPU");
  }
}

// The device of a tensor, and its current stream. Memory goes back to torch's allocator when this ends:
// it is handed out again in the order of the stream, after the kernels that use it.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& like) : like_(like), guard_(like.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  int threads() const { return max_threads; }

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, like_.get_device_index()),
          "ask for the number of multiprocessors");
    return count;
  }

  void* allocate(int64_t bytes) {
    scratch_.push_back(empty({bytes}, like_, ScalarType::Byte));
    return scratch_.back().mutable_data_ptr();
  }

  template <typename... Parameters, typename... Args>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, const Args&... args) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream_>>>(args...);
    check(cudaGetLastError(), "launch a kernel");
  }

 private:
  Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<Tensor> scratch_;
};

Storage storage_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half: return Storage::half;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Float: return Storage::single_precision;
    default: return Storage::double_precision;
  }
}

void run_for(ScalarType type, const Problem& p, CurrentStream& device) {
  switch (type) {
    case ScalarType::Half: return run<Half>(p, device);
    case ScalarType::BFloat16: return run<BFloat16>(p, device);
    case ScalarType::Float: return run<float>(p, device);
    default: return run<double>(p, device);
  }
}

Problem problem_of(const Arguments& a) {
  Problem p{};
  p.x = a.x.const_data_ptr();
  p.coeffs = a.coeffs.const_data_ptr();
  p.coeffs_type = storage_of(a.coeffs.scalar_type());
  p.rows = a.rows;
  p.center = a.center;
  p.lo = a.lo;
  p.hi = a.hi;
  p.edge = static_cast<Edge>(a.outside);
  p.layout = a.layout;
  return p;
}

Tensor slaf(const Tensor& x, const Tensor& coeffs, const std::vector<double>& recurrence, int64_t dim, double center,
            double lo, double hi, int64_t outside) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  const Tensor y = a.empty_like_x();
  Problem p = problem_of(a);
  p.out = y.mutable_data_ptr();
  run_for(a.x.scalar_type(), p, device);
  return y;
}

std::tuple<Tensor, Tensor> slaf_backward(const Tensor& grad_output, const Tensor& x, const Tensor& coeffs,
                                         const std::vector<double>& recurrence, int64_t dim, double center, double lo,
                                         double hi, int64_t outside, bool need_x, bool need_coeffs) {
  CurrentStream device(x);
  const Arguments a(x, coeffs, recurrence, dim, center, lo, hi, outside);
  const Tensor gy = a.lay_like_x(grad_output);
  const Tensor dx = need_x ? a.empty_like_x() : empty({0}, x, x.scalar_type());
  const auto shape = coeffs.sizes();
  const Tensor dcoeffs = empty(need_coeffs ? std::vector<int64_t>(shape.begin(), shape.end()) : std::vector<int64_t>{0},
                               coeffs, coeffs.scalar_type());
  if (!(need_x || need_coeffs)) return {dx, dcoeffs};
  Problem p = problem_of(a);
  p.layout.groups = coeffs.numel() / (a.degree() + 1);
  p.grad_output = gy.const_data_ptr();
  if (need_x) p.out = dx.mutable_data_ptr();
  if (need_coeffs) p.grad_coeffs = dcoeffs.mutable_data_ptr();
  run_for(a.x.scalar_type(), p, device);
  return {dx, dcoeffs};
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
  m.impl("slaf", TORCH_BOX(&slaf_ext::cuda::slaf));
  m.impl("slaf_backward", TORCH_BOX(&slaf_ext::cuda::slaf_backward));
}
