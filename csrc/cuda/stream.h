// torch's tensors, allocator and streams around launch.h.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../ops.h"
#include "device.h"
#include "launch.h"

// torch declares it only where it is built with CUDA itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace slaf_ext::cuda {

// The device of a tensor, and its current stream. Memory goes back to torch's allocator when this ends:
// it is handed out again in the order of the stream, after the kernels that use it.
class CurrentStream final : public Device {
 public:
  explicit CurrentStream(const Tensor& like)
      : Device(like.get_device_index()), like_(like), guard_(like.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  void* allocate(int64_t bytes) override {
    scratch_.push_back(empty({bytes}, like_, ScalarType::Byte));
    return scratch_.back().mutable_data_ptr();
  }

 private:
  Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
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
