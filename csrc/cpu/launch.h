// Runs a sweep on threads: the coefficients before it, its tasks, and the sums after it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "../problem.h"
#include "units.h"

namespace slaf_ext::cpu {

// Coefficients or sums in float64, slot by slot: those of all groups are consecutive, and are computed as vectors.
struct Table {
  static constexpr int lanes = 16;
  using Lanes = Pack<double, 16, lanes / 2>;  // this code has no other instruction set than the baseline

  Table(int64_t slots, int64_t groups) : slots(slots), groups(groups), stride(groups + lanes), values(slots * stride) {}
  double* operator[](int64_t slot) { return &values[slot * stride]; }
  const double* operator[](int64_t slot) const { return &values[slot * stride]; }

  // The table of f(slot, from), where from(slot) is a vector of this table's.
  template <typename F>
  Table map(int64_t new_slots, const F& f) const {
    Table to(new_slots, groups);
    const auto length = Constant<2>{};
    for (int64_t g = 0; g < groups; g += lanes) {
      const auto from = [&](int slot) __attribute__((always_inline)) { return Lanes::read((*this)[slot] + g, length); };
      for (int slot = 0; slot < new_slots; ++slot) f(slot, from).write(to[slot] + g, length);
    }
    return to;
  }

  int64_t slots, groups;
  int64_t stride;  // holds whole vectors, and is no power of two: slots would share a few places of the cache
  std::vector<double> values;
};

// The coefficients of an operator, `K` slots.
inline Table read_coeffs(const void* coeffs, Storage type, int64_t K, int64_t groups) {
  Table table(K, groups);
  dispatch_storage(type, [&](auto s) {
    const auto* from = static_cast<const decltype(s)*>(coeffs);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t k = 0; k < K; ++k) table[k][g] = widen(from[g * K + k]);
    }
  });
  return table;
}
inline Table read_coeffs(const Problem& p) {
  return read_coeffs(p.coeffs, p.coeffs_type, p.degree() + 1, p.layout.groups);
}

inline void write_coeffs(const Table& table, void* coeffs, Storage type) {
  dispatch_storage(type, [&](auto s) {
    using S = decltype(s);
    auto* to = static_cast<S*>(coeffs);
    for (int64_t g = 0; g < table.groups; ++g) {
      for (int64_t k = 0; k < table.slots; ++k) *to++ = narrow<S>(static_cast<compute_t<S>>(table[k][g]));
    }
  });
}

// Uninitialised elements from the start of a cache line on, so that no vector lies across two.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t elements) : memory_(new T[elements + cache_line / sizeof(T)]) {}
  T* data() const { return memory_.get() + (-reinterpret_cast<uintptr_t>(memory_.get()) % cache_line) / sizeof(T); }

 private:
  std::unique_ptr<T[]> memory_;
};

// The blocks of coefficients of a task's units, a vector for each slot.
template <typename T>
void broadcast_coeffs(const Table& coeffs, const Partition& p, const Task& task, T* to) {
  const int64_t W = p.W;
  for (int64_t u = task.unit_begin; u < task.unit_end; ++u) {
    for (int64_t slot = 0; slot < coeffs.slots; ++slot, to += W) {
      const auto value = [&](int64_t g) { return static_cast<T>(quiet(coeffs[slot][g])); };
      if (!p.has_columns) {
        std::fill_n(to, W, value(u));
      } else {
        const int64_t lanes = std::min(W, p.inner - u * W);
        for (int64_t i = 0; i < lanes; ++i) to[i] = value(p.group_of[u * W + i]);
        std::fill(to + lanes, to + W, T(0));
      }
    }
  }
}

// A self-scheduling queue of tasks, as cores are not equally fast. What a thread takes is half its share of the tasks
// left: many at first, since consecutive memory is read faster, and a single one in the end.
class Queue {
 public:
  struct Chunk {
    int64_t begin, end;
  };

  explicit Queue(int64_t tasks) : tasks_(tasks) {}
  // Empty when all tasks are taken.
  Chunk take(int64_t threads) {
    int64_t begin = next_, end;
    do {
      end = std::min(tasks_, begin + std::max<int64_t>(1, (tasks_ - begin) / (2 * threads)));
    } while (!next_.compare_exchange_weak(begin, end));
    return {begin, end};
  }

