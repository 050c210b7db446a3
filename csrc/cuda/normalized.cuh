// The normalised form's kernels, free of torch: moments, and the gradients through them; and a sweep that walks p'.
// With mu_k and v_k the mean and the variance of phi_k over a group of m elements, s_k = sqrt(v_k + eps) and z_k =
// (phi_k - mu_k) / s_k,
//
//     y = coeffs_0 + sum_k coeffs_k z_k       dcoeffs_0 = G = sum g       dcoeffs_k = sum g z_k
//     dx = sum_k phi_k' coeffs_k / s_k (g - G / m - z_k dcoeffs_k / m)
//
// so three sweeps, one walk that is right for every table, and sums added up between them. A variance must not be the
// difference of two large numbers. Every block subtracts a shift from its psi_k, their mean over its threads' first
// tiles, and `finish_moments` merges the blocks in fp64. Where a block's mean lies d from its shift, a rounding of its
// sums weighs (d / deviation)^2. That is at most the number of tiles of a thread, however unlucky the sample, since the
// sample is a part of the block. So with few tiles fp32 sums serve, x is read once, and nothing is decided on the host.
// phi_k may be so large that fp32 does not hold its square, nor 1 / v_k, so sums are taken of psi_k times a power of
// two, which rounds nothing, and factors are of the size of 1 / s_k.
#pragma once

#include "kernels.cuh"

