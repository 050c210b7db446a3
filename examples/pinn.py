"""A physics-informed network for Poisson's equation u'' = g on (-1, 1) with u(-1) = u(1) = 0, with torch.compile.

The derivatives of u go through the layers forwards, beside its value: through a linear layer as they are, and through
an activation f by

    (f(u))' = f'(u) u'        (f(u))'' = f''(u) u'^2 + f'(u) u''

where `slaf_ext.derivatives` gives f, f' and f'' from the kernels. The loss then needs one backward pass, which
torch.compile supports. By torch.autograd.grad with create_graph=True it would need a backward pass through two others.

    python -m examples.pinn [--quick] [--plot FILE]
"""

from __future__ import annotations

import argparse
import math
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

import slaf_ext

WIDTH, POINTS, FREQUENCY = 64, 512, 2 * math.pi
RATE = 1e-2


def network() -> nn.ModuleList:
    sizes = (1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)
    layers: list[nn.Module] = []
    for inputs, outputs in sizes:
        layers += [nn.Linear(inputs, outputs), slaf_ext.SLAF(5, outputs, init="tanh", domain=(-3, 3))]
    return nn.ModuleList(layers[:-1])


def jet(layers: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, u' and u'' at x."""
    u, slope, curvature = x, torch.ones_like(x), torch.zeros_like(x)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            u = layer(u)
            slope, curvature = (functional.linear(t, layer.weight) for t in (slope, curvature))
        else:
            place = {"dim": layer.dim, "domain": layer.domain, "outside": layer.outside}
            u, first, second = slaf_ext.derivatives(u, layer.coeffs, 2, layer.basis, **place)
            slope, curvature = first * slope, second * slope.square() + first * curvature
    return u, slope, curvature


def jet_by_autograd(layers: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by derivatives of derivatives."""
    x = u = x.detach().requires_grad_()
    for layer in layers:
        u = layer(u)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return u, slope, curvature


def loss(layers: nn.ModuleList, x: Tensor, jet=jet) -> Tensor:
    u, _, curvature = jet(layers, x)
    residual = curvature + FREQUENCY**2 * torch.sin(FREQUENCY * x)  # the solution is u = sin(FREQUENCY x)
    return residual.square().mean() / FREQUENCY**4 + u[[0, -1]].square().mean()


def main() -> None:
    """Trains, and prints the error and what a step costs each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, without torch.compile")
    parser.add_argument("--plot", metavar="FILE", help="draw u, the exact solution and the error")
    options = parser.parse_args()
    quick = options.quick
    torch.manual_seed(0)
    layers, x = network(), torch.linspace(-1, 1, POINTS).unsqueeze(1)
    steps = 200 if quick else 2000
    optimizer = torch.optim.Adam(layers.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    ways = {"derivatives": loss, "autograd": lambda layers, x: loss(layers, x, jet_by_autograd)}
    if not quick:
        ways["derivatives, compiled"] = torch.compile(loss, fullgraph=True)
    for name, way in ways.items():
        for _ in range(3):
            way(layers, x).backward()
        start = perf_counter()
        for _ in range(20):
            way(layers, x).backward()
        print(f"{name:<22}{(perf_counter() - start) / 20 * 1e3:7.2f} ms for a loss and its gradients")
    for _ in range(steps):
        optimizer.zero_grad()
        ways.get("derivatives, compiled", loss)(layers, x).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        u, exact = jet(layers, x)[0], torch.sin(FREQUENCY * x)
    print(f"largest error of u after {steps} steps: {(u - exact).abs().max():.2g}")
    if options.plot:
        draw(x, u, exact, options.plot)


def draw(x: Tensor, u: Tensor, exact: Tensor, path: str) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    left.plot(x, exact, color="0.7", linewidth=4, label="exact solution")
    left.plot(x, u, label="network")
    left.set(xlabel="x", ylabel="u", ylim=(-1.2, 1.5))
    left.legend(loc="upper center", ncols=2)
    right.plot(x, u - exact)
    right.set(xlabel="x", ylabel="error of u")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
