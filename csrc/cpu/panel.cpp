// Panels of the layer with a polynomial on every edge, on the CPU.
#include "../panel.h"

#include "../operators.h"
#include "isa.h"
#include "vector.h"

namespace slaf_ext::cpu {
namespace {

// The first `lanes` elements of a vector.
template <int bytes, typename S>
SLAF_INLINE Vector<compute_t<S>, bytes> load_first(const S* from, int64_t lanes) {
  constexpr int64_t W = bytes / sizeof(compute_t<S>);
  if (lanes >= W) return load<bytes>(from);
  S padded[W] = {};
  std::copy_n(from, lanes, padded);
  return load<bytes>(padded);
}
template <int bytes, typename S>
SLAF_INLINE void store_first(S* to, int64_t lanes, const Vector<compute_t<S>, bytes>& v) {
  constexpr int64_t W = bytes / sizeof(compute_t<S>);
  if (lanes >= W) return store<bytes>(to, v);
  S padded[W];
  store<bytes>(padded, v);
  std::copy_n(padded, lanes, to);
}

struct ExpandBody {
  template <int bytes, typename S, typename T>
  SLAF_INLINE static void run(const Panel& p, const Terms<T>& terms, int64_t begin, int64_t end) {
    constexpr int64_t W = bytes / sizeof(T);
    for (int64_t r = begin; r < end; ++r) {
      const S* const x = static_cast<const S*>(p.x) + r * p.columns;
      S* const to = static_cast<S*>(p.out) + r * p.columns * terms.degree;
      for (int64_t i = 0; i < p.columns; i += W) {
        const int64_t lanes = p.columns - i;
        terms.expand(load_first<bytes>(x + i, lanes),
                     [&](int k, const Vector<T, bytes>& phi) __attribute__((always_inline)) {
                       store_first<bytes>(to + (k - 1) * p.columns + i, lanes, phi);
                     });
      }
    }
  }
};

struct ContractBody {
  template <int bytes, typename S, typename T>
  SLAF_INLINE static void run(const Panel& p, const Terms<T>& terms, int64_t begin, int64_t end) {
    constexpr int64_t W = bytes / sizeof(T);
    for (int64_t r = begin; r < end; ++r) {
      const S* const x = static_cast<const S*>(p.x) + r * p.columns;
      const S* const from = static_cast<const S*>(p.grad_terms) + r * p.columns * terms.degree;
      S* const to = static_cast<S*>(p.out) + r * p.columns;
      for (int64_t i = 0; i < p.columns; i += W) {
        const int64_t lanes = p.columns - i;
        const auto load_term = [&](int k) __attribute__((always_inline)) {
          return load_first<bytes>(from + (k - 1) * p.columns + i, lanes);
        };
        store_first<bytes>(to + i, lanes, terms.contract(load_first<bytes>(x + i, lanes), load_term));
      }
    }
  }
};

template <typename Body, typename S>
struct Typed {
  template <int bytes, typename... A>
  SLAF_INLINE static void run(A&... a) {
    Body::template run<bytes, S>(a...);
  }
};

template <typename Body>
void run_panel(const Panel& p, const Tensor&) {
  dispatch_storage(p.type, [&](auto s) {
    using S = decltype(s);
    using T = compute_t<S>;
    std::vector<T> a, b, c;
    for (const Row& row : p.recurrence) {
      a.push_back(static_cast<T>(row.a));
      b.push_back(static_cast<T>(row.b));
      c.push_back(static_cast<T>(row.c));
    }
    const Terms<T> terms = p.terms(a.data(), b.data(), c.data());
    const auto run =
        compiled_for<Typed<Body, S>, void (*)(const Panel&, const Terms<T>&, int64_t, int64_t)>(best_isa());
    constexpr int64_t thread_terms = 32768;  // fewer are not worth another thread
    torch::stable::parallel_for(0, p.rows, std::max<int64_t>(1, thread_terms / (p.degree() * p.columns)),
                                [&](int64_t begin, int64_t end) { run(p, terms, begin, end); });
  });
}

}  // namespace
}  // namespace slaf_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(slaf_ext, CPU, m) {
  slaf_ext::PanelForm<&slaf_ext::cpu::run_panel<slaf_ext::cpu::ExpandBody>,
                      &slaf_ext::cpu::run_panel<slaf_ext::cpu::ContractBody>>::register_in(m);
}
