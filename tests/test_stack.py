"""What a training stack does to a SLAF: files, copies, transforms, autograd's modes, processes and threads."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from stack_networks import CASES, batch, network
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import slaf_ext
from slaf_ext import SLAF, bases

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


class Labelled(torch.Tensor):
    """A subclass that changes nothing."""


def test_a_subclass_of_tensor_stays_one():
    x = torch.randn(4, 2).as_subclass(Labelled).requires_grad_()
    f, normalised = SLAF(3, 2), SLAF(3, 2, normalize=True)
    for module in (f, normalised):
        y = module(x)
        assert isinstance(y, Labelled)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        plain = x.detach().as_subclass(torch.Tensor).requires_grad_()
        (expected,) = torch.autograd.grad(module(plain).square().sum(), plain)
        assert torch.equal(dx.as_subclass(torch.Tensor), expected)


def step(seed=0):
    """A forward and a backward pass that are shared among threads."""
    x = torch.randn(2**17, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    f = SLAF(8, 4)
    return [t.numpy() for t in torch.autograd.grad(f(x).square().sum(), (x, f.coeffs))]


def sums(method):
    """Those of a step's results; autograd does not work in a forked process, which gets a forward pass alone."""
    return [float(t.sum()) for t in (step() if method == "spawn" else [SLAF(3)(torch.ones(2**17)).detach()])]


def put_sums(queue, method):
    torch.set_num_threads(1)  # as the workers of a DataLoader do: in a forked process torch's own threads hang
    queue.put(sums(method))


@pytest.mark.cpu("a process of CUDA cannot be forked")
@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_starts_after_use(method):
    expected = sums(method)
    context = torch.multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=put_sums, args=(queue, method), daemon=True)
    process.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        process.kill()


def test_threads_of_python_give_the_bits_of_one():
    expected = [step(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for got, alone in zip(threads.map(step, range(8)), expected, strict=True):
            assert all(np.array_equal(mine, true) for mine, true in zip(got, alone, strict=True))
