// Each backend's library holds a copy of this.
#include "arguments.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

namespace slaf_ext {
namespace {

// As C writes it: 1e-39, nan. No stream, as one that formatted a number crashed on a machine with a GPU.
std::string text_of(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  return text;
}
std::string text_of(int64_t number) { return std::to_string(number); }
std::string text_of(size_t number) { return std::to_string(number); }
const char* text_of(const char* text) { return text; }
const std::string& text_of(const std::string& text) { return text; }

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string sentence;
  ((sentence += text_of(parts)), ...);
  throw std::invalid_argument(sentence);
}

std::string shape_of(const int64_t* sizes, int64_t ndim) {
  std::string text = "(";
  for (int64_t d = 0; d < ndim; ++d) text += (d ? ", " : "") + text_of(sizes[d]);
  return text + (ndim == 1 ? ",)" : ")");
}
std::string shape_of(const Tensor& t) { return shape_of(t.sizes().data(), t.dim()); }

std::string device_of(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "device:") + text_of(int64_t{t.get_device_index()});
}

// As Python writes it: 1.0, not 1.
std::string as_float(double number) {
  const std::string text = text_of(number);
  const bool whole = text.find_first_not_of("-0123456789") == std::string::npos;
  return text + (whole ? ".0" : "");
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

bool is_16_bit(ScalarType t) { return t == ScalarType::Half || t == ScalarType::BFloat16; }

Storage storage_of(ScalarType t) {
  switch (t) {
    case ScalarType::Half: return Storage::half;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Float: return Storage::single_precision;
    default: return Storage::double_precision;
  }
}

bool is_supported(ScalarType t) { return is_16_bit(t) || t == ScalarType::Float || t == ScalarType::Double; }

// As PyTorch spells it in Python.
std::string name_of(ScalarType t) {
  switch (t) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: break;
  }
  std::string name = torch::headeronly::toString(t);
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

// The dtype of a tensor; torch's own conversion throws where it is unusual.
ScalarType type_of(const Tensor& t, const char* name) {
  if (!t.defined()) fail(name, " is None; it must be a tensor");
  try {
    return t.scalar_type();
  } catch (const std::exception&) {
    fail(name, " has a dtype that slaf does not know; slaf needs float16, bfloat16, float32 or float64");
  }
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t ndim, const Tensor& like, ScalarType dtype) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  const auto status =
      aoti_torch_empty_strided(ndim, sizes, strides, type, device_type, like.get_device_index(), &handle);
  if (status != TORCH_SUCCESS)
    throw std::runtime_error("out of memory: torch could not allocate " + name_of(dtype) + " of shape " +
                             shape_of(sizes, ndim) + " on " + device_of(like) + "; take a smaller batch");
  return Tensor(handle);
}

void check_shape(const Tensor& coeffs) {
  if (!((coeffs.dim() == 1 || coeffs.dim() == 2) && coeffs.size(coeffs.dim() - 1) > 0 && coeffs.size(0) > 0))
    fail("coeffs have shape ", shape_of(coeffs),
         "; they must be (K,) or (G, K) with G and K at least 1, K = degree + 1");
}

void check_tensors(const Tensor& x, const Tensor& coeffs) {
  const ScalarType x_type = type_of(x, "x"), coeffs_type = type_of(coeffs, "coeffs");
  if (!is_supported(x_type)) fail("x is ", name_of(x_type), "; slaf needs float16, bfloat16, float32 or float64");
  if (!(coeffs_type == x_type || (is_16_bit(x_type) && coeffs_type == ScalarType::Float)))
    fail("coeffs are ", name_of(coeffs_type), " and x is ", name_of(x_type),
         "; convert one: coeffs must have x's dtype", is_16_bit(x_type) ? " or be float32" : "");
  if (!same_device(x, coeffs))
    fail("coeffs are on ", device_of(coeffs), " and x is on ", device_of(x), "; move one to the other's device");
  check_shape(coeffs);
}