namespace slaf_ext::cuda {

enum class Pass : int {
  moments,              // sums of z_k = (psi_k - shift_k) unit_k and of its square
  centered_gradient,    // sums of grad_output z_k
  normalized_gradient,  // dx = sum_k psi_k' a_k (grad_output + u_k + v_k psi_k)
  walked_gradient,      // dx = grad_output sum_k psi_k' a_k, of the plain form, for bases in which D a cancels
};

// Numbers of a column that a sweep reads: shifts and units; a, u, v; a.
SLAF_INLINE constexpr int coeff_rows(Pass pass, int degree) {
  return (pass == Pass::normalized_gradient ? 3 : pass == Pass::walked_gradient ? 1 : 2) * (degree + 1);
}
// And that it makes: count and sums, squares, shifts, units; sums.
SLAF_INLINE constexpr int sum_rows(Pass pass, int degree) {
  return (pass == Pass::moments ? 4 : pass == Pass::centered_gradient ? 1 : 0) * (degree + 1);
}

// What a sweep reads of a group: the means and variances of phi_1, phi_2, ..., or the factors a, u, v.
template <typename T>
struct Statistics {
  const double *mean, *variance;
  double eps;
  const T* factors;
};

// float64 holds the square of every phi_k that is of use, so its units are 1.
template <typename T>
inline constexpr bool has_units = !std::is_same_v<T, double>;

// The power of two that brings numbers of a size, from 0 up, near 2^-exponent.
template <typename T>
SLAF_INLINE T unit_for(double size, int exponent) {
  if (!has_units<T>) return T(1);
  constexpr int most = 120, bias = 1023;
  const int power_of_size = size > 0 ? static_cast<int>(__builtin_bit_cast(uint64_t, size) >> 52) - bias : 0;
  const int power = -exponent - power_of_size, held = power < -most ? -most : power > most ? most : power;
  return static_cast<T>(__builtin_bit_cast(double, static_cast<uint64_t>(held + bias) << 52));
}

// The mean of psi_k, as the sums of `centered_gradient` are centred.
template <typename T>
SLAF_INLINE T shift_of(double mean, double inverse_scale) {
  return static_cast<T>(mean * inverse_scale);
}
// And their unit.
template <typename T>
SLAF_INLINE T unit_of(double variance, double eps, double inverse_scale) {
  return unit_for<T>(sqrt(variance + eps) * (inverse_scale < 0 ? -inverse_scale : inverse_scale), 0);
}
// A sample's mean size is brought here: far enough below 1 that what is 1e28 times as large has a square that fp32
// holds, and far enough above the smallest number that what is 2^-23 times as large has one too.
constexpr int sample_exponent = 32;
// Sums over a sample are taken of its numbers times this, since each may be near the end of the range.
constexpr double sample_unit = 0x1p-16;

// A sweep and its tables, as the argument of a kernel. Its `rows` are those of its sums.
template <typename S, int highest>
struct TabledNormalized {
  using T = compute_t<S>;
  Sweep<S> sweep;
  Statistics<T> statistics;
  T a[highest + 1], b[highest + 1], c[highest + 1];
  double inverse_scales[highest + 1];
};

template <Pass pass, typename S, int highest>
inline constexpr int normalized_blocks = [] {
  constexpr int words = sizeof(compute_t<S>) / 4;
  constexpr int packs = pass == Pass::normalized_gradient ? 9 : 6;
  constexpr int rows = pass == Pass::moments             ? 2 * highest + highest / 4 + 12
                       : pass == Pass::centered_gradient ? highest + 11
                                                         : (highest > 12 ? 32 : std::max(0, highest - 2));
  return std::max(1, 65536 / max_threads / ((words == 1 ? 24 : 68) + words * (packs * tile<S> + rows)));
}();

template <typename T, int count>
__device__ __forceinline__ Pack<T, count> magnitude(const Pack<T, count>& p) {
  return Pack<T, count>::make([&](int u) { return p.v[u] < T(0) ? -p.v[u] : p.v[u]; });
}

// A tile as the walk sees it.
template <typename P>
struct MappedTile {
  P x, seed;         // the seed is grad_output, or 1; 0 where nothing is left
  unsigned outside;  // bits, of the numbers that were clamped
};

template <Pass pass, typename S, typename T>
__device__ __forceinline__ MappedTile<Pack<T, tile<S>>> mapped_tile(const Sweep<S, T>& s, Cursor at) {
  MappedTile<Pack<T, tile<S>>> t{};
  dispatch_access(s.geometry.access, [&](auto access) {
    read_tile<access.value>(s.x, at, s.geometry, t.x);
    if constexpr (pass == Pass::moments) {
#pragma unroll
      for (int u = 0; u < tile<S>; ++u) {
        const bool is_there =
            access.value == Access::vectors ? at.left > 0 && at.offset + u < s.geometry.size : at.left > u;
        t.seed.v[u] = is_there ? T(1) : T(0);
      }
    } else {
      read_tile<access.value>(s.grad_output, at, s.geometry, t.seed);
    }
  });
#pragma unroll
  for (int u = 0; u < tile<S>; ++u) {
    T x = t.x.v[u];
    if (s.edge != Edge::extrapolate) {
      t.outside |= (x < s.lo || x > s.hi ? 1u : 0u) << u;
      x = x < s.lo ? s.lo : x > s.hi ? s.hi : x;
    }
    t.x.v[u] = x - s.center;
  }
  return t;
}

template <Access access, typename S>
__device__ __forceinline__ void advance_tile(Cursor& at, const Geometry& g) {
#pragma unroll
  for (int u = 0; u < (access == Access::vectors ? 1 : tile<S>); ++u) advance<access>(at, g);
}

// Calls visit(k, seed psi_k, seed) over one tile of a thread, whose cursor passes on to the next.
template <Pass pass, int certain, typename S, typename T, typename Tail, typename Visit>
__device__ __forceinline__ void visit_tile(const Sweep<S, T>& s, Cursor& at, const Rows<T>& table,
                                           const Degree<Tail>& degree, const Visit& visit) {
  const auto t = mapped_tile<pass>(s, at);
  walk<Walk::general>(t.x, t.seed, table, degree, [&](int k, const auto& psi) {
    // Degrees that share a kernel walk as far as the highest of them.
    if (k > certain && k > s.degree) return;
    visit(k, psi, t.seed);
  });
  dispatch_access(s.geometry.access, [&](auto access) { advance_tile<access.value, S>(at, s.geometry); });
}

// Writes dx over one tile. Row r of a, u, v is factors[r].
template <Pass pass, int certain, typename S, typename T, typename Tail>
__device__ __forceinline__ void gradient_tile(const Sweep<S, T>& s, Cursor& at, const Rows<T>& table,
                                              const Degree<Tail>& degree, const T* factors) {
  using P = Pack<T, tile<S>>;
  const auto t = mapped_tile<pass>(s, at);
  const int K = s.degree + 1;
  const Dual<P> x{t.x, P::of(T(1))}, one{P::of(T(1)), P::of(T(0))};
  P result = P::of(T(0));
  walk<Walk::general>(x, one, table, degree, [&](int k, const Dual<P>& psi) {
    if (k == 0 || (k > certain && k > s.degree)) return;
    if constexpr (pass == Pass::walked_gradient) {
      result = result + psi.slope * factors[k];
    } else {
      const P centered = psi.value * factors[2 * K + k] + factors[K + k] + t.seed;
      result = result + psi.slope * factors[k] * centered;
    }
  });
  if constexpr (pass == Pass::walked_gradient) result = result * t.seed;
#pragma unroll
  for (int u = 0; u < tile<S>; ++u) {
    // Beyond a linear edge the slope is that of the edge.
    if ((t.outside >> u & 1u) != 0 && s.edge != Edge::linear) result.v[u] = T(0);
  }
  dispatch_access(s.geometry.access, [&](auto access) {
    write_tile<access.value>(s.out, at, s.geometry, result);
    advance_tile<access.value, S>(at, s.geometry);
  });
}

// Degrees up to the highest of `Range`, in registers.
template <Pass pass, typename Range, typename S>
__global__ void __launch_bounds__(max_threads, (normalized_blocks<pass, S, Range::highest>))
    normalized_sweep(const __grid_constant__ TabledNormalized<S, Range::highest> args) {
  using T = compute_t<S>;
  constexpr int highest = Range::highest;
  const Sweep<S>& s = args.sweep;
  const Geometry& g = s.geometry;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int K = s.degree + 1, rows = coeff_rows(pass, s.degree), pitch = coeff_pitch(rows);
  const Rows<T> table{args.a, args.b, args.c};
  T* const block_coeffs = shared_memory<T>();
  T* const room = block_coeffs + g.width * pitch;
  Part part(g);
  const T* const coeffs = block_coeffs + part.local * pitch;

  const auto store = [&](int row, int64_t column, T t) {
    s.partial[(part.cell * s.rows + row) * g.columns + column] = t;
  };
  // Calls f(number, row, column) for every coefficient of the block.
  const auto for_coeffs = [&](const auto& f) {
#pragma unroll 1
    for (int i = thread; i < g.width * rows; i += threads) {
      const int local = i / rows, r = i % rows;
      const int64_t column = part.column - part.local + local;
      if (column < g.columns) f(block_coeffs + local * pitch, r, column);
    }
    __syncthreads();
  };

  constexpr auto degree = in_blocks(highest);
  if constexpr (pass == Pass::moments) {
    T sample[highest + 1] = {};
    [[maybe_unused]] T size[highest + 1] = {};
    Cursor first = part.at;
    visit_tile<pass, Range::lowest>(s, first, table, degree, [&](int k, const auto& psi, const auto&) {
      sample[k] = psi.total() * T(sample_unit);
      if constexpr (has_units<T>) size[k] = magnitude(psi).total() * T(sample_unit);
    });
    add_up(sample, K, part, g, room, [&](int k, int local, int64_t, T t) { block_coeffs[local * pitch + k] = t; });
    if constexpr (has_units<T>) {
      add_up(size, K, part, g, room, [&](int k, int local, int64_t, T t) { block_coeffs[local * pitch + K + k] = t; });
    }
    // Row 0 is the number of the sample's elements, and no shift.
    for_coeffs([&](T* at, int r, int64_t column) {
      if (r % K == 0) return;
      const bool is_shift = r < K;
      if (is_shift) {
        at[r] = at[0] > 0 ? at[r] / at[0] : T(0);
      } else {
        at[r] = unit_for<T>(has_units<T> && at[0] > 0 ? at[r] / at[0] : T(0), sample_exponent);
      }
      store(2 * K + r, column, at[r]);
    });
  } else {
    for_coeffs([&](T* at, int r, int64_t column) {
      const int64_t group = g.access == Access::columns ? column / g.inner : column;
      if constexpr (pass == Pass::centered_gradient) {
        const int k = r % K;
        const int64_t of_group = group * s.degree + k - 1;
        if (r < K) {
          at[r] = k == 0 ? T(0) : shift_of<T>(args.statistics.mean[of_group], args.inverse_scales[k]);
        } else {
          at[r] = k == 0 ? T(1)
                         : unit_of<T>(args.statistics.variance[of_group], args.statistics.eps, args.inverse_scales[k]);
        }
      } else {
        at[r] = args.statistics.factors[group * rows + r];
      }
    });
  }

  [[maybe_unused]] T sums[highest + 1] = {}, squares[highest + 1] = {};
#pragma unroll 1
  for (int i = 0; i < g.tiles; ++i) {
    if constexpr (pass == Pass::normalized_gradient) {
      gradient_tile<pass, Range::lowest>(s, part.at, table, degree, coeffs);
    } else {
      visit_tile<pass, Range::lowest>(s, part.at, table, degree, [&](int k, const auto& psi, const auto& seed) {
        if (k == 0) {
          sums[0] += psi.total();
          return;
        }
        auto centered = psi - seed * coeffs[k];
        if constexpr (has_units<T>) centered = centered * coeffs[K + k];
        sums[k] += centered.total();
        if constexpr (pass == Pass::moments) squares[k] += (centered * centered).total();
      });
    }
  }
  if constexpr (pass != Pass::normalized_gradient) {
    add_up(sums, K, part, g, room, [&](int k, int, int64_t column, T t) { store(k, column, t); });
  }
  if constexpr (pass == Pass::moments) {
    add_up(squares, K, part, g, room, [&](int k, int, int64_t column, T t) { store(K + k, column, t); });
  }
}

// What degrees beyond the registers read from memory.
template <typename T>
struct LongNormalized {
  Statistics<T> statistics;
  const T* table;  // all a, all b, all c
  const double* inverse_scales;
};

// Any degree: tables, shifts and sums in memory. A warp, or where columns differ a thread, has a slab of them.
template <Pass pass, typename S, typename T = compute_t<S>>
__global__ void __launch_bounds__(max_threads, 2)
    long_normalized_sweep(const __grid_constant__ Sweep<S> s, const __grid_constant__ LongNormalized<T> t) {
  const Geometry& g = s.geometry;
  const bool by_columns = g.access == Access::columns;
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  const int K = s.degree + 1;
  const Rows<T> table{t.table, t.table + s.degree, t.table + 2 * s.degree};
  // in_blocks(s.degree) stands where it is used: named once it holds registers, and `moments` spilled on sm_100.
  Part part(g);
  const int64_t group = !part.valid ? 0 : by_columns ? part.column / g.inner : part.column;
  if constexpr (pass == Pass::normalized_gradient || pass == Pass::walked_gradient) {
    const T* factors = t.statistics.factors + group * coeff_rows(pass, s.degree);
    for (int i = 0; i < g.tiles; ++i) gradient_tile<pass, 0>(s, part.at, table, in_blocks(s.degree), factors);
  } else {
    const int64_t slab = by_columns ? part.cell * part.height + part.row : part.cell * warps + thread / 32;
    const bool writes = by_columns ? part.valid : thread % 32 == 0;
    // A thread without a column reads another's shifts, and writes nothing.
    T* const sums = s.partial + (part.valid ? slab * s.rows * g.columns + part.column : 0);
    const auto meet = [&](T sum) { return by_columns ? sum : warp_sum(sum); };
    if constexpr (pass == Pass::moments) {
      Cursor first = part.at;
      T count = 0;
      visit_tile<pass, 0>(s, first, table, in_blocks(s.degree), [&](int k, const auto& psi, const auto&) {
        const T sum = meet(psi.total() * T(sample_unit)), size = meet(magnitude(psi).total() * T(sample_unit));
        if (k == 0) count = sum;
        if (!writes) return;
        sums[(2 * K + k) * g.columns] = count > 0 ? sum / count : T(0);
        sums[(3 * K + k) * g.columns] = unit_for<T>(count > 0 ? size / count : T(0), sample_exponent);
      });
      __syncthreads();
    }
    const auto shift = [&](int k) {
      if constexpr (pass == Pass::moments) return sums[(2 * K + k) * g.columns];
      return shift_of<T>(t.statistics.mean[group * s.degree + k - 1], t.inverse_scales[k]);
    };
    const auto unit = [&](int k) {
      if constexpr (pass == Pass::moments) return sums[(3 * K + k) * g.columns];
      return unit_of<T>(t.statistics.variance[group * s.degree + k - 1], t.statistics.eps, t.inverse_scales[k]);
    };
    for (int i = 0; i < g.tiles; ++i) {
      const auto add = [&](int row, T sum) {
        sum = meet(sum);
        if (writes) sums[row * g.columns] = i == 0 ? sum : sums[row * g.columns] + sum;
      };
      visit_tile<pass, 0>(s, part.at, table, in_blocks(s.degree), [&](int k, const auto& psi, const auto& seed) {
        const auto centered = k == 0 ? psi : (psi - seed * shift(k)) * unit(k);
        add(k, centered.total());
        if constexpr (pass == Pass::moments) add(K + k, (centered * centered).total());
      });
    }
  }
}

// From all slabs of `moments`, the mean and the variance of phi_k over a group.
template <typename T>
struct FinishMoments {
  const T* partial;
  Slabs slabs;
  int degree;
  double members;  // of a group
  double *mean, *variance;
  const double* far_scales;  // here, or where they fit
  double scales[33];
};

template <typename T>
__global__ void __launch_bounds__(1024) finish_moments(const __grid_constant__ FinishMoments<T> f) {
  const Adder adder(f.slabs);
  const int K = f.degree + 1, k = adder.k + 1;
  const double scale = f.far_scales != nullptr ? f.far_scales[k] : f.scales[k];
  const auto at = [&](int64_t slab, int row, int64_t column) -> double {
    return f.partial[(slab * f.slabs.rows + row) * f.slabs.columns + column];
  };
  const double mean = adder.total([&](int64_t slab, int64_t column) {
    if (at(slab, 0, column) == 0) return 0.0;
    return at(slab, 0, column) * at(slab, 2 * K + k, column) + at(slab, k, column) / at(slab, 3 * K + k, column);
  }) / f.members;
  // The spread about the slab's mean, and that of the slab's mean about the group's.
  const double squares = adder.total([&](int64_t slab, int64_t column) {
    const double count = at(slab, 0, column), unit = at(slab, 3 * K + k, column);
    if (count == 0) return 0.0;
    const double moved = at(slab, k, column) / count, within = at(slab, K + k, column) - count * moved * moved;
    const double between = at(slab, 2 * K + k, column) + moved / unit - mean;
    return (within < 0 ? 0 : within) / unit / unit + count * between * between;
  });
  if (!adder.writes()) return;
  f.mean[adder.group * f.degree + k - 1] = scale * mean;
  f.variance[adder.group * f.degree + k - 1] = scale * scale * squares / f.members;
}

// From all slabs of `centered_gradient`, the gradient in the coefficients and the factors of the last sweep.
template <typename T>
struct FinishGradient {
  const T* partial;
  Slabs slabs;
  int degree;
  double members, eps;
  const double *mean, *variance;
  const void* coeffs;
  void* grad;
  Storage coeffs_type;
  T* factors;  // a, u, v of every group; null: not needed
  const double* far_scales;
  double scales[33];
};

template <typename T>
__global__ void __launch_bounds__(1024) finish_gradient(const __grid_constant__ FinishGradient<T> f) {
  const Adder adder(f.slabs);
  const int K = f.degree + 1, k = adder.k;
  const double scale = f.far_scales != nullptr ? f.far_scales[k] : f.scales[k];
  const auto sum_of = [&](int row) {
    return adder.total([&](int64_t slab, int64_t column) -> double {
      return f.partial[(slab * f.slabs.rows + row) * f.slabs.columns + column];
    });
  };
  const double total = sum_of(0);
  if (k == 0) {
    if (adder.writes()) write(f.grad, f.coeffs_type, adder.group * K, total);
    return;
  }
  const double sum = sum_of(k);
  if (!adder.writes()) return;
  const double mean = f.mean[adder.group * f.degree + k - 1];
  // The sums were centred at a rounded mean, and are of numbers times a unit.
  const double inverse = 1 / scale, variance = f.variance[adder.group * f.degree + k - 1];
  const double deviation = sqrt(variance + f.eps);
  const double centered = sum / unit_of<T>(variance, f.eps, inverse);
  const double dw = scale * (centered + (shift_of<T>(mean, inverse) - mean * inverse) * total) / deviation;
  write(f.grad, f.coeffs_type, adder.group * K + k, dw);
  if (f.factors == nullptr) return;
  const double weight = read(f.coeffs, f.coeffs_type, adder.group * K + k) / deviation;
  const double v = -dw / (f.members * deviation);
  T* const factors = f.factors + adder.group * coeff_rows(Pass::normalized_gradient, f.degree);
  factors[k] = static_cast<T>(scale * weight);
  factors[K + k] = static_cast<T>(-total / f.members - v * mean);
  factors[2 * K + k] = static_cast<T>(scale * v);
}

}  // namespace slaf_ext::cuda
