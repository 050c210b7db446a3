"""The module: the habits of nn.Module, and how it starts."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import slaf_ext
from slaf_ext import SLAF, bases


@pytest.mark.parametrize("domain", [None, (-3.0, 5.0)])
@pytest.mark.parametrize("degree", [1, 2, 6])
@pytest.mark.parametrize("name", bases.names())
def test_identity(name, degree, domain):
    module = SLAF(degree, 4, basis=name, domain=domain, init="identity", dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x), x)


@pytest.mark.parametrize("name", bases.names())
def test_with_nothing_else_said_it_is_near_gelu_and_goes_on_along_tangents(name):
    module = SLAF(6, basis=name, dtype=torch.float64)
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    assert (module(x) - torch.nn.functional.gelu(x)).abs().max() < 0.12
    far = torch.tensor([4.0, 5.0, 6.0, 1e6], dtype=torch.float64)
    y = module(far)
    torch.testing.assert_close(y[2] - y[1], y[1] - y[0])
    torch.testing.assert_close(y[3] - y[0], (y[1] - y[0]) * (1e6 - 4))
    assert (module.domain, module.outside) == ((-4.0, 4.0), "linear")
    normalised = SLAF(6, basis=name, normalize=True)
    assert (normalised.domain, normalised.outside, normalised.init) == ((-4.0, 4.0), "clamp", "identity")
    for normalize in (False, True):
        assert SLAF(6, basis=name, domain=None, normalize=normalize).outside == "extrapolate"


def test_degree_zero_is_a_constant():
    assert SLAF(0, domain=(1, 3), init="identity")(torch.randn(2, 2)).tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_noisy_identity():
    a = SLAF(3, 1000, basis="monomial", domain=None, init="noisy_identity").coeffs
    torch.testing.assert_close(a[:, 0], torch.full((1000,), 0.1))
    torch.testing.assert_close(a[:, 1:].mean(0), torch.tensor([1.0, 0.0, 0.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(a[:, 1:].std(0), torch.ones(3), atol=0.15, rtol=0)


def test_a_tensor_as_start():
    row = torch.tensor([1.0, 2.0, 3.0])
    assert SLAF(2, 4, init=row).coeffs.tolist() == [row.tolist()] * 4
    full = torch.randn(4, 3)
    module = SLAF(2, 4, init=full)
    assert torch.equal(module.coeffs, full)
    with torch.no_grad():
        module.coeffs.zero_()
    module.reset_parameters()
    assert torch.equal(module.coeffs, full)


def test_a_parameter_as_start_is_copied():
    other = SLAF(2)
    for module in (SLAF(2, init=other.coeffs), other.fold()):
        assert list(module.state_dict()) == ["coeffs"]
        with torch.no_grad():
            other.coeffs.add_(1)
        module.reset_parameters()
        assert not torch.equal(module.coeffs, other.coeffs)


@pytest.mark.parametrize("init", ["identity", "noisy_identity", "variance_preserving", "gelu"])
def test_every_start_on_the_meta_device(init):
    assert SLAF(3, 2, init=init, device="meta").coeffs.is_meta


def test_habits_of_modules():
    module = SLAF(3, 2, basis=bases.jacobi(0.5, 1), domain=(-2, 2), outside="clamp", init="noisy_identity")
    x = torch.randn(4, 2)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), module(x))
        assert repr(again) == repr(module)
    other = SLAF(3, 2, basis=bases.jacobi(0.5, 1), domain=(-2, 2), outside="clamp")
    assert list(module.state_dict()) == ["coeffs"]
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert module.double()(x.double()).dtype == torch.float64
    assert SLAF(2, dtype=torch.float64).coeffs.dtype == torch.float64
    assert SLAF(2, device="meta").coeffs.is_meta


def test_repr():
    assert repr(SLAF(5)) == "SLAF(5, basis='chebyshev', domain=(-4.0, 4.0), outside='linear')"
    assert repr(SLAF(5, domain=None)) == "SLAF(5, basis='chebyshev')"
    assert repr(SLAF(2, 8, basis="legendre", dim=-1, domain=(-2, 2), outside="linear")) == (
        "SLAF(2, num_groups=8, basis='legendre', dim=-1, domain=(-2.0, 2.0), outside='linear')"
    )


def test_trains():
    """A degree-5 SLAF learns the polynomial that makes the data."""
    x = torch.rand(512, 1) * 2 - 1
    target = slaf_ext.slaf(x, torch.tensor([0.3, -1.0, 0.5, 0.25, 0.0, 0.7]))
    module = SLAF(5, domain=None, init="identity")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (module(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-6


@pytest.mark.parametrize("init", [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3]), np.float32([1, 2, 3])])
def test_arrays_are_starts(init):
    assert SLAF(2, init=init).coeffs.tolist() == [1, 2, 3]
    assert SLAF(2, 2, init=init).coeffs.tolist() == [[1, 2, 3]] * 2
    assert SLAF(2, 2, init=[init, init], normalize=True).coeffs.tolist() == [[1, 2, 3]] * 2
    given = np.array([1.0, 2.0, 3.0])
    module = SLAF(2, init=given)
    given[:] = 0
    module.reset_parameters()
    assert module.coeffs.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((-1,), {}, "degree is -1; it must be an integer from 0 to 10000"),
        ((2.0,), {}, "degree is 2.0; it must be an integer"),
        ((2, 0), {}, "num_groups is 0; it must be an integer from 1 up"),
        ((10**9,), {}, "degree is 1000000000; it must be an integer from 0 to 10000"),
        ((2,), {"normalize": "no"}, "normalize is 'no'; it must be True or False"),
        ((2,), {"sync": 1}, "sync is 1; it must be True or False"),
        ((2,), {"dtype": torch.int64}, "dtype is torch.int64; coefficients are float16"),
        ((2,), {"dtype": torch.complex64}, "dtype is torch.complex64; coefficients are float16"),
        ((2,), {"init": "glorot"}, "init is 'glorot'; it must be"),
        ((2,), {"init": {}}, "init is {}; it must be a name, a function"),
        ((2,), {"init": ["a", 1, 2]}, r"init is \['a', 1, 2\]; it must be a name, a function"),
        ((2,), {"init": [[1, 2], [3]]}, "init is .*; it must be a name, a function"),
        ((2,), {"init": np.ones((2, 3, 4))}, r"init is a tensor of shape \(2, 3, 4\)"),
        ((2,), {"init": 1.0}, r"init is 1\.0; it must be a name, a function"),
        (
            (2,),
            {"init": torch.zeros(4)},
            r"init is a tensor of shape \(4,\); it must have that of the coefficients, \(3,\)",
        ),
        ((2,), {"outside": "wrap"}, "outside is 'wrap'"),
        ((2,), {"domain": (2, 1)}, r"domain is \(2.0, 1.0\)"),
        ((2,), {"basis": "cheb"}, "unknown basis 'cheb'"),
        ((2,), {"basis": bases.Basis("short", [(1, 0, 0)])}, "table of length 1"),
    ],
)
def test_errors(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SLAF(*arguments, **options)
