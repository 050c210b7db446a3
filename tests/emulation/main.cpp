// Runs the CUDA operators on the CPU: cases come in on the standard input and results go out on the standard
// output, in the order and the types of `Header`, `Input` and the functions that `main` calls.
#include "shim.h"
// The shim stands for CUDA's own headers, so it comes first.
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "fold.cuh"
#include "normalized.h"
#include "panel.cuh"
#include "slaf.h"

namespace {

using namespace slaf_ext;
using namespace slaf_ext::cuda;

// Few, so that they compile in seconds: degrees of one kernel, degrees that share one, and beyond 12 the long way.
struct SomeDegrees {
  using wide = DegreeList<1, 3, 4, 12>;
  using edged = DegreeList<3, 12>;
  using single = DegreeList<3, 12>;
};
struct FewDegrees {  // of the normalised form, which has three sweeps for each
  using wide = DegreeList<2, 5>;
  using edged = DegreeList<>;
  using single = DegreeList<5>;
};

template <typename T>
void get(T* to, size_t count) {
  if (std::fread(to, sizeof(T), count, stdin) != count) std::abort();
}
template <typename T>
void put(const T* from, size_t count) {
  std::fwrite(from, sizeof(T), count, stdout);
}

struct Header {
  int64_t storage, coeffs_storage, outer, groups, inner, degree, outside;
  int64_t has_grad_output, has_out, has_grad_coeffs;
  int64_t x_offset, grad_output_offset, out_offset;  // in elements, from an address that 16 divides
  int64_t multiprocessors, threads;
};

int64_t size_of(Storage s) { return s == Storage::double_precision ? 8 : s == Storage::single_precision ? 4 : 2; }

// Memory of just the size, so that AddressSanitizer knows its end.
class Memory {
 public:
  explicit Memory(int64_t bytes, int64_t offset = 0)
      : all_(static_cast<char*>(std::malloc(bytes + offset))), at_(all_ + offset) {
    std::memset(all_, 0x7f, bytes + offset);  // what nobody writes is a huge number in every type
  }
  Memory(Memory&& other) : all_(std::exchange(other.all_, nullptr)), at_(other.at_) {}
  ~Memory() { std::free(all_); }
  void* get() const { return at_; }

 private:
  char *all_, *at_;
};

struct Emulator {
  int multiprocessors_, threads_;
  int64_t launches = 0;
  std::vector<Memory> scratch;

  int multiprocessors() const { return multiprocessors_; }
  int threads() const { return threads_; }
  void* allocate(int64_t bytes) { return scratch.emplace_back(bytes).get(); }

  template <typename... Parameters, typename... Args>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, const Args&... args) {
    ++launches;
    shim::launch([&] { kernel(args...); }, blocks, threads, shared);
  }
};

// A case as it comes in, and memory for its results.
class Input {
 public:
  Input() : Input(get_one<Header>()) {}

  template <typename F>
  void run_on(const F& f) {
    Emulator device{static_cast<int>(header.multiprocessors), static_cast<int>(header.threads), 0, {}};
    dispatch_storage(static_cast<Storage>(header.storage), [&](auto s) { f(s, device); });
    put(&device.launches, 1);
  }
  void put_gradients() const {
    put(static_cast<const char*>(out_.get()), bytes_);
    put(static_cast<const char*>(grad_coeffs_.get()), coeffs_bytes_);
  }

  Header header;
  Problem problem{};

