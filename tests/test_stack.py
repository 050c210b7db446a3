"""What other parts of a training stack do to a SLAF: tracers, exporters, copies, files, transforms, modes."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import slaf_ext
from slaf_ext import SLAF, bases
from slaf_ext.export import decompositions

CASES = {
    "default": {},
    "shared": {"basis": "legendre", "domain": None},
    "clamp": {"basis": "hermite_e", "outside": "clamp"},
    "normalised": {"normalize": True, "init": "noisy_identity"},
    "float64": {"dtype": torch.float64},
}


def network(groups=4, **options):
    """A small one, in evaluation mode, which has seen a batch."""
    dtype = options.get("dtype", torch.float32)
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype), SLAF(5, groups, **options), nn.Linear(4, 2, dtype=dtype))
    model(batch(dtype))
    return model.eval()


def batch(dtype=torch.float32, rows=16):
    return torch.randn(rows, 3, dtype=dtype)


# ------------------------------------------------------------------ tracers and exporters


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_onnx(case, tmp_path):
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


# ------------------------------------------------------------------ files and copies


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded(case, tmp_path):
    model = network(**CASES[case])
    x = batch(CASES[case].get("dtype", torch.float32))
    y = model(x)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = network(**CASES[case])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), y)
    other = network(**CASES[case])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=True)
    assert torch.equal(other(x), y)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), y)
        assert copied[1].basis is model[1].basis or copied[1].basis == model[1].basis
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), y)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other = network(**CASES[case])
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), y)


def test_a_whole_module_loads_with_safe_globals(tmp_path):
    f = SLAF(3, 2, basis="legendre")
    torch.save(f, tmp_path / "module.pt")
    with torch.serialization.safe_globals([SLAF, bases.get]):
        loaded = torch.load(tmp_path / "module.pt", weights_only=True)
    x = torch.randn(4, 2)
    assert torch.equal(loaded(x), f(x))


def test_a_start_that_cannot_be_pickled_is_named():
    f = SLAF(3, init=lambda t: t)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dump(f, io.BytesIO())


def test_averages_of_models():
    model = network()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    before = model[1].coeffs.detach().clone()
    with torch.no_grad():
        model[1].coeffs.add_(1.0)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module[1].coeffs, before + 0.5)


def test_a_parametrisation():
    class Odd(nn.Module):
        def forward(self, coeffs):
            return coeffs * (torch.arange(coeffs.shape[-1]) % 2)

    f = SLAF(5, 3, outside="extrapolate")
    parametrize.register_parametrization(f, "coeffs", Odd())
    x = torch.randn(7, 3)
    torch.testing.assert_close(f(-x), -f(x))
    f(x).sum().backward()
    assert not f.parametrizations.coeffs.original.grad[:, ::2].any()


def test_functional_call_and_ensembles():
    models = [SLAF(3, 2) for _ in range(3)]
    for model in models:
        nn.init.normal_(model.coeffs)
    params, buffers = torch.func.stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), torch.randn(5, 2)
    y = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(y, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_module_without_data_gets_it(normalize):
    with torch.device("meta"):
        f = SLAF(4, 2, normalize=normalize)
    f.to_empty(device="cpu")
    f.reset_parameters()
    g = SLAF(4, 2, normalize=normalize)
    assert f.state_dict().keys() == g.state_dict().keys()
    assert all(torch.equal(value, g.state_dict()[name]) for name, value in f.state_dict().items())


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_statistics_stay_wide(convert, swap):
    f = SLAF(3, 2, normalize=True)
    f(torch.randn(9, 2))
    mean = f.running_mean.clone()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        getattr(f, convert)()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert torch.equal(f.running_mean, mean)
    assert f.running_var.dtype == torch.float64
    x = torch.randn(9, 2).to(f.coeffs.dtype)
    assert f(x).dtype == x.dtype


# ------------------------------------------------------------------ autograd's mechanics


@pytest.mark.parametrize("changed", ["x", "coeffs"])
def test_a_change_in_place_before_backward_is_noticed(changed):
    x, coeffs = torch.randn(4, 2), torch.randn(3, requires_grad=True)
    x = x.requires_grad_().clone()
    y = slaf_ext.slaf(x, coeffs)
    with torch.no_grad():
        {"x": x, "coeffs": coeffs}[changed].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_hooks_and_anomaly_mode():
    f, x, seen = SLAF(3), torch.randn(4, 2, requires_grad=True), []
    f.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    f.register_forward_hook(lambda module, inputs, output: seen.append("after"))
    f.register_full_backward_hook(lambda module, gradients, outputs: seen.append("backward"))
    with torch.autograd.set_detect_anomaly(True):
        f(x).sum().backward()
    assert seen == ["before", "after", "backward"]
    y = slaf_ext.slaf(x, torch.full((3,), torch.nan, requires_grad=True))
    with pytest.raises(RuntimeError, match="SlafFunctionBackward"), torch.autograd.set_detect_anomaly(True):
        y.sum().backward()


def test_inference_mode_and_deterministic_algorithms():
    f, x = SLAF(3), torch.randn(4, 2)
    with torch.inference_mode():
        y = f(x)
    assert y.is_inference()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(f(x), y)
        f(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    f, x = SLAF(5, 2), torch.randn(8, 2, requires_grad=True)
    expected = torch.autograd.grad(f(x).square().sum(), (x, f.coeffs))
    torch.utils.checkpoint.checkpoint(f, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(f.coeffs.grad, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_x(dtype):
    model, x = network(), batch()
    with torch.autocast("cpu", dtype):
        hidden = model[0](x)
        y = model[1](hidden)
        loss = model[2](y).float().square().mean()
    assert y.dtype == hidden.dtype == dtype
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(loss).backward()
    assert model[1].coeffs.grad.dtype == torch.float32
    before = model[1].coeffs.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(model[1].coeffs, before)


# ------------------------------------------------------------------ torch.compile


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
