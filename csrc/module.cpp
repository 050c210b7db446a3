// The Python module: what was built, and the derivative matrix. It knows nothing of torch; importing
// it runs the static initialisers that register the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "tables.h"

namespace {

using slaf_ext::cpu::Isa;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string instruction_set() {
  const Isa isa = slaf_ext::cpu::best_isa();
  return isa == Isa::avx512 ? "AVX-512" : isa == Isa::avx2 ? "AVX2 and FMA" : "baseline (128-bit vectors)";
}

std::vector<double> usable_derivative_matrix(const std::vector<double>& recurrence, double lo, double hi) {
  std::vector<slaf_ext::Row> rows;
  for (size_t i = 0; i + 2 < recurrence.size(); i += 3) {
    rows.push_back({recurrence[i], recurrence[i + 1], i == 0 ? 0.0 : recurrence[i + 2]});
  }
  return slaf_ext::usable_derivative_matrix(rows, lo, hi);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("compiler", &compiler, "The compiler that built this module.");
  m.def("instruction_set", &instruction_set, "The instruction set that the CPU kernels use on this machine.");
  m.def(
      "usable_derivative_matrix", &usable_derivative_matrix,
      "D, flat, for a flat recurrence A_0, B_0, C_0, A_1, ...: phi_k' = sum_j D[k][j] phi_j; empty where it would cost "
      "too many digits between lo and hi, or too much memory.");
}
