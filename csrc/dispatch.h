// Run-time values become template arguments here, by lambdas.
#pragma once

#include <type_traits>

namespace slaf_ext {

// The degrees that a kernel serves: those above `below` and up to `top`.
template <int below, int top>
struct Degrees {
  static constexpr int lowest = below + 1, highest = top;
};

// The degrees that have a kernel of their own, rising; the degrees between two of them share the upper one's.
template <int... tops>
struct DegreeList {};

// Calls f(Degrees<...>{}) for the range that holds `degree`, if there is one.
template <int below = -1, typename F>
void dispatch_degree(int, DegreeList<>, const F&) {}
template <int below = -1, typename F, int top, int... more>
void dispatch_degree(int degree, DegreeList<top, more...>, const F& f) {
  if (degree > top) return dispatch_degree<top>(degree, DegreeList<more...>{}, f);
  f(Degrees<below, top>{});
}

}  // namespace slaf_ext
