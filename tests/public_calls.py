"""Calls of every public function on CPU tensors, whose results must not depend on the default device or dtype."""

import copy
import functools
import io
import pickle

import numpy as np
import torch
from torch import nn

import slaf_ext
from slaf_ext import SLAF, bases, export, reference, training
from slaf_ext.activations import FUNCTIONS
from slaf_ext.convert import discovery
from slaf_ext.functional import normalized_slaf
from slaf_ext.series import from_chebyshev, to_numpy

HOST = {"device": "cpu", "dtype": torch.float32}

with torch.device("cpu"):
    X, A, ROWS = torch.linspace(-1.5, 1.5, 24).view(2, 4, 3), torch.tensor([0.5, 1.0, -0.25]), torch.randn(4, 3)
    W = torch.randn(2, 3, 4)  # of KANLinear
SPEC = reference.spec(A, "chebyshev", 1, (-1.0, 1.0), "linear")


def module(**options):
    return SLAF(2, 4, **{"init": "noisy_identity", **HOST, **options})


def network(activation=nn.Tanh):
    layers = nn.Linear(3, 4, **HOST), activation(), nn.Linear(4, 2, **HOST)
    return nn.Sequential(*layers)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = network()

    def forward(self, x):
        return torch.nn.functional.gelu(self.linear(x))


class WithConstant(nn.Module):
    """An activation that makes a constant on the default device, as a user's code may."""

    def forward(self, x):
        return x.sigmoid() * torch.maximum(x, torch.zeros(1, dtype=x.dtype))


