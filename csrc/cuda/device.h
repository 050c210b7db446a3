// A device, its current stream and temporary memory, free of torch.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "partition.h"

namespace slaf_ext::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("slaf_ext could not ") + what + ": " + cudaGetErrorString(status) +
                             "; run `python -m slaf_ext` to compare the architectures of this build with your GPU");
  }
}

class Device {
 public:
  virtual ~Device() = default;

  int threads() const { return max_threads; }

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index_),
          "ask for the number of multiprocessors");
    return count;
  }

  // Memory for kernels of this stream, for as long as the device lives.
  virtual void* allocate(int64_t bytes) = 0;

  template <typename... Parameters, typename... Args>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, const Args&... args) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream_>>>(args...);
    check(cudaGetLastError(), "launch a kernel");
  }

 protected:
  explicit Device(int index) : index_(index) {}

  int index_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace slaf_ext::cuda
