"""The tensors and options that the operators accept, and the error messages for those that they refuse."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import slaf_ext
from slaf_ext import bases
from slaf_ext.arguments import spec
from slaf_ext.functional import normalized_slaf

OPS = torch.ops.slaf_ext


X, A = torch.randn(3, 4), torch.randn(3)
WRONG = {
    "integer x": ((X.long(), A), {}, "x is int64; slaf needs float16"),
    "complex x": ((X.to(torch.complex64), A), {}, "x is complex64; slaf needs"),
    "boolean x": ((X > 0, A), {}, "x is bool; slaf needs"),
    "x of eight bits": ((X.to(torch.float8_e4m3fn), A), {}, "x is float8_e4m3fn; slaf needs"),
    "other dtype": ((X.double(), A), {}, "coeffs are float32 and x is float64; convert one"),
    "half coeffs": ((X, A.half()), {}, "coeffs are float16 and x is float32; convert one"),
    "K of none": ((X, A[:0]), {}, r"coeffs have shape \(0,\); .* K = degree \+ 1"),
    "G of none": ((X, torch.randn(0, 3)), {}, r"coeffs have shape \(0, 3\)"),
    "coeffs 0-dim": ((X, torch.tensor(1.0)), {}, r"coeffs have shape \(\)"),
    "coeffs 3-dim": ((X, torch.randn(1, 2, 3)), {}, r"coeffs have shape \(1, 2, 3\)"),
    "G that does not fit": (
        (X, torch.randn(3, 3)),
        {},
        r"coeffs have G = 3 rows and x, of shape \(3, 4\), has size 4 along dim 1",
    ),
    "dim too large": ((X, torch.randn(2, 3)), {"dim": 2}, "dim is 2 and x has 2 dimensions"),
    "dim too small": ((X, torch.randn(2, 3)), {"dim": -3}, "dim is -3 and x has 2 dimensions"),
    "no dim": ((X[0, 0], torch.randn(2, 3)), {"dim": 0}, "dim is 0 and x has 0 dimensions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_same_sentence_from_the_function_the_operators_and_the_definition(case):
    (x, coeffs), options, sentence = WRONG[case]
    degree = max(coeffs.shape[-1] - 1, 0) if coeffs.dim() else 2
    arguments = spec(torch.zeros(degree + 1), "chebyshev", options.get("dim", 1), None, "extrapolate")
    for call in (
        lambda: slaf_ext.slaf(x, coeffs, **options),
        lambda: slaf_ext.reference.slaf(x, coeffs, **options),
        lambda: OPS.slaf(x, coeffs, *arguments),
        lambda: OPS.slaf_backward(x, x, coeffs, *arguments, True, True),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    # Meta tensors are checked by the fake implementations instead of the kernels.
    x, coeffs = x.to("meta"), coeffs.to("meta")
    for call in (
        lambda: slaf_ext.slaf(x, coeffs, **options),
        lambda: slaf_ext.slaf(x, coeffs.requires_grad_(coeffs.is_floating_point()), **options),
        lambda: OPS.slaf_backward(x, x, coeffs, *arguments, True, True),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.cpu("memory is limited by the process")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from Linux's /proc")
def test_no_memory_for_a_result_is_said():
    code = """if True:
        import resource, torch, slaf_ext
        x, coeffs = torch.empty(2**28), torch.ones(3)
        slaf_ext.slaf(x[:9], coeffs)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        slaf_ext.slaf(x, coeffs)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: out of memory: torch could not allocate float32 of shape (268435456,) on cpu; "
        "take a smaller batch"
    )


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # raised by torch for its beta layouts
@pytest.mark.parametrize(
    "layout",
    [
        torch.sparse_coo,
        torch.sparse_csr,
        pytest.param(torch._mkldnn, marks=pytest.mark.cpu("mkldnn's layout is the CPU's")),
        "nested",
    ],
)
def test_layouts_without_strides(layout):
    x = torch.nested.nested_tensor([X[0], X[1]]) if layout == "nested" else X.detach()
    x = x.to_mkldnn() if layout is torch._mkldnn else x.to_sparse(layout=layout) if layout != "nested" else x
    arguments, statistics = spec(A, "chebyshev", 1, None, "extrapolate"), torch.zeros(2, dtype=torch.float64)
    kind = str(layout).removeprefix("torch.")
    calls = {
        "x": [
            lambda: slaf_ext.slaf(x, A),
            lambda: slaf_ext.reference.slaf(x, A),
            lambda: slaf_ext.basis_values(x, 2),
            lambda: normalized_slaf(x, A),
            lambda: slaf_ext.SLAF(2, normalize=True)(x),
            lambda: OPS.slaf(x, A, *arguments),
            lambda: OPS._slaf(x, A, arguments.packed),
            lambda: OPS.slaf_backward(X, x, A, *arguments, True, True),
            lambda: OPS.slaf_moments(x, A, *arguments),
            lambda: OPS.slaf_normalized_backward(X, x, A, statistics, statistics, *arguments, 1e-5, True),
        ],
        "grad_output": [
            lambda: OPS.slaf_backward(x, X, A, *arguments, True, True),
            lambda: OPS.slaf_normalized_backward(x, X, A, statistics, statistics, *arguments, 1e-5, True),
        ],
        "coeffs": [
            lambda: slaf_ext.slaf(X, x),
            lambda: normalized_slaf(X, x),
            lambda: OPS.slaf(X, x, *arguments),
            lambda: OPS.slaf_fold(x, statistics, statistics, 1e-5, True),
        ],
        "mean": [
            lambda: OPS.slaf_normalized_backward(X, X, A, x, statistics, *arguments, 1e-5, True),
            lambda: OPS.slaf_fold(A, x, statistics, 1e-5, True),
        ],
    }
    for name, group in calls.items():
        for call in group:
            with pytest.raises(ValueError, match=rf"{name} (is|are) {kind}; slaf needs a dense tensor"):
                call()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # raised by torch for its prototypes
