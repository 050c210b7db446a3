"""Training steps of small networks, and of blocks of one, with different activations, on synthetic data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import slaf_ext

from . import measure, variants
from .cases import DTYPES, Entry, Unit
from .check import Wrong, relative_error

Activation = Callable[[], nn.Module]
CLASSES = 10


class Polynomial(nn.Module):
    """One polynomial for the layer, computed by a variant's form."""

    def __init__(self, form: variants.Form, coeffs: Tensor) -> None:
        super().__init__()
        self.form = form
        self.coeffs = nn.Parameter(coeffs.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.coeffs)


def activation(entry: Entry) -> Activation:
    """A factory of the entry's activation; all layers share one compiled function."""
    if entry.variant in ("relu", "gelu"):
        return {"relu": nn.ReLU, "gelu": nn.GELU}[entry.variant]
    make, _ = variants.POLYNOMIALS[entry.variant]
    return functools.partial(Polynomial, make(entry.case), start(entry)[0].float())


def start(entry: Entry) -> tuple[Tensor, str]:
    """The initial coefficients, float64, and the basis in which the variant takes them.

    They are close to the identity, so that seventeen of them in a row stay finite.
    """
    coeffs = 0.1 * 16.0 ** -torch.arange(entry.case.degree + 1, dtype=torch.float64)
    coeffs[:2] = torch.tensor([0.0, 1.0])
    coeffs = coeffs.to(DTYPES[entry.case.dtype]).double()
    _, in_powers = variants.POLYNOMIALS[entry.variant]
    return (
        (variants.to_monomials(coeffs, entry.case.recurrence), "monomial") if in_powers else (coeffs, entry.case.basis)
    )


def mlp(act: Activation) -> nn.Module:
    sizes = 784, 1024, 1024
    hidden = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.BatchNorm1d(o), act())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], CLASSES))


class Residual(nn.Module):
    def __init__(self, act: Activation, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), act(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))


def resnet(act: Activation) -> nn.Module:
    """ResNet-18's four stages of two blocks, for images of 32 x 32, half as wide."""
    widths = 32, 32, 64, 128, 256
    blocks = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        blocks += [Residual(act, inputs, outputs, 2 if i else 1), Residual(act, outputs, outputs, 1)]
    stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), act()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


class VisionTransformer(nn.Module):
    """Four blocks of width 192 on the 64 patches of an image of 32 x 32."""

    def __init__(self, act: Activation, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        options = {"dropout": 0, "batch_first": True, "norm_first": True}
        blocks = (nn.TransformerEncoderLayer(width, 3, 4 * width, activation=act(), **options) for _ in range(4))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def mlp_block(act: Activation, width: int = 1024) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), act(), nn.Linear(4 * width, width))


def resnet_block(act: Activation) -> nn.Module:
    """The first block of ResNet-18."""
    return nn.Sequential(Residual(act, 64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS: dict[str, tuple[Callable[[Activation], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (784,)),
    "resnet": (resnet, (3, 32, 32)),
    "vit": (VisionTransformer, (3, 32, 32)),
    "mlp block": (mlp_block, (1024,)),
    "resnet block": (resnet_block, (64, 56, 56)),
}


def build(entry: Entry) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, a batch and its labels; the same weights and data for every variant."""
    make, shape = NETWORKS[(entry.network or "").removeprefix("compiled ")]
    torch.manual_seed(0)
    model = make(activation(entry))
    x = torch.randn(*entry.case.shape, *shape)
    labels = torch.randint(CLASSES, entry.case.shape)
    options = {"device": entry.case.device, "dtype": DTYPES[entry.case.dtype]}
    return model.to(**options), x.to(**options), labels.to(entry.case.device)


def forward(entry: Entry, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network's forward pass, eager or compiled as a whole."""
    whole = (entry.network or "").startswith("compiled ")
    return variants.compile_afresh(lambda x: model(x)) if whole else model


def training_step(model: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        loss = functional.cross_entropy(run(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that the gradients count towards the step's memory
        return loss

    return step


# Through batch_norm and seventeen layers the coefficients' gradients were seen to lose up to 4e-5 in fp32.
LIMITS = {"fp32": 1e-3, "bf16": 1e-1}


def check(entry: Entry, model: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> dict[str, float]:
    """The errors of the first loss and of its gradients, against the network in float64.

    The gradients are those in the first weights and in every activation's coefficients. An error beyond the limit is
    accepted if the network in plain PyTorch, in the entry's own dtype, has at least half of it: at relu's kink, for
    example, rounding chooses an element's gradient.

    Raises:
        Wrong: an error is larger than rounding explains.
    """

    def plain(dtype: torch.dtype) -> list[tuple[str, Tensor]]:
        network = _in_plain_pytorch(entry, dtype)
        return _first_step(network, network, x.to(dtype), labels)

    found: dict[str, float] = {}
    steps = zip(_first_step(model, run, x, labels), plain(torch.float64), plain(x.dtype), strict=True)
    for (name, value), (_, exact), (_, rounded) in steps:
        error, by_rounding = relative_error(value, exact), relative_error(rounded, exact)
        if not error <= max(limit := LIMITS[entry.case.dtype], 2 * by_rounding):
            raise Wrong(
                f"the {name} is off by {error:.1e} of its largest value; the limit is {limit:.0e}, and in plain "
                f"PyTorch it is off by {by_rounding:.1e}"
            )
        found[name] = max(found.get(name, 0.0), error)
    return found


def _in_plain_pytorch(entry: Entry, dtype: torch.dtype) -> nn.Module:
    """The network in a dtype, with polynomials that do not use the package's kernels."""
    model, x, _ = build(entry)
    for module in model.modules():
        if isinstance(module, Polynomial):
            coeffs, basis = start(entry)
            module.form = functools.partial(slaf_ext.reference.slaf, basis=basis)
            module.coeffs = nn.Parameter(coeffs.to(x.device))
    return model.to(dtype)


def _first_step(network: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> list[tuple[str, Tensor]]:
    """The first loss and the gradients to check, float64."""
    loss = functional.cross_entropy(run(x), labels)
    coeffs = [module.coeffs for module in network.modules() if isinstance(module, Polynomial)]
    weights, *rest = (g.double() for g in torch.autograd.grad(loss, [next(network.parameters()), *coeffs]))
    return [
        ("loss", loss.detach().double()),
        ("gradient", weights),
        *(("gradient in the coefficients", g) for g in rest),
    ]


def times(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """A record for each entry: training steps measured in rounds."""
    torch._dynamo.reset()
    measure.enter(unit.entries[0].case)
    return measure.in_rounds(unit, _checked, tick, {})


def _checked(entry: Entry) -> tuple[dict, measure.Clock]:
    model, *batch = build(entry)
    run = forward(entry, model)
    with measure.compiling(entry):
        errors = check(entry, model, run, *batch)
    return {"errors": errors}, measure.Clock(training_step(model, run, *batch), entry.case)