 private:
  template <typename T>
  static T get_one() {
    T t;
    get(&t, 1);
    return t;
  }
  explicit Input(const Header& h)
      : header(h),
        bytes_(h.outer * h.groups * h.inner * size_of(static_cast<Storage>(h.storage))),
        coeffs_bytes_(h.groups * (h.degree + 1) * size_of(static_cast<Storage>(h.coeffs_storage))),
        x_(bytes_, h.x_offset * size_of(static_cast<Storage>(h.storage))),
        grad_output_(bytes_, h.grad_output_offset * size_of(static_cast<Storage>(h.storage))),
        out_(bytes_, h.out_offset * size_of(static_cast<Storage>(h.storage))),
        coeffs_(coeffs_bytes_),
        grad_coeffs_(coeffs_bytes_) {
    Problem& p = problem;
    p.layout = {h.outer, h.groups, h.inner};
    p.outside = static_cast<Outside>(h.outside);
    p.type = static_cast<Storage>(h.storage);
    p.coeffs_type = static_cast<Storage>(h.coeffs_storage);
    for (double* t : {&p.center, &p.lo, &p.hi}) get(t, 1);
    p.rows.resize(h.degree);
    for (Row& row : p.rows) get(&row.a, 1), get(&row.b, 1), get(&row.c, 1);
    get(static_cast<char*>(x_.get()), bytes_);
    get(static_cast<char*>(grad_output_.get()), bytes_);
    get(static_cast<char*>(coeffs_.get()), coeffs_bytes_);
    p.x = x_.get();
    p.coeffs = coeffs_.get();
    if (h.has_grad_output) p.grad_output = grad_output_.get();
    if (h.has_out) p.out = out_.get();
    p.D = derivative_matrix(p.rows);
    if (h.has_grad_coeffs) p.grad_coeffs = grad_coeffs_.get();
  }

  int64_t bytes_, coeffs_bytes_;
  Memory x_, grad_output_, out_, coeffs_, grad_coeffs_;
};

void run_plain() {
  Input input;
  input.run_on([&](auto s, Emulator& device) {
    if (input.problem.grad_output != nullptr) {
      launch_backward<decltype(s), SomeDegrees>(input.problem, device);
    } else {
      launch_plain<false, decltype(s), SomeDegrees>(input.problem, device);
    }
  });
  input.put_gradients();
}

void run_walked_backward() {
  Input input;
  input.problem.D.clear();
  input.run_on([&](auto s, Emulator& device) { launch_backward<decltype(s), SomeDegrees>(input.problem, device); });
  input.put_gradients();
}

// The statistics of a case, as memory of just the size.
struct StatisticsOf {
  explicit StatisticsOf(const Input& input)
      : count(input.header.groups * input.header.degree), mean_memory(count * 8), variance_memory(count * 8) {}
  double* mean() const { return static_cast<double*>(mean_memory.get()); }
  double* variance() const { return static_cast<double*>(variance_memory.get()); }
  int64_t count;
  Memory mean_memory, variance_memory;
};

void run_moments() {
  Input input;
  const StatisticsOf statistics(input);
  input.run_on([&](auto s, Emulator& device) {
    launch_moments<decltype(s), FewDegrees>(input.problem, statistics.mean(), statistics.variance(), device);
  });
  put(statistics.mean(), statistics.count);
  put(statistics.variance(), statistics.count);
}

void run_normalized_backward() {
  Input input;
  const StatisticsOf statistics(input);
  double eps;
  get(&eps, 1);
  get(statistics.mean(), statistics.count);
  get(statistics.variance(), statistics.count);
  input.run_on([&](auto s, Emulator& device) {
    const Moments moments{statistics.mean(), statistics.variance(), eps};
    launch_normalized_backward<decltype(s), FewDegrees>(input.problem, moments, device);
  });
  input.put_gradients();
}

void run_fold() {
  int64_t coeffs_storage, groups, degree, in_double, threads;
  for (int64_t* t : {&coeffs_storage, &groups, &degree, &in_double, &threads}) get(t, 1);
  double eps, epsilon;
  for (double* t : {&eps, &epsilon}) get(t, 1);
  const auto type = static_cast<Storage>(coeffs_storage);
  const int64_t elements = groups * (degree + 1), coeffs_bytes = elements * size_of(type);
  const int64_t statistics_bytes = groups * degree * 8, bytes = elements * (in_double ? 8 : 4);
  const Memory coeffs(coeffs_bytes), mean(statistics_bytes), variance(statistics_bytes), folded(bytes);
  get(static_cast<char*>(coeffs.get()), coeffs_bytes);
  get(static_cast<char*>(mean.get()), statistics_bytes);
  get(static_cast<char*>(variance.get()), statistics_bytes);
  Emulator device{1, static_cast<int>(threads), 0, {}};
  const auto statistic = [](const Memory& m) { return static_cast<const double*>(m.get()); };
  const Moments moments{statistic(mean), statistic(variance), eps};
  const Fold f{coeffs.get(), type, moments, epsilon, groups, degree, folded.get(), in_double != 0};
  launch_fold(f, device);
  put(&device.launches, 1);
  put(static_cast<const char*>(folded.get()), bytes);
}

