"""KANLinear as a module: its start, its state, and what compilers and exporters make of it."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from slaf_ext import KANLinear
from slaf_ext.export import decompositions


@pytest.mark.parametrize(
    ("basis", "degree", "domain", "outside"),
    [
        ("chebyshev", 5, (-1.0, 1.0), "extrapolate"),
        ("legendre", 3, (0.0, 4.0), "clamp"),
        ("chebyshev", 3, None, "extrapolate"),
        ("hermite_e", 4, None, "extrapolate"),
        ("laguerre", 3, (0.0, 2.0), "linear"),
        ("chebyshev", 5, None, "clamp"),
        ("chebyshev", 64, None, "clamp"),
        ("legendre", 9, (-1.0, 1.0), "linear"),
    ],
)
def test_the_start_preserves_the_variance(basis, degree, domain, outside):
    layer = KANLinear(200, 300, degree, basis=basis, domain=domain, outside=outside, dtype=torch.float64)
    x = torch.randn(20000, 200, dtype=torch.float64)
    if domain is not None:
        x = torch.empty_like(x).uniform_(*domain)
    with torch.no_grad():
        y = layer(x)
    assert abs(y.var() / x.var() - 1) < 0.1
    assert abs(y.mean()) < 0.1 * x.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("outside", ["extrapolate", "clamp"])
@pytest.mark.parametrize(
    ("basis", "degree"), [("chebyshev", 150), ("chebyshev", 400), ("taylor", 60), ("taylor", 170), ("hermite", 90)]
)
def test_a_start_beyond_what_its_dtype_holds_is_finite(basis, degree, outside, dtype):
    layer = KANLinear(2, 3, degree, basis=basis, outside=outside, dtype=dtype)
    assert all(p.isfinite().all() for p in layer.parameters())
    assert layer.weight[..., 0].count_nonzero()


def test_a_start_in_a_fake_mode():
    with torch._subclasses.FakeTensorMode():
        assert KANLinear(3, 2, 4)(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("basis", ["chebyshev", "laguerre", "chebyshev_w"])
@pytest.mark.parametrize("domain", [None, (-3.0, 5.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_a_linear_layer(basis, domain, bias):
    linear = nn.Linear(6, 4, bias=bias, dtype=torch.float64)
    layer = KANLinear(6, 4, 5, basis=basis, domain=domain, dtype=torch.float64)
    assert layer.init_from(linear) is layer
    x = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-12)


def test_it_learns_what_a_linear_layer_cannot():
    torch.manual_seed(0)
    x = torch.rand(512, 2) * 2 - 1
    target = (x[:, :1] * math.pi).sin() + x[:, 1:] ** 2
    model = KANLinear(2, 1, 5)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure() < 1e-4


def test_state_copies_and_casts():
    layer, x = KANLinear(3, 2, 4, basis="legendre", outside="clamp"), torch.randn(5, 3)
    other = KANLinear(3, 2, 4, basis="legendre", outside="clamp")
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer).double()(x.double()).float(), layer(x))
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    empty = KANLinear(3, 2, 4, device="meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert empty(x).isfinite().all()
    assert KANLinear(3, 2, 4, device="meta")(x.to("meta")).shape == (5, 2)
    assert repr(KANLinear(3, 2, 4, bias=False)) == "KANLinear(3, 2, degree=4, basis='chebyshev', bias=False)"


def test_autocast_keeps_the_dtype_of_x():
    layer, x = KANLinear(3, 2, 4), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x).float())
        y = layer(x)
        half = layer(x.bfloat16())
    assert (y.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y, layer(x))
    half.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled_whole(dynamic):
    layer = KANLinear(3, 4, 5, domain=(-2, 2), outside="linear")
    step = torch.compile(nn.Sequential(layer, nn.Tanh()), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (6, 9):
        x = torch.randn(rows, 3, requires_grad=True)
        got = torch.autograd.grad(step(x).square().sum(), (x, *layer.parameters()))
        expected = torch.autograd.grad(layer(x).tanh().square().sum(), (x, *layer.parameters()))
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore")
def test_exported(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = (
        nn.Sequential(KANLinear(3, 4, 5, domain=(-2, 2), outside="linear"), KANLinear(4, 2, 2)),
        torch.randn(6, 3),
    )
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    more = torch.randn(9, 3)
    torch.testing.assert_close(program.module()(more), model(more))
    plain = program.run_decompositions(decompositions())
    assert not any("slaf_ext" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(more), model(more))
    torch.onnx.export(program, (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(y, model(more).detach().numpy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(more), model(more))
    torch.testing.assert_close(torch.jit.trace(model, x)(more), model(more))
    with pytest.raises(NotImplementedError, match="use torch"):
        torch.jit.script(model)