def test_jagged_tensors():
    """A jagged tensor takes one polynomial, elementwise as in relu, but not one for each group."""
    parts = [torch.randn(n, 4) for n in (3, 1, 5)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    module = slaf_ext.SLAF(3, init="noisy_identity")
    y = module(x)
    for one, part in zip(y.unbind(), parts, strict=True):
        assert torch.equal(one, module(part))
    z = (y + x.relu()).values()  # needs the same ragged dimension in both
    z.sum().backward()
    leaf = torch.cat(parts).requires_grad_()
    coeffs_gradient, module.coeffs.grad = module.coeffs.grad, None
    (module(leaf) + leaf.relu()).sum().backward()
    torch.testing.assert_close(x.grad.values(), leaf.grad)
    torch.testing.assert_close(coeffs_gradient, module.coeffs.grad)
    transposed = x.detach().transpose(1, 2)
    torch.testing.assert_close(module(transposed).transpose(1, 2).values(), y.values())
    with pytest.raises(ValueError, match=r"x is a jagged nested tensor and coeffs have shape \(4, 3\); .* \(K,\)"):
        slaf_ext.slaf(x, torch.randn(4, 3), dim=-1)
    for call in (lambda: normalized_slaf(x, A), lambda: slaf_ext.SLAF(2, normalize=True)(x)):
        with pytest.raises(ValueError, match="x is nested; slaf needs a dense tensor"):
            call()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "uint4", "uint16"])