 private:
  const int64_t tasks_;
  std::atomic<int64_t> next_{0};
};

// The sums of all tasks, added in the order of the tasks.
inline Table add_partials(const double* partial, int64_t partial_size, const Partition& p, int64_t slots) {
  Table sums(slots, p.groups);
  for (int64_t index = 0; index < p.tasks; ++index) {
    const Task task = p.task(index);
    const double* from = partial + index * partial_size;
    for (int64_t slot = 0; slot < slots; ++slot) {
      for (int64_t g = task.group_begin; g < task.group_end; ++g) sums[slot][g] += *from++;
    }
  }
  return sums;
}

// Results of this size are written past the caches: with x they fill the last of them, so little of them would be found
// there, and a line that is written there is read from memory first.
constexpr int64_t streamed_bytes = int64_t{16} << 20;

// Runs a pass over all of x. `coeffs` has as many slots as the result has sums, if the pass has any.
template <typename S>
Table run_sweep(unsigned pass, const Problem& problem, const Recurrence& recurrence, const Table& coeffs, void* out) {
  using T = compute_t<S>;
  constexpr int64_t thread_elements = 32768;  // less is not worth another thread
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const Isa isa = best_isa();
  const int64_t W = vector_bytes(isa) / static_cast<int64_t>(sizeof(T)), slots = coeffs.slots, block = slots * W;
  const Partition p(problem.layout, W, block * static_cast<int64_t>(sizeof(T)));

  const Walk kind = compiled_walk(pass, recurrence.kind);
  std::vector<T> a(recurrence.a.size()), b(a.size()), c(a.size());
  set_rows(recurrence, kind, a.data(), b.data(), c.data());
  const bool edges = problem.outside != Outside::extrapolate, mapped = edges || problem.center != 0;
  const Mapping<T> mapping{problem.outside, static_cast<T>(problem.center),
                           edges ? static_cast<T>(problem.lo) : -infinity,
                           edges ? static_cast<T>(problem.hi) : infinity};
  const auto kernels = Kernels<S>::choose(pass, kind, problem.degree(), !p.has_columns && !mapped, isa);
  const Sweep<S> s{pass,
                   static_cast<const S*>(problem.x),
                   static_cast<const S*>(problem.grad_output),
                   static_cast<S*>(out),
                   kernels.run_strip,
                   Kernels<T>::choose(pass, kind, problem.degree(), !mapped, isa).run_strip,
                   vectors_per_step(vector_bytes(isa), pass, kind),
                   {a.data(), b.data(), c.data()},
                   problem.degree(),
                   mapped ? &mapping : nullptr,
                   static_cast<int>(slots),
                   p,
                   problem.layout.numel() * static_cast<int64_t>(sizeof(S)) >= streamed_bytes};

  const int64_t partial_size = has_sums(pass) ? slots * p.task_groups : 0;
  const Buffer<double> partial(p.tasks * partial_size);
  const int64_t grain = std::max<int64_t>(1, thread_elements * p.tasks / problem.layout.numel());
  Queue queue(p.tasks);
  torch::stable::parallel_for(0, p.tasks, grain, [&](int64_t begin, int64_t end) {
    const int64_t threads = ceil_div(p.tasks, end - begin);
    // The blocks of one task at a time, as those of all units would be W times the coefficients.
    const int64_t sums_size = has_sums(pass) ? p.unit_block * block : 0;
    const Buffer<T> blocks(p.unit_block * block), sums(sums_size);
    const Buffer<double> totals(sums_size);
    int64_t ready = -1;  // the first unit of these blocks
    for (auto chunk = queue.take(threads); chunk.begin < chunk.end; chunk = queue.take(threads)) {
      for (int64_t index = chunk.begin; index < chunk.end; ++index) {
        const Task task = p.task(index);
        if (ready != task.unit_begin) {
          broadcast_coeffs(coeffs, p, task, blocks.data());
          ready = task.unit_begin;
        }
        kernels.run_task(s, task, blocks.data(), sums.data(), totals.data(), partial.data() + index * partial_size);
      }
    }
  });
  return add_partials(partial.data(), partial_size, p, has_sums(pass) ? slots : 0);
}

}  // namespace slaf_ext::cpu
