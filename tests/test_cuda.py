"""The operators on a GPU: the CPU's values, on any stream, device and layout. Skipped where there is none."""

from __future__ import annotations

import itertools
import warnings
from contextlib import contextmanager

import pytest
import torch

import slaf_ext
from slaf_ext import bases, ops, reference
from slaf_ext.functional import normalized_slaf

if not torch.cuda.is_available():
    pytest.skip("no GPU here that this torch can use", allow_module_level=True)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# shape, dim, memory format
LAYOUTS = [
    ((33, 12, 7, 7), 1, torch.contiguous_format),
    ((33, 12, 7, 7), 1, torch.channels_last),
    ((4, 64, 56, 56), 1, torch.contiguous_format),
    ((129, 300), -1, torch.contiguous_format),
]


def gradients(x, coeffs, grad_output, device, basis="chebyshev", **options):
    x, coeffs = (t.detach().to(device).requires_grad_() for t in (x, coeffs))
    y = slaf_ext.slaf(x, coeffs, basis, **options)
    y.backward(grad_output.to(device))
    return y.detach(), x.grad, coeffs.grad


def assert_parity(x, coeffs, **options):
    grad_output = torch.randn(x.shape).to(x.dtype)
    ours = gradients(x, coeffs, grad_output, "cuda", **options)
    theirs = gradients(x, coeffs, grad_output, "cpu", **options)
    for got, want in zip(ours, theirs, strict=True):
        got, want = got.cpu().double(), want.double()
        allowed = (1e-11 if x.dtype == torch.float64 else 1e-5) * (1 + want.abs().max())
        allowed = allowed + torch.finfo(x.dtype).eps * want.abs()
        assert ((got - want).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize(("shape", "dim", "memory_format"), LAYOUTS)
def test_parity(shape, dim, memory_format, groups, dtype):
    if shape[dim] % groups:
        groups = shape[dim]
    x = (torch.rand(shape) * 2 - 1).to(dtype).to(memory_format=memory_format)
    for degree in (0, 3, 9, 32):
        coeffs = torch.randn(groups, degree + 1) if groups > 1 else torch.randn(degree + 1)
        assert_parity(x, coeffs.to(dtype), dim=dim)


@pytest.mark.parametrize("basis", bases.names())
@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
def test_bases(basis, outside):
    lo, hi = bases.get(basis).domain
    x = lo + (hi - lo) * (torch.rand(1001, dtype=torch.float64) * 1.4 - 0.2)
    for degree in (1, 6, 16, 40):
        coeffs = torch.randn(degree + 1, dtype=torch.float64) / 2**degree
        assert_parity(x, coeffs, basis=basis, outside=outside)


def test_misaligned():
    for dtype, offset in itertools.product((torch.float32, torch.bfloat16), (1, 3)):
        x = (torch.rand(4099, device="cuda") * 2 - 1).to(dtype)[offset:]
        coeffs = torch.randn(5, device="cuda", dtype=dtype)
        torch.testing.assert_close(slaf_ext.slaf(x, coeffs), slaf_ext.slaf(x.clone(), coeffs), rtol=0, atol=0)


def test_same_bits():
    x, coeffs = torch.randn(1 << 22), torch.randn(9)
    grad_output = torch.randn_like(x)
    first = gradients(x, coeffs, grad_output, "cuda")
    for _ in range(5):
        for a, b in zip(first, gradients(x, coeffs, grad_output, "cuda"), strict=True):
            assert torch.equal(a, b)


def profiled():
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)


def test_launches():
    """1 for the forward, 2 for the backward."""
    x = torch.randn(1 << 16, device="cuda", requires_grad=True)
    coeffs = torch.randn(9, device="cuda", requires_grad=True)
    slaf_ext.slaf(x, coeffs).sum().backward()
    with profiled() as profile:
        slaf_ext.slaf(x, coeffs)
    names = [event.name for event in profile.events() if "sweep" in event.name or "reduce<" in event.name]
    assert len(names) == 1
    y, ones = slaf_ext.slaf(x, coeffs), torch.ones_like(x)
    with profiled() as profile:
        torch.autograd.grad(y, (x, coeffs), ones)
    names = [event.name for event in profile.events() if "slaf_ext" in event.name]
    assert len(names) == 2


@contextmanager
def no_synchronisation():
    """Whatever waits for the GPU is an error here, and only here: the mode belongs to the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_stream_and_no_synchronisation():
    stream = torch.cuda.Stream()
    x, coeffs = torch.randn(1 << 20, device="cuda"), torch.randn(4, device="cuda", requires_grad=True)
    expected = slaf_ext.slaf(x, coeffs.detach())  # autograd ties a leaf to the stream that first uses it
    torch.cuda.synchronize()
    with no_synchronisation(), torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)  # half a second, for other processes may keep the host busy
        y = slaf_ext.slaf(x, coeffs)
        y.backward(y.detach())
        assert not stream.query()
    stream.synchronize()
    assert torch.equal(y, expected)


def leaves_of(*tensors):
    """The same memory as leaves of their own, which no stream has used."""
    return tuple(t.detach().requires_grad_() for t in tensors)


def capture(step):
    """The results of step() in a graph, and the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return captured, graph


@pytest.mark.parametrize("degree", [5, 40])
def test_graph(degree):
    x, coeffs = torch.rand(1 << 14, device="cuda") * 2 - 1, torch.randn(degree + 1, device="cuda")

    def step():
        leaves = leaves_of(x, coeffs)
        y = slaf_ext.slaf(*leaves)
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    captured, graph = capture(step)
    x.uniform_(-1, 1)
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