std::vector<Row> check_recurrence(const std::vector<double>& flat, int64_t K) {
  if (static_cast<int64_t>(flat.size()) != 3 * (K - 1))
    fail("the recurrence holds ", flat.size(), " numbers and coeffs have K = ", K,
         " columns; it must hold A, B, C for each k < K - 1, ", 3 * (K - 1), " numbers");
  std::vector<Row> rows;
  rows.reserve(flat.size() / 3);
  for (size_t i = 0; i < flat.size(); i += 3) {
    const Row row{flat[i], flat[i + 1], i == 0 ? 0.0 : flat[i + 2]};
    if (!(std::isfinite(row.a) && std::isfinite(row.b) && std::isfinite(row.c) && row.a != 0.0))
      fail("row ", i / 3, " of the recurrence is (", as_float(row.a), ", ", as_float(row.b), ", ", as_float(row.c),
           "); all three must be finite and A not zero");
    rows.push_back(row);
  }
  return rows;
}

// float32, in which all but float64 is computed, must hold what maps x onto the basis.
void check_float32(const std::vector<Row>& rows, double center, double lo, double hi) {
  constexpr double smallest = std::numeric_limits<float>::min(), largest = std::numeric_limits<float>::max();
  const bool is_resolved = hi - lo > 0x1p-24 * std::max(std::abs(lo), std::abs(hi)) && lo < largest && hi > -largest;
  if (!(is_resolved && std::abs(center) <= largest))
    fail("domain is (", as_float(lo), ", ", as_float(hi),
         "), which float32 does not resolve; convert x and coeffs to float64");
  for (size_t k = 0; k < rows.size(); ++k) {
    const auto [a, b, c] = rows[k];
    if (!(std::abs(a) >= smallest && std::abs(a) <= largest && std::abs(b) <= largest && std::abs(c) <= largest))
      fail("row ", k, " of the recurrence is (", as_float(a), ", ", as_float(b), ", ", as_float(c),
           "), with the map from the domain (", as_float(lo), ", ", as_float(hi),
           ") in it, which float32 does not hold; widen the domain, or convert x and coeffs to float64");
  }
}

Outside check_outside(int64_t outside) {
  if (outside < 0 || outside > 3)
    fail("outside is ", outside, "; it must be 0 (extrapolate), 1 (zero), 2 (clamp) or 3 (linear)");
  return static_cast<Outside>(outside);
}

// Checks where the recurrence is walked, in a compute type that holds it.
void check_window(const std::vector<Row>& rows, const Spec& spec, ScalarType type) {
  const double lo = spec.lo, hi = spec.hi;
  if (!(lo < hi && std::isfinite(lo) && std::isfinite(hi)))
    fail("domain is (", as_float(lo), ", ", as_float(hi), "); it needs finite ends with lo < hi");
  if (!std::isfinite(spec.center)) fail("center is ", spec.center, "; it must be finite");
  if (type != ScalarType::Double) check_float32(rows, spec.center, lo, hi);
}

// `dim` counted from 0; it matters only where coeffs have a row a group.
int64_t check_dim(const Tensor& x, const Tensor& coeffs, int64_t dim) {
  if (coeffs.dim() == 1) return 0;
  const int64_t ndim = x.dim(), groups = coeffs.size(0);
  if (dim < -ndim || dim >= ndim)
    fail("dim is ", dim, " and x has ", ndim, " dimensions, shape ", shape_of(x),
         "; dim must name one of them, or coeffs be of shape (K,)");
  if (dim < 0) dim += ndim;
  if (x.size(dim) % groups != 0)
    fail("coeffs have G = ", groups, " rows and x, of shape ", shape_of(x), ", has size ", x.size(dim), " along dim ",
         dim, "; that must be a multiple of G");
  return dim;
}

}  // namespace

Spec unpacked(const Tensor& packed) {
  const ScalarType type = type_of(packed, "the spec");
  if (!packed.is_cpu() || type != ScalarType::Double || !packed.is_contiguous() || packed.dim() != 1 ||
      packed.numel() < 5)
    fail("the spec is ", name_of(type), " of shape ", shape_of(packed), " on ", device_of(packed),
         "; it must be contiguous, float64, on the CPU: dim, center, lo, hi, outside and the recurrence");
  const auto* from = static_cast<const double*>(packed.const_data_ptr());
  const auto integer = [](const char* name, double value) {
    if (!(std::abs(value) < 0x1p63 && std::trunc(value) == value))
      fail(name, " is ", value, "; it must be an integer of 64 bits");
    return static_cast<int64_t>(value);
  };
  return {{from + 5, from + packed.numel()}, integer("dim", from[0]), from[1], from[2], from[3],
          integer("outside", from[4])};
}