def test_dtypes_that_are_not_served(name):
    dtype = getattr(torch, name)
    if name == "uint4":
        x = torch.empty(3, 4, dtype=dtype)
    else:
        x = torch.zeros(3, 4 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    arguments, statistics = spec(A, "chebyshev", 1, None, "extrapolate"), torch.zeros(2, dtype=torch.float64)
    for call in (
        lambda: slaf_ext.slaf(x, A),
        lambda: normalized_slaf(x, A),
        lambda: slaf_ext.basis_values(x, 2),
        lambda: slaf_ext.slaf(X, x.view(-1)),
        lambda: OPS.slaf(x, A, *arguments),
        lambda: OPS._slaf(x, A, arguments.packed),
        lambda: OPS._slaf(X, A, x),
        lambda: OPS.slaf_backward(x, X, A, *arguments, True, True),
        lambda: OPS.slaf_moments(x, A, *arguments),
        lambda: OPS.slaf_normalized_backward(X, X, A, x, statistics, *arguments, 1e-5, True),
        lambda: OPS.slaf_fold(x.view(-1), statistics, statistics, 1e-5, True),
        lambda: OPS.slaf_fold(A, x, statistics, 1e-5, True),
    ):
        with pytest.raises(ValueError, match=r"(x|coeffs|grad_output|the spec|mean) (is|are|has) "):
            call()


def test_none_in_place_of_a_tensor():
    arguments, statistics = spec(A, "chebyshev", 1, None, "extrapolate"), torch.zeros(2, dtype=torch.float64)
    for call in (
        lambda: OPS._slaf(None, A, arguments.packed),
        lambda: OPS._slaf(X, None, arguments.packed),
        lambda: OPS._slaf(X, A, None),
        lambda: OPS._slaf_backward(None, X, A, arguments.packed, True, True),
        lambda: OPS.slaf_moments(None, A, *arguments),
        lambda: OPS.slaf_normalized_backward(None, X, A, statistics, statistics, *arguments, 1e-5, True),
        lambda: OPS.slaf_normalized_backward(X, X, A, None, statistics, *arguments, 1e-5, True),
        lambda: OPS.slaf_normalized_backward(X, X, A, statistics, None, *arguments, 1e-5, True),
        lambda: OPS.slaf_fold(None, statistics, statistics, 1e-5, True),
        lambda: OPS.slaf_fold(A, None, statistics, 1e-5, True),
        lambda: OPS.slaf_fold(A, statistics, None, 1e-5, True),
    ):
        with pytest.raises(ValueError, match=r"(x|coeffs|grad_output|the spec|mean|variance) is None; it must be"):
            call()
    for call in (lambda: slaf_ext.SLAF(2, normalize=True)(None), lambda: normalized_slaf(None, A)):
        with pytest.raises(TypeError, match="x is a NoneType; it must be a tensor"):
            call()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"basis": "cheb"}, "unknown basis 'cheb'; the named ones are monomial, "),
        ({"domain": (1, 1)}, r"domain is \(1.0, 1.0\); it needs finite ends with lo < hi"),
        ({"domain": (0, float("inf"))}, r"domain is \(0.0, inf\)"),
        ({"domain": 3}, "domain is 3; it must be a pair"),
        ({"domain": (A, A)}, r"domain is \(tensor.*; it must be a pair"),
        ({"domain": (-torch.ones((), requires_grad=True), 1)}, "which requires a gradient and would get none"),
        ({"outside": ["clamp"]}, r"outside is \['clamp'\]; it must be one of"),
        ({"outside": "wrap"}, "outside is 'wrap'; it must be one of 'extrapolate', 'clamp', 'linear'"),
        ({"basis": bases.Basis("short", [(1, 0, 0)])}, "'short' has a recurrence table of length 1"),
    ],
)
def test_wrong_options(options, sentence):
    for f in (slaf_ext.slaf, slaf_ext.reference.slaf):
        with pytest.raises(ValueError, match=sentence):
            f(X, A, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({2: [1.0, 0.0]}, "the recurrence holds 2 numbers and coeffs have K = 3 columns; .* 6 numbers"),
        ({2: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]}, "row 1 of the recurrence is .* A not zero"),
        ({2: [1.0, float("nan"), 0.0, 1.0, 0.0, 0.0]}, "row 0 of the recurrence is .* finite"),
        ({5: 1.0, 6: 1.0}, r"domain is \(1.0, 1.0\); it needs finite ends with lo < hi"),
        ({5: -0.125, 6: float("inf")}, r"domain is \(-0.125, inf\); it needs finite ends with lo < hi"),
        ({4: float("nan")}, "center is nan; it must be finite"),
        ({7: 4}, r"outside is 4; it must be 0 \(extrapolate\)"),
    ],
)
def test_wrong_operator_arguments(change, sentence):
    arguments = [X, A, *spec(A, "chebyshev", 1, None, "extrapolate")]
    for index, value in change.items():
        arguments[index] = value
    x, *rest = arguments
    for call in (
        lambda: OPS.slaf(x, *rest),
        lambda: OPS.slaf(x.to("meta"), rest[0].to("meta"), *rest[1:]),
        lambda: torch.func.vmap(lambda row: OPS.slaf(row, *rest))(x),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_a_domain_is_read_at_the_call():
    lo, hi = torch.tensor(-1.0), np.array(1.0)
    before = slaf_ext.slaf(X, A, domain=(lo, hi))
    torch.testing.assert_close(before, slaf_ext.slaf(X, A, domain=(-1, 1)))
    lo.fill_(-5)
    hi.fill(5)
    for domain in ((lo, hi), [lo, hi], torch.tensor([-5.0, 5.0])):
        torch.testing.assert_close(slaf_ext.slaf(X, A, domain=domain), slaf_ext.slaf(X, A, domain=(-5.0, 5.0)))


def test_integers_of_numpy():
    f = slaf_ext.SLAF(np.int64(2), np.int32(2), dim=np.int64(-1), domain=None, outside="extrapolate")
    assert (f.degree, f.num_groups, f.dim, type(f.dim)) == (2, 2, -1, int)
    assert torch.equal(f(X), slaf_ext.slaf(X, f.coeffs, dim=np.int16(-1)))


PACKED = spec(A, "chebyshev", 1, None, "extrapolate").packed


def packed_with(index, value):
    changed = PACKED.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (PACKED.float(), "the spec is float32 of shape \\(11,\\) on cpu; it must be contiguous, float64"),
        (PACKED[:4], r"the spec is float64 of shape \(4,\) on cpu"),
        (PACKED[None], r"the spec is float64 of shape \(1, 11\) on cpu"),
        (PACKED.repeat_interleave(2)[::2], "it must be contiguous"),
        (PACKED[:-1], "the recurrence holds 5 numbers and coeffs have K = 3 columns"),
        (packed_with(0, 0.5), "dim is 0.5; it must be an integer of 64 bits"),
        (packed_with(0, float("nan")), "dim is -?nan; it must be an integer"),
        (packed_with(4, 1e30), r"outside is 1e\+30; it must be an integer"),
        (packed_with(4, -1.0), "outside is -1; it must be 0"),
    ],
)
def test_wrong_packed_spec(packed, sentence):
    with pytest.raises(ValueError, match=sentence):
        OPS._slaf(X, A, packed)
    with pytest.raises(ValueError, match=sentence):
        OPS._slaf_backward(X, X, A, packed, True, True)


