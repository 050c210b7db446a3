// How a dense tensor lies in memory: element i of the storage belongs to group (i / inner) % groups, and each group has
// coefficients of its own. Every dense permutation of x has this form, so none needs a copy:
//
//     (N, C, H, W) contiguous        outer = N        groups = G   inner = C / G * H * W
//     (N, C, H, W) channels-last     outer = N H W    groups = G   inner = C / G
//     (..., F) with dim = -1         outer = ...      groups = G   inner = F / G
//     one group for all of x         outer = 1        groups = 1   inner = numel
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace slaf_ext {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Layout {
  int64_t outer, groups, inner;
  int64_t numel() const { return outer * groups * inner; }
};

// How kernels read a layout: a group's elements in long *runs* that share their coefficients, or where runs are short,
// neighbouring *columns* of a (outer, groups * inner) matrix, each with coefficients of its own.
enum class Access : int { runs, columns };
inline Access access_of(const Layout& layout) {
  constexpr int64_t long_run = 32;  // elements
  return layout.groups > 1 && layout.inner < long_run ? Access::columns : Access::runs;
}

// The dimensions of size > 1, from the largest stride to the smallest.
inline std::vector<int64_t> by_stride(const int64_t* sizes, const int64_t* strides, int64_t ndim) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < ndim; ++d) {
    if (sizes[d] > 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  return order;
}

// Whether the elements fill one block of memory, in whatever order of dimensions.
inline bool is_dense(const int64_t* sizes, const int64_t* strides, int64_t ndim) {
  const auto order = by_stride(sizes, strides, ndim);
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (strides[*d] != expected) return false;
    expected *= sizes[*d];
  }
  return true;
}

// The layout of a dense tensor with `numel` > 0 elements and `groups` groups along `dim`.
inline Layout layout_of(const int64_t* sizes, const int64_t* strides, int64_t ndim, int64_t numel, int64_t dim,
                        int64_t groups) {
  if (groups == 1) return {1, 1, numel};
  int64_t outer = 1;
  for (int64_t d : by_stride(sizes, strides, ndim)) {
    if (d == dim) break;
    outer *= sizes[d];
  }
  return {outer, groups, numel / (outer * groups)};
}

}  // namespace slaf_ext
