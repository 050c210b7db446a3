// torch's tensors, allocator and streams around launch.h.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "../ops.h"
#include "launch.h"

// torch declares it only where it is built with CUDA itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace slaf_ext::cuda {

inline void check(cudaError_t status, const char* what) {
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
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
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

inline Storage storage_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half: return Storage::half;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Float: return Storage::single_precision;
    default: return Storage::double_precision;
  }
}

// Calls f with a number of the storage type.
template <typename F>
void dispatch_storage(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Float: return f(float{});
    default: return f(double{});
  }
}

inline Problem problem_of(const Arguments& a) {
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

}  // namespace slaf_ext::cuda
