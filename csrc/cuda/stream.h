// torch's allocator and streams as a Device.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../arguments.h"
#include "device.h"

// torch declares it only where it is built with CUDA itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace slaf_ext::cuda {

// The device of a tensor, and its current stream. Memory goes back to torch's allocator when this ends, and is handed
// out again in the order of the stream, after the kernels that use it.
class CurrentStream final : public Device {
 public:
  explicit CurrentStream(const Tensor& like)
      : Device(like.get_device_index()), like_(like), guard_(like.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  void* allocate(int64_t bytes) override {
    workspaces_.push_back(empty({bytes}, like_, ScalarType::Byte));
    return workspaces_.back().mutable_data_ptr();
  }

 private:
  Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> workspaces_;
};

}  // namespace slaf_ext::cuda