Arguments::Arguments(const Tensor& x_, const Tensor& coeffs_, const Spec& spec) : x(x_), coeffs(coeffs_) {
  check_tensors(x, coeffs);
  Problem& p = problem;
  p.rows = check_recurrence(spec.recurrence, coeffs.size(coeffs.dim() - 1));
  const int64_t dim = check_dim(x, coeffs, spec.dim);
  check_window(p.rows, spec, x.scalar_type());
  p.center = spec.center, p.lo = spec.lo, p.hi = spec.hi;
  p.outside = check_outside(spec.outside);
  if (!coeffs.is_contiguous()) coeffs = torch::stable::contiguous(coeffs);
  p.coeffs = coeffs.const_data_ptr();
  p.coeffs_type = storage_of(coeffs.scalar_type());
  p.type = storage_of(x.scalar_type());
  p.layout = {1, coeffs.dim() == 2 ? coeffs.size(0) : 1, 0};
  if (x.numel() == 0) return;
  if (!x.is_contiguous() && !is_dense(x.sizes().data(), x.strides().data(), x.dim())) x = torch::stable::clone(x);
  p.x = x.const_data_ptr();
  p.layout = layout_of(x.sizes().data(), x.strides().data(), x.dim(), x.numel(), dim, p.layout.groups);
}

void Arguments::check_normalized() const {
  if (problem.outside != Outside::extrapolate && problem.outside != Outside::clamp)
    fail("outside is ", static_cast<int64_t>(problem.outside),
         "; the fused normalised form knows 0 (extrapolate) and 2 (clamp) alone");
  if (x.numel() == 0) fail("x has shape ", shape_of(x), ", no elements, and so no moments");
}

Tensor Arguments::empty_like_x() const {
  return empty_strided(x.sizes().data(), x.strides().data(), x.dim(), x, x.scalar_type());
}

std::tuple<Tensor, Tensor> Arguments::empty_gradients(bool need_x, bool need_coeffs) const {
  const auto sizes = coeffs.sizes();
  return {need_x ? empty_like_x() : empty({0}, x, x.scalar_type()),
          empty(need_coeffs ? std::vector<int64_t>(sizes.begin(), sizes.end()) : std::vector<int64_t>{0}, coeffs,
                coeffs.scalar_type())};
}

Tensor Arguments::lay_like_x(const Tensor& grad_output) const {
  const ScalarType type = type_of(grad_output, "grad_output");
  if (!same_sizes(grad_output, x))
    fail("grad_output has shape ", shape_of(grad_output), " and x has shape ", shape_of(x), "; they must be equal");
  if (type != x.scalar_type())
    fail("grad_output is ", name_of(type), " and x is ", name_of(x.scalar_type()), "; they must be equal");
  if (!same_device(grad_output, x))
    fail("grad_output is on ", device_of(grad_output), " and x is on ", device_of(x),
         "; move one to the other's device");
  if (same_strides(grad_output, x)) return grad_output;
  Tensor copy = empty_like_x();
  torch::stable::copy_(copy, grad_output);
  return copy;
}

Tensor check_coeffs(const Tensor& coeffs) {
  const ScalarType type = type_of(coeffs, "coeffs");
  if (!is_supported(type)) fail("coeffs are ", name_of(type), "; slaf needs float16, bfloat16, float32 or float64");
  check_shape(coeffs);
  return coeffs.is_contiguous() ? coeffs : torch::stable::contiguous(coeffs);
}

