// Sums over threads, and over the blocks of a sweep. No atomics: what is added to what is fixed, so the same input
// gives the same bits.
#pragma once

#include <algorithm>

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

// The sums of every thread that the workspace of columns holds at a time, in 32 KiB; and that of a group, of every
// warp.
template <typename T>
inline constexpr int workspace_sums = 32 * 1024 / (max_threads * static_cast<int>(sizeof(T)));
template <typename T>
int64_t workspace_size(Reading reading, int sums, int width, int threads) {
  if (reading == Reading::runs) return int64_t{sums} * (threads / 32);
  return int64_t{std::min(sums * width, workspace_sums<T>)} * threads;
}

// The first `used` of the sums that every thread has, added over the threads that share a column: sink(i, local, total)
// for each of them and each column of the block. A thread has sums of `width` columns, neighbours, and `across` threads
// stand side by side. Ends with a barrier, so threads see what other sinks wrote.
template <int width, int count, typename T, typename Sink>
__device__ __forceinline__ void reduce_columns(const Pack<T, width> (&sums)[count], int used, int across, T* workspace,
                                               const Sink& sink) {
  constexpr int together = workspace_sums<T> / width;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int columns = across * width;
#pragma unroll
  for (int first = 0; first < count; first += together) {
#pragma unroll
    for (int i = first; i < first + together && i < count; ++i) {
#pragma unroll
      for (int w = 0; w < width && i < used; ++w) {
        workspace[((i - first) * threads + thread) * width + w] = sums[i].v[w];
      }
    }
    __syncthreads();
    const int left = used - first, rows = left < together ? left : together;
#pragma unroll 1
    for (int i = thread; i < rows * columns; i += threads) {
      const int row = i / columns, local = i % columns;
      double total = 0;
#pragma unroll 1
      for (int t = 0; t < threads; t += across) total += workspace[(row * threads + t) * width + local];
      sink(first + row, local, static_cast<T>(total));
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

// The partial sums of a sweep: `rows` of them for each of `columns`, from each of `slabs` blocks, warps or threads.
template <typename T>
struct Partials {
  T* at;
  int64_t slabs, columns;
  int rows;

  SLAF_INLINE T& operator()(int row, int64_t slab, int64_t column) const {
    return at[(row * slabs + slab) * columns + column];
  }
};

// How the threads of a block add partial sums up: each of `width` neighbouring groups has `height` threads, a power of
// two, and a block serves one k.
struct Adders {
  int64_t groups;
  int width, height;
};

constexpr int max_adders = 512;  // threads of a block

// A thread's part in it.
template <typename T>
struct Adder {
  __device__ __forceinline__ Adder(const Partials<T>& p, const Adders& a)
      : partials(p), adders(a), inner(p.columns / a.groups) {
    const int64_t blocks = (a.groups + a.width - 1) / a.width;
    x = static_cast<int>(threadIdx.x) % a.width;
    y = static_cast<int>(threadIdx.x) / a.width;
    k = static_cast<int>(blockIdx.x / blocks);
    group = blockIdx.x % blocks * a.width + x;
  }
  // The sum of term(slab, column) over the group, the same in all its threads. All threads of the block must call it.
  template <typename Term>
  __device__ __forceinline__ double total(const Term& term) const {
    double sum = 0;
    if (group < adders.groups) {
      for (int64_t i = 0; i < inner; ++i) {
#pragma unroll 4
        for (int64_t slab = y; slab < partials.slabs; slab += adders.height) sum += term(slab, group * inner + i);
      }
    }
    double* const workspace = shared_memory<double>();
    const int thread = static_cast<int>(threadIdx.x);
    workspace[thread] = sum;
    for (int half = adders.height / 2; half > 0; half /= 2) {
      __syncthreads();
      if (y < half) workspace[thread] += workspace[thread + half * adders.width];
    }
    __syncthreads();
    sum = workspace[x];
    __syncthreads();
    return sum;
  }
  __device__ __forceinline__ double total(int row) const {
    return total([&](int64_t slab, int64_t column) -> double { return partials(row, slab, column); });
  }
  // Whether this thread writes the result of its group.
  __device__ __forceinline__ bool writes() const { return y == 0 && group < adders.groups; }

  const Partials<T>& partials;
  const Adders& adders;
  int64_t inner, group;
  int x, y, k;
};

// The scales, and with linear edges the slopes at lo and at hi, that turn sums into the gradient in the coefficients.
constexpr int64_t scale_count(int64_t degree) { return 3 * (degree + 1); }

// grad_k = scale_k sums_k, and what lies beyond linear edges.
template <typename T>
struct Reduction {
  Partials<T> partials;
  Adders adders;
  int degree;
  void* grad;
  Storage grad_type;
  const double* far_scales;  // null where they fit below
  double scales[scale_count(32)];
};

template <typename T>
__global__ void __launch_bounds__(max_adders) reduce(const __grid_constant__ Reduction<T> r) {
  const Adder<T> adder(r.partials, r.adders);
  const int K = r.degree + 1, k = adder.k;
  const double* scales = r.far_scales != nullptr ? r.far_scales : r.scales;
  double sum = scales[k] * adder.total(k);
  for (int row = K; row < r.partials.rows; ++row) {
    const double slope = scales[(row - K + 1) * K + k], beyond = adder.total(row);
    if (slope != 0) sum += slope * beyond;  // which may be infinite
  }
  if (adder.writes()) write(r.grad, r.grad_type, adder.group * K + k, sum);
}

}  // namespace slaf_ext::cuda