void run_panel() {
  int64_t storage, rows, columns, degree, outside, is_expansion, multiprocessors, threads;
  for (int64_t* t : {&storage, &rows, &columns, &degree, &outside, &is_expansion, &multiprocessors, &threads})
    get(t, 1);
  Panel p{};
  p.type = static_cast<Storage>(storage);
  p.rows = rows, p.columns = columns;
  p.outside = static_cast<Outside>(outside);
  for (double* t : {&p.center, &p.lo, &p.hi}) get(t, 1);
  p.recurrence.resize(degree);
  for (Row& row : p.recurrence) get(&row.a, 1), get(&row.b, 1), get(&row.c, 1);
  const int64_t x_bytes = rows * columns * size_of(p.type), terms_bytes = x_bytes * degree;
  const Memory x(x_bytes), terms(terms_bytes), grad_x(x_bytes);
  get(static_cast<char*>(x.get()), x_bytes);
  p.x = x.get();
  p.out = is_expansion ? terms.get() : grad_x.get();
  if (!is_expansion) {
    get(static_cast<char*>(terms.get()), terms_bytes);
    p.grad_terms = terms.get();
  }
  Emulator device{static_cast<int>(multiprocessors), static_cast<int>(threads), 0, {}};
  dispatch_storage(p.type, [&](auto s) {
    using S = decltype(s);
    is_expansion ? launch_panel<true, S>(p, device) : launch_panel<false, S>(p, device);
  });
  put(static_cast<const char*>(p.out), is_expansion ? terms_bytes : x_bytes);
}

// Follows the threads of a few blocks through a layout too large to fill, the last element's among them, and compares
// the places that they visit with those that division gives. Counts those that differ, and finds the farthest.
template <Access access>
void follow_threads(const Partition& p, const Layout& layout, int width, int64_t& wrong, int64_t& farthest) {
  for (const int64_t b : {int64_t{0}, p.blocks() / 2, p.blocks() - 1}) {
    blockIdx.x = static_cast<unsigned>(b);
    for (int t = 0; t < p.threads; ++t) {
      threadIdx.x = static_cast<unsigned>(t);
      const ThreadItems<access> at(p);
      const int64_t column = at.column + at.local, start = int64_t{at.split % p.run_splits} * p.share;
      const int64_t run = int64_t{at.split / p.run_splits} * p.runs;
      for (uint32_t i = at.first; i < at.count; i += at.stride) {
        const int64_t item = start + i;
        const int64_t expected = access == Access::columns
                                     ? item * p.pitch + column
                                     : ((run + item / p.length) * layout.groups + column) * p.length + item % p.length;
        const int64_t place = at.base + at.offset(i);
        wrong += place != expected || (place + 1) * width > layout.outer * layout.groups * layout.inner;
        farthest = std::max(farthest, (place + 1) * width - 1);
      }
    }
  }
}
void follow() {
  int64_t size[3], width, unroll, blocks, sum_rows;
  get(size, 3);
  for (int64_t* t : {&width, &unroll, &blocks, &sum_rows}) get(t, 1);
  const Layout layout{size[0], size[1], size[2]};
  const Access access = access_of(layout);
  const Requirements requirements{access, static_cast<int>(width),   static_cast<int>(unroll), blocks, max_threads, 512,
                                  36,     static_cast<int>(sum_rows)};
  const Partition p = partition(layout, requirements);
  int64_t wrong = 0, farthest = 0;
  if (access == Access::runs) {
    follow_threads<Access::runs>(p, layout, static_cast<int>(width), wrong, farthest);
  } else {
    follow_threads<Access::columns>(p, layout, static_cast<int>(width), wrong, farthest);
  }
  const int64_t result[] = {wrong, farthest + p.remainder, p.blocks()};
  put(result, 3);
}

}  // namespace

int main() {
  void (*const tasks[])() = {run_plain,           follow,   run_moments, run_normalized_backward,
                             run_walked_backward, run_fold, run_panel};
  int64_t what;
  while (std::fread(&what, sizeof(what), 1, stdin) == 1) {
    tasks[what]();
    std::fflush(stdout);
  }
}
