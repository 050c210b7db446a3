// Run-time values become template arguments here, by lambdas.
#pragma once

#include <type_traits>
#include <utility>

namespace slaf_ext {

// The degrees that a kernel serves: those above `below` and up to `top`.
template <int below, int top>
struct Degrees {
  static constexpr int lowest = below + 1, highest = top;
};

// The degrees that have a kernel of their own, rising; those between two of them share the upper one.
template <int... tops>
struct DegreeList {};

// Calls f(Degrees<...>{}) for the range that holds `degree`; false where every range lies below it.
template <int below = -1, typename F>
bool dispatch_degree(int, DegreeList<>, const F&) {
  return false;
}
template <int below = -1, typename F, int top, int... more>
bool dispatch_degree(int degree, DegreeList<top, more...>, const F& f) {
  if (degree > top) return dispatch_degree<top>(degree, DegreeList<more...>{}, f);
  f(Degrees<below, top>{});
  return true;
}

// Calls f with std::true_type or std::false_type.
template <typename F>
void dispatch_bool(bool value, const F& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace slaf_ext
