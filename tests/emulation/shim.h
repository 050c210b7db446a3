// As much of CUDA as the kernels use, on the CPU: a std::thread for each thread of a block, blocks one after
// another, barriers and shuffles by std::barrier. Sanitizers then see what threads of a GPU would do.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

namespace shim {

struct Warp {
  explicit Warp(int threads) : meeting(threads) {}
  std::barrier<> meeting;
  uint64_t slots[32];
};

struct Block {
  Block(int threads, int64_t shared_bytes)
      : meeting(threads), memory(new (std::align_val_t(16)) unsigned char[shared_bytes]) {
    std::fill_n(memory, shared_bytes, 0xff);  // NaN, which shows where it is read before it is written
    for (int first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Warp>(32));
  }
  ~Block() { ::operator delete[](memory, std::align_val_t(16)); }
  std::barrier<> meeting;
  unsigned char* memory;  // of the very size that was asked for
  std::vector<std::unique_ptr<Warp>> warps;
};
inline Block* block;

// Every thread of a block starts and ends with it, so a return before a barrier would show as a hang.
template <typename Kernel>
void launch(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes) {
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (unsigned b = 0; b < gridDim.x; ++b) {
    Block now(threads, shared_bytes);
    block = &now;
    std::vector<std::thread> all;
    for (unsigned t = 0; t < blockDim.x; ++t) {
      all.emplace_back([&, t] {
        threadIdx.x = t;
        blockIdx.x = b;
        kernel();
      });
    }
    for (auto& thread : all) thread.join();
  }
}

}  // namespace shim

inline void __syncthreads() { shim::block->meeting.arrive_and_wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  shim::Warp& warp = *shim::block->warps[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  std::memcpy(&warp.slots[lane], &value, sizeof(T));
  warp.meeting.arrive_and_wait();
  T other;
  std::memcpy(&other, &warp.slots[lane ^ static_cast<unsigned>(distance)], sizeof(T));
  warp.meeting.arrive_and_wait();
  return other;
}

namespace slaf_ext::cuda {
template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(shim::block->memory);
}
}  // namespace slaf_ext::cuda
