"""A step of training of small networks, or a block of one, on synthetic data, with one activation or another."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import slaf_ext
from slaf_ext import bases

from . import measure, variants
from .cases import DTYPES, Entry, Unit

Activation = Callable[[], nn.Module]
CLASSES = 10


class Polynomial(nn.Module):
    """One polynomial for the layer, near the identity, by the form of one of the variants."""

    def __init__(self, form: variants.Form, coeffs: Tensor) -> None:
        super().__init__()
        self.form = form
        self.coeffs = nn.Parameter(coeffs.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.coeffs)


def activation(entry: Entry) -> Activation:
    """Makes the entry's activation; all layers share one compiled function."""
    if entry.variant in ("relu", "gelu"):
        return {"relu": nn.ReLU, "gelu": nn.GELU}[entry.variant]
    make, _ = variants.POLYNOMIALS[entry.variant]
    coeffs, _ = start(entry)
    return functools.partial(Polynomial, make(entry.case), coeffs.float())


def start(entry: Entry) -> tuple[Tensor, str]:
    """The coefficients to begin with, float64, and the basis in which the variant takes them.

    They are the identity, bent so slightly that seventeen of them in a row still map 10 to something finite.
    """
    coeffs = 0.1 * 16.0 ** -torch.arange(entry.case.degree + 1, dtype=torch.float64)
    coeffs[:2] = torch.tensor([0.0, 1.0])
    coeffs = coeffs.to(DTYPES[entry.case.dtype]).double()
    _, powers = variants.POLYNOMIALS[entry.variant]
    if not powers:
        return coeffs, entry.case.recurrence
    return torch.tensor(variants.to_monomials(coeffs.numpy(), bases.get(entry.case.recurrence))), "monomial"


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


class Block(nn.Module):
    def __init__(self, act: Activation, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), act(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norms[1](x))


def vit(act: Activation) -> nn.Module:
    """Four blocks of width 192 on the 64 patches of an image of 32 x 32."""
    width = 192
    patches = nn.Conv2d(3, width, 4, 4), nn.Flatten(2), _Transpose()
    return nn.Sequential(
        *patches, *(Block(act, width, 3) for _ in range(4)), _MeanOverTokens(), nn.Linear(width, CLASSES)
    )


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _MeanOverTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


# Blocks alone: a transformer's MLP, and the first block of ResNet-18.
def mlp_block(act: Activation) -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 4096), act(), nn.Linear(4096, 1024))


def resnet_block(act: Activation) -> nn.Module:
    return nn.Sequential(Residual(act, 64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS = {
    "mlp": (mlp, (784,)),
    "resnet": (resnet, (3, 32, 32)),
    "vit": (vit, (3, 32, 32)),
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
    """The network as it is run: eagerly, or compiled as a whole."""
    whole = (entry.network or "").startswith("compiled ")
    return variants.compile_afresh(lambda x: model(x)) if whole else model


def training_step(model: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        loss = functional.cross_entropy(run(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that the gradients count as memory of the step
        return loss

    return step


# Through batch_norm and seventeen layers the gradients in the coefficients were seen to lose up to 4e-5. At relu's kink
# rounding chooses the gradient of an element.
LIMITS = {"fp32": 1e-3, "bf16": 1e-1}
LIMITS_OF_RELU = {"fp32": 1e-2, "bf16": 1e-1}


def check(entry: Entry, model: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> dict[str, float]:
    """The error of the first loss and of its gradients, against the network in float64.

    The gradients are those in the first weights and in the coefficients of every activation, each relative to its
    largest value. Where the network's own rounding loses more than the limit, plain PyTorch's error in its place is
    the yardstick.

    Raises:
        measure.Wrong: one is beyond what rounding explains.
    """
    plain = _in_plain_pytorch(entry, torch.float64)
    true = _first(plain, plain, x.double(), labels)
    limit = (LIMITS_OF_RELU if entry.variant == "relu" else LIMITS)[entry.case.dtype]
    found: dict[str, float] = {}
    for i, (name, got) in enumerate(_first(model, run, x, labels)):
        error = _relative_error(got, true[i][1])
        if not error <= limit:
            plain = _in_plain_pytorch(entry, x.dtype)
            by_rounding = _relative_error(_first(plain, plain, x, labels)[i][1], true[i][1])
            if not error <= 2 * by_rounding:
                raise measure.Wrong(
                    f"the {name} is off by {error:.1e} of its largest value; the limit is {limit:.0e}, and in plain "
                    f"PyTorch it is off by {by_rounding:.1e}"
                )
        found[name] = max(found.get(name, 0.0), error)
    return found


def _in_plain_pytorch(entry: Entry, dtype: torch.dtype) -> nn.Module:
    """The network in a dtype, with polynomials that the package's kernels have no part in."""
    model, x, _ = build(entry)
    for module in model.modules():
        if isinstance(module, Polynomial):
            coeffs, basis = start(entry)
            module.form = functools.partial(slaf_ext.reference.slaf, basis=basis)
            module.coeffs = nn.Parameter(coeffs.to(x.device))
    return model.to(dtype)


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def _first(network: nn.Module, run: Callable, x: Tensor, labels: Tensor) -> list[tuple[str, Tensor]]:
    """The first loss and the gradients that are checked, float64."""
    loss = functional.cross_entropy(run(x), labels)
    coeffs = [module.coeffs for module in network.modules() if isinstance(module, Polynomial)]
    weights, *rest = torch.autograd.grad(loss, [next(network.parameters()), *coeffs])
    named = [("loss", loss.detach()), ("gradient", weights), *(("gradient in the coefficients", g) for g in rest)]
    return [(name, t.double()) for name, t in named]


def times(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """Checks the networks and measures their steps in rounds."""
    torch._dynamo.reset()
    records, clocks = [], []
    for entry in unit.entries:
        measure.enter(entry.case)
        tick(f"{entry.network} {entry.variant}")
        try:
            model, *batch = build(entry)
            run = forward(entry, model)
            with measure.compiling(entry):
                record: dict = {"errors": check(entry, model, run, *batch)}
            clock = measure.Clock(training_step(model, run, *batch), entry.case)
        except measure.Wrong as reason:
            record, clock = {"refused": str(reason)}, None
        except Exception as reason:  # as in measure
            record, clock = {"skipped": measure.first_line(reason)}, None
        records.append({**entry.as_json(), **record})
        clocks.append(clock)
    measure.interleave(records, clocks, unit.seconds, tick)
    return records
