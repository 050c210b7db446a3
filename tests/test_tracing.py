"""The operators under opcheck, torch.compile, torch.export, tracers and modes, and in PyTorch's dispatcher."""

import pytest
import torch

import slaf_ext
from slaf_ext import bases
from slaf_ext.arguments import spec

OPS = torch.ops.slaf_ext
X, A = torch.randn(3, 4), torch.randn(3)


def inputs(dtype=torch.float32):
    x = torch.randn(4, 6, 3, dtype=dtype)
    return {
        "contiguous": x,
        "permuted": torch.randn(3, 6, 4, dtype=dtype).permute(2, 1, 0),
        "sliced": torch.randn(4, 6, 6, dtype=dtype)[:, :, ::2],
        "expanded": torch.randn(4, 6, 1, dtype=dtype).expand(4, 6, 3),
        "empty": torch.randn(0, 6, 3, dtype=dtype),
        "matrix transposed": torch.randn(6, 4, dtype=dtype).t(),
        "0-dim": torch.randn((), dtype=dtype),
    }


@pytest.mark.parametrize("kind", inputs())
def test_opcheck(kind):
    x = inputs()[kind].detach().requires_grad_()
    coeffs = (torch.randn(3) if x.dim() == 0 else torch.randn(2, 3)).requires_grad_()
    arguments = spec(coeffs, "legendre", 1, (-2, 2), "linear")
    torch.library.opcheck(OPS.slaf.default, (x, coeffs, *arguments))
    grad_output = torch.randn_like(x).requires_grad_()
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(OPS.slaf_backward.default, (grad_output, x, coeffs, *arguments, *needs))


@pytest.mark.parametrize(
    "basis", ["chebyshev", "hermite_e_normalized", bases.jacobi(0.5, 1), bases.Basis("t", [(1, 2, 3)] * 3)]
)
def test_compiles_whole_without_a_break(basis):
    def f(x, coeffs):
        return slaf_ext.slaf(x * 2, coeffs, basis, domain=(-3, 3), outside="linear").sin()

    x, coeffs = torch.randn(5, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, coeffs), f(x, coeffs))
    expected = torch.autograd.grad(f(x, coeffs).sum(), (x, coeffs))
    actual = torch.autograd.grad(compiled(x, coeffs).sum(), (x, coeffs))
    torch.testing.assert_close(actual, expected)


def test_inductor_and_permuted_input():
    module = slaf_ext.SLAF(3, 4, init=torch.randn(4, 4))
    compiled = torch.compile(module, fullgraph=True)
    for x in (torch.randn(2, 4, 3), torch.randn(3, 4, 2).transpose(0, 2)):
        torch.testing.assert_close(compiled(x), module(x))
        assert compiled(x).stride() == x.stride()


def test_export():
    module = slaf_ext.SLAF(3, 4, init="noisy_identity")
    x = torch.randn(2, 4)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(exported.module()(torch.ones(7, 4)), module(torch.ones(7, 4)))


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert slaf_ext.slaf(torch.empty(3, 2, device="meta"), torch.empty(4, device="meta")).shape == (3, 2)
    with FakeTensorMode():
        x = torch.empty(2, 8, 4, 4).to(memory_format=torch.channels_last)
        assert slaf_ext.slaf(x, torch.empty(8, 3)).stride() == x.stride()


def test_dispatch_modes_see_operators_with_plain_arguments():
    """Passes to the second order show only public operators to a mode, and give the same bits as without it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    def results():
        x, coeffs = X.clone().requires_grad_(), A.clone().requires_grad_()
        y = slaf_ext.slaf(x, coeffs, domain=(-2, 2), outside="linear")
        first = torch.autograd.grad(y.square().sum(), (x, coeffs), create_graph=True)
        return y, *first, *torch.autograd.grad(first[0].sum() + first[1].sum(), (x, coeffs))

    seen = []
    expected = results()
    assert seen == []
    with Record():
        watched = results()
    assert all(torch.equal(w, e) for w, e in zip(watched, expected, strict=True))
    assert {OPS.slaf.default, OPS.slaf_backward.default} < set(seen)
    assert not {OPS._slaf.default, OPS._slaf_backward.default} & set(seen)


def test_a_tracer_before_autograd_sees_the_differentiable_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x, coeffs: slaf_ext.slaf(x, coeffs), pre_dispatch=True)(X, A)
    assert OPS.slaf.default in {node.target for node in graph.graph.nodes}
    x, coeffs = X.clone().requires_grad_(), A.clone().requires_grad_()
    gradients = torch.autograd.grad(graph(x, coeffs).sum(), (x, coeffs))
    assert all(map(torch.equal, gradients, torch.autograd.grad(slaf_ext.slaf(x, coeffs).sum(), (x, coeffs))))


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and tracing bakes in sizes
def test_torch_jit_trace():
    module = slaf_ext.SLAF(3, 4, init=torch.randn(4, 4), domain=(-3, 3), outside="linear")
    traced = torch.jit.trace(module, (X,))
    x = torch.randn(5, 4, requires_grad=True)
    gradients = [torch.autograd.grad(f(x).square().sum(), (x, module.coeffs)) for f in (traced, module)]
    assert all(map(torch.equal, *gradients))


def test_a_spec_first_met_under_a_mode_serves_without_it():
    from torch.overrides import TorchFunctionMode

    class InSinglePrecision(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return result.float() if isinstance(result, torch.Tensor) else result

    with InSinglePrecision():
        slaf_ext.slaf(X, A, domain=(-1.5, 7.5))
    torch._enable_functionalization(reapply_views=True)
    try:
        slaf_ext.slaf(torch._to_functional_tensor(X), A, domain=(-1.5, 8.5))
    finally:
        torch._disable_functionalization()
    for domain in ((-1.5, 7.5), (-1.5, 8.5)):
        y = slaf_ext.slaf(X, A, domain=domain)
        assert not torch._is_functional_tensor(y)
        torch.testing.assert_close(y, slaf_ext.reference.slaf(X, A, domain=domain))


def test_a_spec_first_met_in_inference_mode_serves_training():
    coeffs = torch.randn(3)
    with torch.inference_mode():
        slaf_ext.slaf(X, coeffs, domain=(-1.25, 7.5))
    x = X.clone().requires_grad_()
    y = slaf_ext.slaf(x, coeffs.requires_grad_(), domain=(-1.25, 7.5))
    gradients = torch.autograd.grad(y.sum(), (x, coeffs))
    expected = slaf_ext.reference.slaf(x, coeffs, domain=(-1.25, 7.5))
    torch.testing.assert_close((y, *gradients), (expected, *torch.autograd.grad(expected.sum(), (x, coeffs))))


has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key


@pytest.mark.parametrize(
    "key", ["CUDA", "SparseCPU", "SparseCsrCPU", "MkldnnCPU", "QuantizedCPU", "NestedTensorCPU", "XPU", "MPS"]
)
def test_every_operator_has_an_answer_on_every_backend(key):
    """Each has a kernel or raises our own error, so that users never see the dispatcher's about a missing kernel."""
    names = torch._C._dispatch_get_all_op_names()
    with_kernels = [n for n in names if n.startswith("slaf_ext::") and has_kernel(n, "CPU")]
    assert len(with_kernels) == 11
    for name in with_kernels:
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key), name
