// Sums over threads, and over the blocks of a sweep. No atomics: the order of additions is fixed, so the same input
// gives the same bits.
#pragma once

#include <algorithm>

#include "../tables.h"
#include "partition.h"
#include "storage.cuh"

namespace slaf_ext::cuda {

#ifdef __CUDACC__
// The shared memory that a launch asks for.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}
#endif

// The same sum in every lane of a warp.
template <typename T>
__device__ __forceinline__ T warp_sum(T t) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) t += __shfl_xor_sync(0xffffffffu, t, distance);
  return t;
}

// The sums of each thread that the workspace holds at a time, in 32 KiB, where columns are read.
template <typename T>
inline constexpr int workspace_sums = 32 * 1024 / (max_threads * static_cast<int>(sizeof(T)));
// The elements of the workspace, which where runs are read holds the sums of each warp.
template <typename T>
int64_t workspace_size(Access access, int sums, int width, int threads) {
  if (access == Access::runs) return int64_t{sums} * (threads / 32);
  return int64_t{std::min(sums * width, workspace_sums<T>)} * threads;
}

// Adds the first `used` sums of each thread over the threads that share a column, and calls sink(i, local, total) for
// each column of the block. A thread has sums of `width` neighbouring columns. Ends with a barrier.
template <int width, int count, typename T, typename Sink>
__device__ __forceinline__ void reduce_columns(const Pack<T, width> (&sums)[count], int used, int threads_across,
                                               T* workspace, const Sink& sink) {
  constexpr int batch = workspace_sums<T> / width;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int columns = threads_across * width;
#pragma unroll
  for (int first = 0; first < count; first += batch) {
#pragma unroll
    for (int i = first; i < first + batch && i < count; ++i) {
#pragma unroll
      for (int w = 0; w < width && i < used; ++w) {
        workspace[((i - first) * threads + thread) * width + w] = sums[i].v[w];
      }
    }
    __syncthreads();
    const int left = used - first, ready = left < batch ? left : batch;
#pragma unroll 1
    for (int i = thread; i < ready * columns; i += threads) {
      const int sum = i / columns, local = i % columns;
      double total = 0;
#pragma unroll 1
      for (int t = 0; t < threads; t += threads_across) total += workspace[(sum * threads + t) * width + local];
      sink(first + sum, local, static_cast<T>(total));
    }
    __syncthreads();
  }
}
// The same where all threads share the group: local is 0.
template <int count, typename T, typename Sink>
__device__ __forceinline__ void reduce_group(const Pack<T, 1> (&sums)[count], int used, T* workspace,
                                             const Sink& sink) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), warps = threads / 32;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const T sum = warp_sum(sums[i].v[0]);
    if (thread % 32 == 0 && i < used) workspace[i * warps + thread / 32] = sum;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < used; i += threads) {
    double total = 0;
#pragma unroll 1
    for (int warp = 0; warp < warps; ++warp) total += workspace[i * warps + warp];
    sink(i, 0, static_cast<T>(total));
  }
  __syncthreads();
}

// The partial sums of a sweep: `slots` of them for each of `columns`, from each of `sources` blocks, warps or threads.
template <typename T>
struct Partials {
  T* at;
  int64_t sources, columns;
  int slots;

  SLAF_INLINE T& operator()(int slot, int64_t source, int64_t column) const {
    return at[(slot * sources + source) * columns + column];
  }
};

// How the threads of a block add partial sums: each of `width` neighbouring groups has `height` threads, a power of
// two, and a block serves one k.
struct ReduceShape {
  int64_t groups;
  int width, height;
};

constexpr int max_reduce_threads = 512;  // of a block

// A thread's part in this.
template <typename T>
struct GroupReducer {
  __device__ __forceinline__ GroupReducer(const Partials<T>& p, const ReduceShape& s)
      : partials(p), shape(s), inner(p.columns / s.groups) {
    const int64_t blocks = (s.groups + s.width - 1) / s.width;
    x = static_cast<int>(threadIdx.x) % s.width;
    y = static_cast<int>(threadIdx.x) / s.width;
    k = static_cast<int>(blockIdx.x / blocks);
    group = blockIdx.x % blocks * s.width + x;
  }
  // The sum of term(source, column) over the group, in all its threads. All threads of the block must call it.
  template <typename Term>
  __device__ __forceinline__ double total(const Term& term) const {
    double sum = 0;
    if (group < shape.groups) {
      for (int64_t i = 0; i < inner; ++i) {
#pragma unroll 4
        for (int64_t source = y; source < partials.sources; source += shape.height)
          sum += term(source, group * inner + i);
      }
    }
    double* const workspace = shared_memory<double>();
    const int thread = static_cast<int>(threadIdx.x);
    workspace[thread] = sum;
    for (int half = shape.height / 2; half > 0; half /= 2) {
      __syncthreads();
      if (y < half) workspace[thread] += workspace[thread + half * shape.width];
    }
    __syncthreads();
    sum = workspace[x];
    __syncthreads();
    return sum;
  }
  __device__ __forceinline__ double total(int slot) const {
    return total([&](int64_t source, int64_t column) -> double { return partials(slot, source, column); });
  }
  // Whether this thread writes the result of its group.
  __device__ __forceinline__ bool writes() const { return y == 0 && group < shape.groups; }

  const Partials<T>& partials;
  const ReduceShape& shape;
  int64_t inner, group;
  int x, y, k;
};

// The gradient in the coefficients from partial sums.
template <typename T>
struct Reduction {
  Partials<T> partials;
  ReduceShape shape;
  int degree;
  void* grad;
  Storage grad_type;
  const double* weights_in_memory;  // null where they fit below
  double weights[3 * 33];
};

template <typename T>
__global__ void __launch_bounds__(max_reduce_threads) reduce(const __grid_constant__ Reduction<T> r) {
  const GroupReducer<T> reducer(r.partials, r.shape);
  const int K = r.degree + 1, k = reducer.k;
  const double* weights = r.weights_in_memory != nullptr ? r.weights_in_memory : r.weights;
  const double sum =
      coeff_gradient(k, r.degree, r.partials.slots, weights, [&](int slot) { return reducer.total(slot); });
  if (reducer.writes()) write(r.grad, r.grad_type, reducer.group * K + k, sum);
}

}  // namespace slaf_ext::cuda
