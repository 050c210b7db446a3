// How a sweep is partitioned into tasks: by the sizes alone, never by the number of threads, so that sums are always
// added in the same order.
//
// A *unit* is a column of vectors that share one block of coefficients. Where runs are read, a unit is a group: its
// vectors are consecutive, and all lanes have the same coefficients. Where columns are read, a unit is W neighbouring
// columns: each lane has its own coefficients, and the vectors lie one matrix row apart. Only the stride differs.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../layout.h"

namespace slaf_ext::cpu {

// Some units and a part of their vectors, and the groups that these belong to.
struct Task {
  int64_t outer_begin, outer_end, unit_begin, unit_end, inner_begin, inner_end;
  int64_t group_begin, group_end;
};

constexpr int64_t task_elements = 16384;  // of a task, about
constexpr int64_t unit_elements = 1024;   // of each of its units, at least, where runs are short
constexpr int64_t run_elements = 4096;    // consecutive ones, at least: the processor does not prefetch across pages
constexpr int64_t task_outer = 512;       // matrix rows of a task, about, where columns are read
constexpr int64_t min_tasks = 8;          // where columns are read and there is work for them
constexpr int64_t block_bytes = 65536;    // of the coefficients of a task's units, as of their sums: both stay in L2

// The size of parts of n, none larger than `max_size` and all about as large.
inline int64_t even_size(int64_t n, int64_t max_size) { return ceil_div(n, ceil_div(n, max_size)); }

struct Partition {
  // `bytes_of_unit`: of its coefficients.
  Partition(const Layout& l, int64_t W, int64_t bytes_of_unit)
      : has_columns(access_of(l) == Access::columns), W(W), groups(l.groups), period(l.groups * l.inner) {
    const int64_t fitting_units = std::max<int64_t>(1, block_bytes / bytes_of_unit);
    has_columns ? partition_columns(l, fitting_units) : partition_runs(l, fitting_units);
    inner_blocks = ceil_div(inner, inner_block);
    cells = ceil_div(outer, outer_block) * inner_blocks;
    tasks = cells * ceil_div(units, unit_block);
  }

  Task task(int64_t index) const {
    const int64_t u = index / cells * unit_block, cell = index % cells;
    const int64_t i = cell % inner_blocks * inner_block, o = cell / inner_blocks * outer_block;
    Task t{o, std::min(outer, o + outer_block), u, std::min(units, u + unit_block),
           i, std::min(inner, i + inner_block), 0, groups};
    const int64_t first = t.unit_begin * W, last = std::min(t.unit_end * W, inner) - 1;
    if (!has_columns) {
      t.group_begin = t.unit_begin;
      t.group_end = t.unit_end;
    } else if (first / period == last / period) {
      t.group_begin = group_of[first];
      t.group_end = group_of[last] + 1;
    }
    return t;
  }

  bool has_columns;
  int64_t W, groups, period;                     // period: columns after which the groups repeat
  int64_t outer, units, inner;                   // outer x units x inner elements, or outer x inner columns
  int64_t outer_block, unit_block, inner_block;  // of a task
  int64_t inner_blocks, cells;                   // cells: the tasks of the same units, numbered consecutively
  int64_t tasks, task_groups;                    // task_groups: of a task, at most
  std::vector<int64_t> group_of;                 // of each column

 private:
  void partition_runs(const Layout& l, int64_t fitting_units) {
    outer = l.outer;
    units = groups;
    inner = l.inner;
    inner_block = std::min(inner, task_elements);
    unit_block = even_size(units, std::min(ceil_div(run_elements, inner_block), fitting_units));
    outer_block = even_size(outer, ceil_div(std::max(task_elements / unit_block, unit_elements), inner_block));
    task_groups = unit_block;
  }

  void partition_columns(const Layout& l, int64_t fitting_units) {
    outer = l.outer;
    inner = period;
    // Several short matrix rows are taken as one, so that all vectors are whole and units not too few.
    int64_t joined = W / std::gcd(inner, W);
    while (inner * joined < 8 * W && outer % (2 * joined) == 0) joined *= 2;
    if (inner < 16 * W && outer % joined == 0) {
      outer /= joined;
      inner *= joined;
    }
    while (static_cast<int64_t>(group_of.size()) < inner) {
      for (int64_t g = 0; g < groups; ++g) group_of.insert(group_of.end(), l.inner, g);
    }
    units = ceil_div(inner, W);
    outer_block = even_size(outer, task_outer);
    inner_block = inner;
    const int64_t splits =
        std::min(ceil_div(min_tasks, ceil_div(outer, outer_block)), outer_block * inner / task_elements);
    unit_block = ceil_div(units, std::max(ceil_div(units, fitting_units), splits));
    task_groups = inner > period ? groups : std::min(groups, unit_block * W / l.inner + 2);
  }
};

}  // namespace slaf_ext::cpu
