"""The operators on a GPU: the CPU's values, on any stream, device and layout. Skipped where there is none."""

from __future__ import annotations

import itertools

import pytest
import torch

import slaf_ext
from slaf_ext import bases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here that this torch can use")

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


def test_launches():
    """1 for the forward, 2 for the backward."""
    x = torch.randn(1 << 16, device="cuda", requires_grad=True)
    coeffs = torch.randn(9, device="cuda", requires_grad=True)
    slaf_ext.slaf(x, coeffs).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        slaf_ext.slaf(x, coeffs)
    names = [event.name for event in profile.events() if "sweep" in event.name or "reduce<" in event.name]
    assert len(names) == 1
    y, ones = slaf_ext.slaf(x, coeffs), torch.ones_like(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(y, (x, coeffs), ones)
    names = [event.name for event in profile.events() if "slaf_ext" in event.name]
    assert len(names) == 2


def test_stream_and_no_synchronisation():
    stream = torch.cuda.Stream()
    x, coeffs = torch.randn(1 << 20, device="cuda"), torch.randn(4, device="cuda", requires_grad=True)
    expected = slaf_ext.slaf(x, coeffs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            y = slaf_ext.slaf(x, coeffs)
            y.backward(y.detach())
            assert not stream.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("degree", [5, 40])
def test_graph(degree):
    x = (torch.rand(1 << 14, device="cuda") * 2 - 1).requires_grad_()
    coeffs = torch.randn(degree + 1, device="cuda", requires_grad=True)

    def step():
        y = slaf_ext.slaf(x, coeffs)
        return y, *torch.autograd.grad(y, (x, coeffs), torch.ones_like(y))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
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
