// How a sweep is partitioned among blocks and threads, free of torch.
//
// The elements that one load moves are an *item*. Where runs are read, a block serves one group, and takes some whole
// runs or a part of one. Where columns are read, a block serves neighbouring columns, and a thread goes down those that
// its items hold.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../layout.h"
#include "../recurrence.h"

namespace slaf_ext::cuda {

constexpr int max_threads = 256;  // of a block

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Division of integers below 2^31 by a constant from 1 to 2^31, as one product.
struct Divisor {
  Divisor() = default;
  explicit Divisor(uint64_t d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }
  SLAF_INLINE uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>(uint64_t{multiplier} * n >> 32) + n) >> shift;
  }
  uint32_t multiplier = 1;
  int shift = 0;
};

struct Partition {
  int threads;                     // of a block
  uint32_t column_blocks, splits;  // blocks for different columns, and blocks that share the same columns
  Divisor by_column_blocks, by_run_splits, by_inner;
  int64_t columns, inner;                 // in all, and of a group; where runs are read: the groups, and 1
  int64_t length, outer;                  // items of a run, and runs of a group; of columns: their elements, and 1
  uint32_t share, run_splits;             // items of a block, of each column or of its group; blocks that share a run
  uint32_t runs;                          // whole runs of a block, where run_splits is 1
  Divisor run;                            // by `length`
  uint32_t carry;                         // items between two runs of a group
  uint32_t threads_across, threads_down;  // of a block, where columns are read
  int64_t pitch;                          // items of a matrix row, where columns are read
  int remainder;                          // elements after the last whole item

  int64_t blocks() const { return int64_t{column_blocks} * splits; }
};

// What a kernel needs of its partition.
struct Requirements {
  Access access;
  int width;        // elements of an item
  int unroll;       // items that a thread reads at once
  int64_t blocks;   // wanted, about
  int threads;      // of a block, at most
  int max_turns;    // times that a thread reads
  int coeff_bytes;  // of a column, in shared memory
  int sum_slots;    // sums of a column
};

constexpr int64_t offset_limit = int64_t{1} << 31;  // of an item, from the first of its block
constexpr int64_t column_bytes = 16 * 1024;         // of shared memory that the coefficients of columns may fill
constexpr int64_t sector_items = 4;                 // items of columns that memory moves at once

// `items` rounded up to whole turns of `threads` or, where they are less than a turn, to whole reads of all threads.
inline int64_t whole_turns(int64_t items, int64_t threads, int unroll) {
  const int64_t step = threads * unroll;
  return round_up(std::max<int64_t>(items, 1), items > step ? step : threads);
}

inline Partition partition_runs(const Layout& layout, const Requirements& need) {
  Partition p{};
  p.columns = layout.groups;
  p.column_blocks = static_cast<uint32_t>(layout.groups);
  p.inner = 1;
  p.outer = layout.outer;
  p.length = layout.inner / need.width;
  if (layout.groups == 1) {  // all runs are one
    p.remainder = static_cast<int>(layout.outer * layout.inner % need.width);
    p.length = layout.outer * layout.inner / need.width;
    p.outer = 1;
  }
  const int64_t items = p.outer * p.length;
  p.threads = static_cast<int>(std::clamp<int64_t>(round_up(items, 32), 32, need.threads));
  const int64_t step = int64_t{p.threads} * need.unroll, max_share = need.max_turns * step;
  const int64_t splits = std::max<int64_t>(1, need.blocks / layout.groups);
  int64_t share = std::min(whole_turns(ceil_div(items, splits), p.threads, need.unroll), max_share);
  if (p.length >= 2 * share || p.length > max_share) {  // a run has several blocks
    p.runs = 1;
    share = whole_turns(ceil_div(p.length, ceil_div(p.length, share)), p.threads, need.unroll);
    p.run_splits = static_cast<uint32_t>(ceil_div(p.length, share));
    p.run = Divisor(offset_limit);
  } else {  // a block has whole runs
    const int64_t length = std::max<int64_t>(p.length, 1), row = layout.groups * length;
    p.runs = static_cast<uint32_t>(std::clamp<int64_t>(std::min(share / length, offset_limit / row), 1, p.outer));
    share = p.runs * length;
    p.run_splits = 1;
    p.run = Divisor(length);
    p.carry = static_cast<uint32_t>(row - length);
  }
  p.share = static_cast<uint32_t>(share);
  p.splits = static_cast<uint32_t>(ceil_div(p.outer, p.runs) * p.run_splits);
  return p;
}

inline Partition partition_columns(const Layout& layout, const Requirements& need) {
  Partition p{};
  p.columns = layout.groups * layout.inner;
  p.inner = layout.inner;
  p.length = layout.outer;
  p.outer = p.runs = 1;
  p.pitch = p.columns / need.width;
  // Neighbouring columns share sectors of memory, but more than 64 threads across would only take from those down.
  const int64_t fitting = std::max<int64_t>(column_bytes / (need.coeff_bytes * need.width), 1);
  const int64_t widest =
      std::min({std::max<int64_t>(64, need.threads / p.length), fitting, int64_t{need.threads}, p.pitch});
  const int64_t threads_across = ceil_div(p.pitch, ceil_div(p.pitch, widest));
  p.threads_across = static_cast<uint32_t>(std::min(round_up(threads_across, sector_items), widest));
  p.threads_down = static_cast<uint32_t>(std::min(need.threads / p.threads_across, static_cast<uint32_t>(p.length)));
  p.threads = static_cast<int>(p.threads_across * p.threads_down);
  p.column_blocks = static_cast<uint32_t>(ceil_div(p.pitch, p.threads_across));
  int64_t splits = std::max<int64_t>(1, need.blocks / p.column_blocks);
  // Partial sums must stay few beside the elements that they are sums of.
  if (need.sum_slots > 0) splits = std::min(splits, std::max<int64_t>(1, p.length / (8 * need.sum_slots)));
  const int64_t step = int64_t{p.threads_down} * need.unroll;
  const int64_t share =
      std::min(whole_turns(ceil_div(p.length, splits), p.threads_down, need.unroll), need.max_turns * step);
  p.share = static_cast<uint32_t>(std::clamp<int64_t>(offset_limit / p.pitch, 1, share));
  p.splits = p.run_splits = static_cast<uint32_t>(ceil_div(p.length, p.share));
  return p;
}

// The partition of a layout that holds elements.
inline Partition partition(const Layout& layout, const Requirements& need) {
  Partition p = need.access == Access::runs ? partition_runs(layout, need) : partition_columns(layout, need);
  p.by_column_blocks = Divisor(p.column_blocks);
  p.by_run_splits = Divisor(p.run_splits);
  p.by_inner = Divisor(p.inner);
  return p;
}

}  // namespace slaf_ext::cuda
