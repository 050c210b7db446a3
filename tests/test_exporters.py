"""What tracers, exporters and compilers make of a network with SLAFs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from stack_networks import CASES, batch, network
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

import slaf_ext
from slaf_ext import SLAF, bases
from slaf_ext.export import decompositions


def test_torch_fx_leaves_a_module_whole_and_records_the_function():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()
            self.coeffs = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return slaf_ext.slaf(self.inner(x), self.coeffs, "legendre", outside="clamp")

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert traced.get_submodule("inner.1") is model.inner[1]
    assert [str(node.target) for node in traced.graph.nodes if node.op == "call_module"] == [
        f"inner.{i}" for i in range(3)
    ]
    x = batch()
    assert torch.equal(traced(x), model(x))
    copied = pickle.loads(pickle.dumps(traced))
    assert torch.equal(copied(x), model(x))


class Doubled(SLAF):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("wrap", [lambda f: f, nn.Sequential])
@pytest.mark.parametrize("make", [SLAF, Doubled])
def test_torch_fx_traces_subclasses_and_a_module_by_itself(make, wrap):
    model, x = wrap(make(3, 2, outside="clamp")), batch()[:, :2]
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_torch_jit_script_names_what_works():
    with pytest.raises(NotImplementedError, match=r"use torch.jit.trace\(model, example\) or torch.export.export"):
        torch.jit.script(network())


@pytest.mark.parametrize("case", CASES)
def test_decomposed_it_is_made_of_torchs_own_operators(case):
    model = network(**CASES[case])
    x = batch(CASES[case].get("dtype", torch.float32))
    rows = torch.export.Dim("rows")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    kept = {str(node.target) for node in program.run_decompositions().graph.nodes if node.op == "call_function"}
    assert "slaf_ext.slaf.default" in kept
    table = {**torch.export.default_decompositions(), **decompositions()}
    plain = program.run_decompositions(table)
    assert all(node.target.namespace == "aten" for node in plain.graph.nodes if hasattr(node.target, "namespace"))
    more = batch(x.dtype, 7)
    torch.testing.assert_close(plain.module()(more), model(more))


def test_decomposed_in_training_mode_too():
    model, x = network(**CASES["normalised"]).train(), batch()
    expected = copy.deepcopy(model)(x)
    program = torch.export.export(model, (x,))
    plain = program.run_decompositions({**torch.export.default_decompositions(), **decompositions()})
    assert not any("slaf_ext" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(x), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_onnx_of_a_module(case, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime")
    dtype = CASES[case].get("dtype", torch.float32)
    model = network(1 if case == "shared" else 4, **CASES[case])
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("rows")},)
    torch.onnx.export(model, (batch(dtype),), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = 3 * batch(dtype, 7)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_onnx_of_an_exported_program(training, strict, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = network(**CASES["normalised"]).train(training), batch()
    program = torch.export.export(model, (x,), strict=strict)
    torch.onnx.export(program, (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
@pytest.mark.parametrize("basis", bases.names())
def test_onnx_of_every_basis(basis, outside, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    # A fit by Laguerre's polynomials has coefficients of 2,000, whose terms cancel in float32.
    model = SLAF(4, 2, basis=basis, domain=(-3, 3), outside=outside, dim=-1, init="variance_preserving")
    torch.onnx.export(model, (torch.randn(3, 4),), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    x = 2 * torch.randn(3, 4)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def compiled(model, x, **options):
    """What a step of a compiled model returns, and the operators of its graphs."""
    found = set()

    def record(graph, inputs):
        found.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    y = torch.compile(model, backend=backend, fullgraph=True, **options)(x)
    return (y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()))), found


@pytest.mark.parametrize("outside", ["extrapolate", "clamp"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_normalised_form_is_fused_in_a_compiled_step(groups, outside):
    options = {"normalize": True, "init": "noisy_identity", "outside": outside}
    model, twin = SLAF(5, groups, **options), SLAF(5, groups, **options)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(16, 4, requires_grad=True)
    y = twin(x)
    expected = (y, *torch.autograd.grad(y.square().sum(), (x, twin.coeffs)))
    got, operators = compiled(model, x)
    for mine, true in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, true)
    assert {f"slaf_ext.slaf_{name}.default" for name in ("moments", "fold", "normalized_backward")} <= operators
    assert "slaf_ext.slaf.default" in operators
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_one_graph_serves_every_size_of_batch(case, training):
    model, dtype = network(**CASES[case]).train(training), CASES[case].get("dtype", torch.float32)
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for rows in (16, 5, 33, 8):
        x = batch(dtype, rows)
        torch.testing.assert_close(step(x), copy.deepcopy(model)(x) if training else model(x))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore")
def test_inductor_runs_the_fused_operators_in_continuous_integration(monkeypatch):
    # Where CI is set, inductor refuses an operator that torch could decompose.
    monkeypatch.setenv("CI", "true")
    model, x = network(**CASES["normalised"]).train(), batch()
    expected = copy.deepcopy(model)(x)
    with torch._inductor.config.patch(force_disable_caches=True):
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["default", "normalised"])
def test_aot_inductor_runs_the_fused_operators(case, tmp_path):
    model, x = network(**CASES[case]), batch()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for rows in (16, 7):
        more = batch(rows=rows)
        torch.testing.assert_close(loaded(more), model(more))