def normalized(f, x, coeffs, grad_output, spec):
    x, coeffs = (t.detach().clone().requires_grad_() for t in (x, coeffs))
    y, mean, variance = f(x, coeffs, *spec, eps=1e-3)
    return mean.detach(), variance.detach(), y.detach(), *torch.autograd.grad(y, (x, coeffs), grad_output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize(("shape", "dim", "memory_format"), LAYOUTS)
def test_normalized_parity(shape, dim, memory_format, groups, dtype):
    """The fused form beside the definition in float64 on the same GPU, and the CPU's kernels."""
    if shape[dim] % groups:
        groups = shape[dim]
    x = (torch.rand(shape) * 2 - 1).to(dtype).to(memory_format=memory_format)
    grad_output = torch.randn(shape).to(dtype)
    for degree, outside in ((1, "extrapolate"), (3, "clamp"), (10, "extrapolate"), (33, "extrapolate")):
        coeffs = (torch.randn(groups, degree + 1) if groups > 1 else torch.randn(degree + 1)).to(dtype)
        spec = reference.spec(coeffs, "chebyshev", dim, (-0.9, 0.9) if outside == "clamp" else None, outside)
        ours = normalized(ops.normalized, x.cuda(), coeffs.cuda(), grad_output.cuda(), spec)
        theirs = normalized(ops.normalized, x, coeffs, grad_output, spec)
        tensors = (t.double().cuda() for t in (x, coeffs, grad_output))
        exact = normalized(reference.normalized, *tensors, spec)
        for i, (got, cpu, right) in enumerate(zip(ours, theirs, exact, strict=True)):
            storage = torch.float64 if i < 2 else dtype
            rounding = 1e-11 if dtype == torch.float64 else 3e-5
            allowed = rounding * (1 + right.abs().max()) + 2 * torch.finfo(storage).eps * right.abs()
            assert ((got.double() - right).abs() <= allowed).all(), f"degree {degree}, result {i}"
            assert ((got.double() - cpu.cuda().double()).abs() <= 2 * allowed).all(), f"degree {degree}, result {i}"
    assert ours[2].stride() == x.stride()


def test_normalized_far_from_zero_and_an_unlucky_sample():
    far = torch.randn(64, 3, 4000, device="cuda", dtype=torch.float64) + 1e4
    unlucky = 0.01 * torch.randn(1, 3, 1 << 20, device="cuda", dtype=torch.float64)
    unlucky[..., : 1 << 14] += 1e4
    for x in (far.float(), unlucky.float()):
        _, mean, variance = normalized_slaf(x, torch.ones(3, 3, device="cuda"), "monomial")
        for k in (1, 2):
            phi = x.double() ** k
            torch.testing.assert_close(variance[:, k - 1], phi.var((0, 2), correction=0), rtol=1e-4, atol=0)
            assert ((mean[:, k - 1] - phi.mean((0, 2))).abs() <= 1e-5 * variance[:, k - 1].sqrt()).all()


def test_normalized_launches_stream_and_bits():
    """2 launches for the moments, 1 to fold, 1 for y and 3 for the gradients; no synchronisation."""
    x = torch.randn(8, 16, 40, 40, device="cuda", requires_grad=True)
    f = slaf_ext.SLAF(4, 16, normalize=True, device="cuda")
    ones = torch.ones_like(x)
    first = torch.autograd.grad(f(x), (x, f.coeffs), ones)
    with no_synchronisation(), profiled() as profile:
        again = torch.autograd.grad(f(x), (x, f.coeffs), ones)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    ours = [event.name for event in profile.events() if "slaf_ext" in event.name]
    assert len(ours) == 2 + 1 + 1 + 3, ours


@pytest.mark.parametrize("degree", [3, 40])
def test_normalized_graph(degree):
    x, coeffs = torch.rand(16, 4, 500, device="cuda") * 2 - 1, torch.randn(4, degree + 1, device="cuda")

    def step():
        leaves = leaves_of(x, coeffs)
        y, mean, variance = normalized_slaf(*leaves)
        return y, mean, variance, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    captured, graph = capture(step)
    x.uniform_(-1, 1)
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


def test_more_than_2_31_elements():
    count = 2**31 + 1
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * 2 * count:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free and this needs {5 * 2 * count >> 30}")
    x = torch.zeros(count, device="cuda", dtype=torch.float16)
    x[-3:] = 0.5
    coeffs = torch.tensor([0.25, 0.0, 1.0], device="cuda", dtype=torch.float32, requires_grad=True)
    y = slaf_ext.slaf(x, coeffs, "monomial")
    assert (y[:-3] == 0.25).all()
    assert (y[-3:] == 0.5).all()
    ones = torch.ones_like(y)
    (grad,) = torch.autograd.grad(y, coeffs, ones)
    torch.testing.assert_close(grad.cpu(), torch.tensor([float(count), 1.5, 0.75]), rtol=1e-6, atol=0)


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")
    x, coeffs = torch.randn(1000, device="cuda:1"), torch.randn(4, device="cuda:1")
    y = slaf_ext.slaf(x, coeffs)
    assert y.device == x.device
    torch.testing.assert_close(y.cpu(), slaf_ext.slaf(x.cpu(), coeffs.cpu()))