def with_gradients(f, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = f(*leaves)
    first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
    return y, first, torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


def watched():
    model = nn.Sequential(module())
    seen = training.range_penalty(model)
    nothing = seen.penalty()
    model(3 * X)
    penalty = seen.penalty()
    seen.remove()
    return nothing, penalty


def gated():
    model = nn.Sequential(module())
    added, y = training.gate(model), model(X)
    training.ungate(model)
    return added, y, model(X)


def penalised(norm):
    model = nn.Sequential(module())
    training.coefficient_penalty(model, 0.01, norm=norm)
    return model[0].coeffs


def frozen():
    model = nn.Sequential(nn.Linear(3, 4, **HOST), module())
    training.freeze_weights(model)
    training.freeze_coefficients(model, frozen=True)
    turns = [training.alternate(model, step, 2) for step in range(4)]
    groups = training.param_groups(model, 1e-3)
    return turns, [p.requires_grad for p in training.weights(model)], [group["params"] for group in groups]


def replaced():
    model = network()
    return training.replace_activations(model, degree=3, every=1, init="gelu"), model[1].coeffs, model(X)


def converted(model, **options):
    new, report = slaf_ext.convert(model, X, degree=5, **options)
    return str(report), new(X)


def expanded(**options):
    activation = SLAF(2, 4, outside="extrapolate", **HOST, **options)
    model = nn.Sequential(nn.Linear(3, 4, **HOST), activation, nn.Linear(4, 2, **HOST)).eval()
    polynomial = slaf_ext.to_polynomial(model)
    return polynomial.coeffs, polynomial(X), str(polynomial.to_sympy())


def exported():
    net = nn.Sequential(
        nn.Linear(3, 4, **HOST), nn.BatchNorm1d(4, **HOST), module(domain=(-3, 4)), nn.MaxPool1d(2)
    ).eval()
    before, (p,) = str(export.check(net, 3 * X)), export.polynomials(net, X)
    folded = export.fold_batch_norm(net, X)
    names = ("numpy", "orion", "openfhe")
    again = export.from_json(export.to_json([p]))[0]
    return before, folded(X), [again.coefficients(name) for name in names], str(p.ranges), p.depth


def progressive(fine_tune=lambda model, penalty: (model(X), penalty())):
    model, report = training.convert_progressively(network(nn.GELU), X, fine_tune, degree=3, quantile=0.9)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    contracted = training.contract_ranges(model, X, fine_tune, rounds=2)
    return str(report), str(contracted), model(X)


def symmetric():
    model = module(domain=(-2, 2))
    training.parity(model, "odd")
    results = [model(X), model.coeffs]
    training.ungate(model)
    return [*results, model.coeffs]


def drawn(**options):
    f = module(**options)
    ax = f.plot(inputs=X)
    return [line.get_ydata() for line in ax.lines]


def overviewed():
    figure = slaf_ext.overview(nn.Sequential(module(), nn.Linear(3, 2, **HOST)), X)
    return [line.get_ydata() for line in figure.axes[0].lines]


def trained(**options):
    """The results of a module in training and evaluation mode, folded, pickled, saved, loaded and cast."""
    f = module(normalize=True, **options)
    results = [with_gradients(f, X), f(X.half()), f(2 * X), f.running_mean, f.running_var, f.num_batches_tracked]
    f.eval()
    results += [with_gradients(f, X), f.fold().coeffs, f.to_numpy(1).coef, f(X.bfloat16()), repr(f)]
    buffer = io.BytesIO()
    torch.save(f.state_dict(), buffer)
    buffer.seek(0)
    other = module(normalize=True, **options).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    again = copy.deepcopy(f), pickle.loads(pickle.dumps(f)), other
    results += [g(X) for g in again]
    results += [copy.deepcopy(f).double()(X.double()), f.state_dict()]
    f.reset_parameters()
    return [*results, f.state_dict()]


def classified():
    known = nn.ReLU(), nn.PReLU(**HOST), WithConstant(), nn.Linear(2, 2, **HOST), nn.Identity(), nn.Softmax(-1)
    checks = discovery.is_activation, discovery.is_elementwise, discovery.works_in_place
    return [[check(each) for each in known] for check in checks]


def scaled():
    results = []
    for channels in (None, 4):
        with torch.device("cpu"):
            f = training.MaxScale(channels, n=0.125).to(**HOST)
        results += [f(X), f.eval()(X), f.state_dict()]
    return results


FITS = {
    "a name": "gelu",
    "a function of tensors": torch.sigmoid,
    "a function of arrays": np.tanh,
    "a function of floats": lambda x: 0.5 if x > 0 else 0.25,
    "a function of floats that makes tensors": lambda x: torch.tensor(float(x), dtype=torch.float64).exp(),
    "a function of tensors that makes tensors": lambda x: torch.where(
        x > 0, torch.ones(1, dtype=torch.float64), x.exp()
    ),
}
INITS = ["identity", "variance_preserving", *FUNCTIONS, torch.sin, [1.0, 2.0, 3.0], A]
CASES = {
    "slaf": [
        *(
            lambda o=o: with_gradients(functools.partial(slaf_ext.slaf, domain=(-1, 1), outside=o), X, ROWS)
            for o in reference.OUTSIDE
        ),
        lambda: slaf_ext.slaf(X.half(), A),
        lambda: torch.func.jvp(lambda x: slaf_ext.slaf(x, A, outside="linear"), (X,), (X,)),
        lambda: torch.func.vmap(lambda x: slaf_ext.slaf(x, ROWS, outside="clamp", dim=0))(X),
        # Not torch.func.hessian, since jacrev of torch 2.11 makes a tensor on the default device.
        lambda: torch.func.jacfwd(torch.func.grad(lambda a: slaf_ext.slaf(X, a).square().sum()))(A),
        lambda: torch.compile(slaf_ext.slaf, backend="aot_eager")(X, ROWS, domain=(-1, 1), outside="linear"),
    ],
    "normalized_slaf": [
        *(
            lambda o=o: with_gradients(lambda x, a: normalized_slaf(x, a, outside=o)[0], X, ROWS)
            for o in reference.OUTSIDE
        ),
        lambda: normalized_slaf(X, A, sync=True),
        lambda: torch.func.jvp(lambda x: normalized_slaf(x, A)[0], (X,), (X,)),
    ],
    "derivatives": [lambda: slaf_ext.derivatives(X, ROWS, 2, domain=(-1, 1), outside="linear")],
    "kan_linear": [
        *(
            lambda o=o: with_gradients(functools.partial(slaf_ext.kan_linear, domain=(-1, 1), outside=o), X, W)
            for o in reference.OUTSIDE
        ),
        lambda: slaf_ext.kan_linear(X.half(), W),
        lambda: torch.func.jvp(lambda x: slaf_ext.kan_linear(x, W), (X,), (X,)),
    ],
    "KANLinear": [
        lambda: with_gradients(slaf_ext.KANLinear(3, 2, 4, **HOST), X),
        lambda: slaf_ext.KANLinear(3, 2, 2, domain=(-1, 1), **HOST).init_from(nn.Linear(3, 2, **HOST))(X),
    ],
    "basis_values": [lambda: slaf_ext.basis_values(X, 4, "bessel", domain=(-2, 2))],
    "SLAF": [
        *(lambda i=i: module(init=i, domain=(-2, 2))(X) for i in [*INITS, "noisy_identity"]),
        *(lambda i=i: with_gradients(module(init=i, normalize=True), X) for i in ("identity", "noisy_identity", A)),
        *(lambda o=o: with_gradients(module(domain=(-1, 1), outside=o), X) for o in reference.OUTSIDE),
        lambda: trained(),
        lambda: trained(momentum=None),
        lambda: trained(sync=True),
        lambda: (module().fold().coeffs, module().to_numpy(2).coef, SLAF(0, **HOST)(X), module().half()(X.half())),
        drawn,
        lambda: drawn(normalize=True),
    ],
    "fit": [
        *(
            lambda f=f, m=m: vars(slaf_ext.fit(f, 4, domain=(-3, 2), method=m))
            for f in FITS.values()
            for m in ("lstsq", "interpolate")
        ),
        lambda: vars(slaf_ext.fit("gelu", 4, "legendre", domain=None, method="minimax")),
        lambda: slaf_ext.fit("relu", 4, domain=(-2, 2), weight="normal")(np.linspace(-1, 1, 9)),
    ],
    "convert": [
        lambda: converted(network()),
        lambda: converted(network(nn.GELU), method="lstsq", outside="extrapolate", margin=0.1),
        lambda: converted(network(lambda: nn.PReLU(**HOST))),
        lambda: converted(Functional()),
        lambda: converted(nn.TransformerEncoderLayer(3, 1, 8, **HOST)),
    ],
    "export": [exported],
    "to_polynomial": [expanded, lambda: expanded(normalize=True, domain=(-2, 2))],
    "overview": [overviewed],
    "reference": [
        lambda: with_gradients(functools.partial(reference.slaf, domain=(-1, 1), outside="linear"), X, ROWS),
        lambda: reference.naive(X, A),
        lambda: reference.basis_values(X, 3),
        lambda: reference.expand(X, A, *SPEC),
        lambda: reference.input_gradient(X, X, A, *SPEC),
        lambda: reference.coeffs_gradient(X, X, ROWS, *SPEC),
        lambda: reference.normalized(X, ROWS, *SPEC, eps=1e-5),
        lambda: reference.normalized(X, ROWS[:, :1], *SPEC._replace(recurrence=()), eps=1e-5),
        lambda: reference.fold(ROWS, ROWS[:, 1:], ROWS[:, 1:].square(), 1e-5),
        lambda: SPEC._replace(center=0.125).packed,
    ],
    "training": [
        watched,
        gated,
        lambda: penalised(1),
        lambda: penalised(2),
        frozen,
        replaced,
        scaled,
        progressive,
        symmetric,
        lambda: training.slafs(nn.Sequential(module()))[0].coeffs,
    ],
    "bases": [lambda: bases.get("legendre").table(3), lambda: bases.mapped(bases.get("bessel"), 3, (0, 2)).rows],
    "activations": [classified],
    "series": [lambda: to_numpy(np.ones(3), "taylor").coef, lambda: from_chebyshev(np.ones(3), "legendre")],
}