def test_a_tensor_without_data_among_real_ones_is_refused():
    real, meta = (X, A), (X.to("meta"), A.to("meta"))
    for x, coeffs, sentence in (
        (real[0], meta[1], f"coeffs are on meta and x is on {X.device}"),
        (meta[0], real[1], f"coeffs are on {X.device} and x is on meta"),
    ):
        with pytest.raises(ValueError, match=sentence):
            slaf_ext.slaf(x, coeffs)
        with pytest.raises(ValueError, match=sentence):
            slaf_ext.slaf(x.clone().requires_grad_(), coeffs)
    with pytest.raises(ValueError, match=f"grad_output is on meta and x is on {X.device}"):
        OPS.slaf_backward(meta[0], *real, *spec(A, "chebyshev", 1, None, "extrapolate"), True, True)


def test_a_huge_dim_is_an_integer_too():
    assert torch.equal(slaf_ext.slaf(X, A, dim=2**40), slaf_ext.slaf(X, A))
    with pytest.raises(ValueError, match="dim is 1099511627776 and x has 2 dimensions"):
        slaf_ext.slaf(X, A[None], dim=2**40)


def test_wrong_grad_output():
    arguments = spec(A, "chebyshev", 1, None, "extrapolate")
    with pytest.raises(ValueError, match=r"grad_output has shape \(4, 3\) and x has shape \(3, 4\)"):
        OPS.slaf_backward(X.t(), X, A, *arguments, True, True)
    with pytest.raises(ValueError, match="grad_output is float64 and x is float32"):
        OPS.slaf_backward(X.double(), X, A, *arguments, True, True)


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match="x is a list; it must be a tensor"):
        slaf_ext.slaf([1.0], A)
    with pytest.raises(TypeError, match="coeffs is a list; it must be a tensor"):
        slaf_ext.slaf(X, [1.0])
    for call in (lambda: slaf_ext.slaf(X, A, dim=1.0), lambda: slaf_ext.SLAF(2, dim=1.0)):
        with pytest.raises(TypeError, match=r"dim is 1\.0; it must be an integer"):
            call()
    arguments = spec(A, "chebyshev", 1, None, "extrapolate")
    with pytest.raises(TypeError, match="x is a NoneType; it must be a tensor"):
        OPS.slaf(None, A, *arguments)
    with pytest.raises(TypeError, match="coeffs is a NoneType; it must be a tensor"):
        OPS.slaf_backward(X, X, None, *arguments, True, True)
