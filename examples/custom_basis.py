"""A basis of one's own: polynomials that are orthonormal for the inputs that an activation was measured to have.

A small ReLU network learns scikit-learn's digits. The inputs of its activations on half of the images are a sample of
their distribution, from which the discrete Stieltjes procedure makes the rows (A, B, C) of a three-term recurrence
(W. Gautschi, Orthogonal Polynomials, Oxford 2004, section 2.2). That is all that slaf_ext.bases.Basis needs.

On the other half, a SLAF of degree 8 in each basis learns ReLU for those inputs, from coefficients of zero, by plain
gradient descent at the best constant step of each basis. Its loss is quadratic in the coefficients, so the condition
number of the normal equations bounds the number of steps. Bases that are made for an interval get the range of the
sample as their domain; for Hermite's, made for a normal distribution, inputs are scaled to mean 0 and variance 1.

    python -m examples.custom_basis [--quick] [--plot FILE]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slaf_ext import SLAF, basis_values
from slaf_ext.bases import Basis, get

DEGREE = 8
GAP = 0.001  # the share of the way from the first loss to the least one that is left at the end


def stieltjes(x: np.ndarray, degree: int) -> np.ndarray:
    """The rows (A, B, C) of the polynomials with mean φ_j φ_k = δ_jk over the sample."""
    rows, before, phi, scale = [], np.zeros_like(x), np.ones_like(x), 0.0
    for _ in range(degree):
        middle = np.mean(x * phi**2)
        following = (x - middle) * phi - scale * before
        norm = np.sqrt(np.mean(following**2))
        rows.append((1 / norm, -middle / norm, scale / norm))
        before, phi, scale = phi, following / norm, norm
    return np.array(rows)


def measured_inputs(steps: int) -> tuple[Tensor, Tensor]:
    """The inputs of the ReLUs of a trained network, on two halves of the images."""
    images, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    x = images.float() / 8 - 1
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimizer.step()
    with torch.no_grad():
        first, second = model[0](x).double().chunk(2)
    return first.flatten(), second.flatten()


def normal_equations(x: Tensor, basis: Basis, domain: tuple[float, float]) -> Tensor:
    """The matrix of the means of φ_j φ_k."""
    phi = basis_values(x, DEGREE, basis, domain=domain)
    return phi.T @ phi / len(x)


def descend(x: Tensor, basis: Basis, domain: tuple[float, float], most: int) -> np.ndarray:
    """The share of the loss that is left after each step, until it is below GAP or there were `most` steps."""
    f = SLAF(DEGREE, basis=basis, domain=domain, outside="extrapolate", init=[0.0] * (DEGREE + 1), dtype=x.dtype)
    y, phi = x.relu(), basis_values(x, DEGREE, basis, domain=domain)
    least = (phi @ torch.linalg.lstsq(phi, y).solution - y).square().mean()
    eigenvalues = 2 * torch.linalg.eigvalsh(normal_equations(x, basis, domain))  # of the loss's second derivative
    optimizer = torch.optim.SGD(f.parameters(), 2 / float(eigenvalues[0] + eigenvalues[-1]))
    left = []
    while len(left) <= most:
        loss = (f(x) - y).square().mean()
        left.append(loss.item() - least.item())
        if left[-1] < GAP * left[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(left) / left[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--plot", metavar="FILE", help="draw the basis over its sample, and the losses")
    options = parser.parse_args()
    most = 100 if options.quick else 5000
    torch.manual_seed(0)
    sample, x = measured_inputs(steps=20 if options.quick else 200)
    span = sample.min().item(), sample.max().item()
    own = Basis("measured", stieltjes(sample.numpy(), DEGREE), span)

    gram = normal_equations(sample, own, span)
    q, _ = np.linalg.qr(np.polynomial.legendre.legvander(np.interp(sample, span, (-1, 1)), DEGREE))
    phi = basis_values(sample, DEGREE, own).numpy()
    difference = np.abs(phi - q * np.sign(np.mean(q * phi, 0)) * np.sqrt(len(q))).max()
    print(f"{len(sample):,} inputs measured, from {span[0]:.3g} to {span[1]:.3g}")
    print(f"largest |mean of φ_j φ_k − δ_jk| over the sample: {(gram - torch.eye(DEGREE + 1)).abs().max():.1e}")
    print(f"largest difference of φ_k to numpy's QR: {difference:.1e}, of {np.abs(phi).max():.3g}\n")

    mean, deviation = sample.mean().item(), sample.std().item()
    places = {get(name): span for name in ("monomial", "chebyshev", "legendre")}
    places |= {get("hermite_e_normalized"): (mean - deviation, mean + deviation), own: span}
    curves = {}
    print(f"{'basis':<22}{'condition':>11}   steps to {GAP:.1%} of the loss above the least")
    for basis, domain in places.items():
        curves[basis.name] = left = descend(x, basis, domain, most)
        steps = f"{len(left) - 1:,}" if left[-1] < GAP else f"over {most:,}: {left[-1]:.1%} left"
        print(f"{basis.name:<22}{torch.linalg.cond(normal_equations(x, basis, domain)):>11.3g}   {steps}", flush=True)
    if options.plot:
        draw(sample, own, span, curves, options.plot)


def draw(sample: Tensor, own: Basis, span: tuple[float, float], curves: dict[str, np.ndarray], path: str) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    back = left.twinx()
    back.hist(sample, bins=80, color="0.85")
    back.set_yticks([])
    left.set_zorder(back.get_zorder() + 1)
    left.patch.set_visible(False)
    x = torch.linspace(*span, 400, dtype=torch.float64)
    for k, phi in enumerate(basis_values(x, 4, own, domain=span).T[1:], 1):
        left.plot(x, phi, label=rf"$\phi_{k}$")
    left.set(xlabel="x", ylim=(-4, 4))
    left.legend()
    for name, losses in curves.items():
        right.plot(losses, label=name)
    right.set_xscale("symlog", linthresh=1)
    right.set(xlim=(0, None), yscale="log", ylim=(None, 50), xlabel="steps", ylabel="share of the loss above the least")
    right.axhline(GAP, color="0.5", linestyle=":")
    right.legend(loc="upper right", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