namespace {

std::vector<int64_t> statistics_sizes(const Tensor& coeffs) {
  std::vector<int64_t> sizes(coeffs.sizes().begin(), coeffs.sizes().end());
  sizes.back() -= 1;
  return sizes;
}

const double* check_statistics(const Tensor& statistics, const char* name, const Tensor& coeffs) {
  const auto sizes = statistics_sizes(coeffs);
  const ScalarType type = type_of(statistics, name);
  if (type != ScalarType::Double || !statistics.is_contiguous() || !same_device(statistics, coeffs) ||
      !std::equal(statistics.sizes().begin(), statistics.sizes().end(), sizes.begin(), sizes.end()))
    fail("the ", name, " is ", name_of(type), " of shape ", shape_of(statistics), " on ", device_of(statistics),
         "; it must be what slaf_moments returns: contiguous, float64, on ", device_of(coeffs),
         ", of the shape of coeffs, ", shape_of(coeffs), ", without its first column");
  return static_cast<const double*>(statistics.const_data_ptr());
}

}  // namespace

Tensor empty_statistics(const Tensor& coeffs) { return empty(statistics_sizes(coeffs), coeffs, ScalarType::Double); }

Moments check_moments(const Tensor& mean, const Tensor& variance, double eps, const Tensor& coeffs) {
  const Moments moments{check_statistics(mean, "mean", coeffs), check_statistics(variance, "variance", coeffs), eps};
  if (!(eps > 0 && std::isfinite(eps))) fail("eps is ", eps, "; it must be a finite number greater than 0");
  return moments;
}

std::tuple<Fold, Tensor> folding_of(const Tensor& coeffs, const Tensor& mean, const Tensor& variance, double eps,
                                    bool in_double) {
  const ScalarType type = coeffs.scalar_type();
  const auto sizes = coeffs.sizes();
  const Tensor folded = empty({sizes.begin(), sizes.end()}, coeffs, in_double ? ScalarType::Double : ScalarType::Float);
  Fold f{};
  f.coeffs = coeffs.const_data_ptr();
  f.coeffs_type = storage_of(type);
  f.moments = check_moments(mean, variance, eps, coeffs);
  f.epsilon =
      type == ScalarType::Double ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  f.degree = coeffs.size(coeffs.dim() - 1) - 1;
  f.groups = coeffs.numel() / (f.degree + 1);
  f.folded = folded.mutable_data_ptr();
  f.in_double = in_double;
  return {f, folded};
}

Panel check_panel(const Tensor& x, const Spec& spec, const Tensor& terms, const char* name) {
  const ScalarType type = type_of(x, "x");
  if (!is_supported(type)) fail("x is ", name_of(type), "; slaf needs float16, bfloat16, float32 or float64");
  if (x.dim() != 2 || !x.is_contiguous())
    fail("x has shape ", shape_of(x), "; a panel is contiguous, of shape (rows, columns)");
  if (terms.dim() != 3 || !terms.is_contiguous() || terms.size(0) != x.size(0) || terms.size(1) < 1 ||
      terms.size(2) != x.size(1) || type_of(terms, name) != type || !same_device(terms, x))
    fail(name, " are ", name_of(type_of(terms, name)), " of shape ", shape_of(terms), " on ", device_of(terms),
         " and x is ", name_of(type), " of shape ", shape_of(x), " on ", device_of(x),
         "; they must be contiguous, of shape (rows, degree, columns), with the dtype and device of x");
  const std::vector<Row> rows = check_recurrence(spec.recurrence, terms.size(1) + 1);
  check_window(rows, spec, type);
  const Outside outside = check_outside(spec.outside);
  if (outside == Outside::zero) fail("outside is 1 (zero); a panel knows 0 (extrapolate), 2 (clamp) and 3 (linear)");
  return {x.const_data_ptr(), nullptr, nullptr, storage_of(type), x.size(0), x.size(1), rows,
          spec.center,        spec.lo, spec.hi, outside};
}

void check_like(const Tensor& t, const char* name, const Tensor& other) {
  if (!same_sizes(t, other) || !t.is_contiguous() || type_of(t, name) != other.scalar_type() || !same_device(t, other))
    fail(name, " is ", name_of(type_of(t, name)), " of shape ", shape_of(t), " on ", device_of(t),
         "; it must be contiguous, ", name_of(other.scalar_type()), " of shape ", shape_of(other), " on ",
         device_of(other));
}

Tensor as_double(const Tensor& t) {
  Tensor copy = empty_strided(t.sizes().data(), t.strides().data(), t.dim(), t, ScalarType::Double);
  torch::stable::copy_(copy, t);
  return copy;
}

Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  return empty_strided(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), like, dtype);
}

}  // namespace slaf_ext
