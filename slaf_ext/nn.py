"""The activation as a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import bases
from .arguments import DTYPES, check_dense, check_dim, check_eps, check_outside
from .bases import Basis
from .fit import FUNCTIONS, fit
from .functional import basis_values, normalized_slaf, slaf
from .ops import LARGE_VARIANCE, fold, is_beyond_float32
from .plot import draw
from .series import Series, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SLAF(nn.Module):
    """A self-learnable activation function: f(x) = Σ_k a_k φ_k(x), element by element, with trained a_k.

    With nothing else said it starts near GELU on (−4, 4) and goes on along its tangents, which trains from scratch; see
    :func:`slaf_ext.training.recipe` for more. A polynomial everywhere takes ``outside="extrapolate"``.

    Args:
        degree: n; the module has n + 1 coefficients a group.
        num_groups: 1 for one polynomial for all of x; else G polynomials for G groups of neighbours
            along `dim`, such as the channels. ``x.shape[dim]`` must be a multiple of it.
        basis: the φ_k, a name or a :class:`slaf_ext.bases.Basis`.
        dim: the dimension of x along which the groups lie: 1 for (N, C, …), −1 for (…, features).
        domain: (lo, hi), mapped affinely onto the basis's window; None for no map.
        outside: "extrapolate", "clamp" or "linear", see :func:`slaf_ext.slaf`: what f does beyond the domain, or
            without one beyond the basis's window, (−1, 1) for most. None for "linear", or with `normalize` "clamp", or
            without a domain "extrapolate".
        init: how the coefficients start: "identity", f(x) = x; "noisy_identity", the paper's: f(x) = x
            plus a standard normal draw on every coefficient but the constant, which gets 0.1; "variance_preserving":
            random, and f(X) has mean 0 and variance 1 for a standard normal X; the name of an activation
            ("relu", "gelu", …) or a function, which :func:`slaf_ext.fit` fits by least squares on the domain, or,
            without one, on the window; or a tensor or an array of shape (K,) or (G, K). None for "gelu", or with
            `normalize` "identity".
        normalize: the paper's normalised form, for which the first column of the coefficients is a bias β and the
            others are weights w_k: f(x) = β + Σ_k w_k (φ_k(x) − μ_k) / sqrt(v_k + eps), k = 1 … n. In training mode μ_k
            and v_k are the mean and the biased variance of φ_k(x) over the elements of a group, and gradients flow
            through them; in evaluation mode running averages stand for them. `init` gives β and the w_k then, and
            "identity" means β = 0, w_1 = 1, the others 0: x normalised.
        momentum: running = (1 − momentum) · running + momentum · batch; None for the average of all batches.
        eps: what is added to the variance.
        sync: with `normalize`, take the statistics over all ranks of torch.distributed's default group in training, as
            nn.SyncBatchNorm does. Every rank must run the module then; a batch may be empty on some. Plain PyTorch.
        device, dtype: of the coefficients; float32 ones serve half-precision input too.

    Shape:
        Input and output: any shape, the same.

    Attributes:
        coeffs: the parameter, (K,) where num_groups is 1, else (G, K), K = degree + 1, low order first.
        running_mean, running_var, num_batches_tracked: buffers, with `normalize` only; the first two are float64, of
            shape (K − 1,) or (G, K − 1), and start at 0 and 1. A batch without elements leaves them alone, and so does
            a mean or a variance that is not finite.

    Raises:
        ValueError: an argument out of its range; the message says which.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(3, basis="legendre", init="identity")
        >>> f
        SLAF(3, basis='legendre', domain=(-4.0, 4.0), outside='linear')
        >>> f(torch.tensor([[1.0, -2.0]]))
        tensor([[ 1., -2.]], grad_fn=<SlafFunctionBackward>)

    Source: arXiv:1906.09529; the noisy identity is that of its authors' code.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        degree: int,
        num_groups: int = 1,
        *,
        basis: str | Basis = "chebyshev",
        dim: int = 1,
        domain: tuple[float, float] | None = (-4.0, 4.0),
        outside: str | None = None,
        init: str | Tensor | np.ndarray | Sequence | Callable | None = None,
        normalize: bool = False,
        momentum: float | None = 0.01,
        eps: float = 1e-5,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.degree = bases.check_degree(degree)
        self.num_groups = num_groups = bases.check_integer(num_groups, "num_groups", 1)
        self.basis = bases.get(basis)
        self.dim = check_dim(dim)
        self.domain = None if domain is None else bases.check_interval(domain, "domain")
        self.normalize = bases.check_bool(normalize, "normalize")
        usual_outside, usual_init = ("clamp", "identity") if self.normalize else ("linear", "gelu")
        if domain is None:
            usual_outside = "extrapolate"
        self.outside = check_outside(usual_outside if outside is None else outside)
        self.init = as_init(usual_init if init is None else init)
        if momentum is not None:
            momentum = bases.check_real(momentum, "momentum", lambda t: 0 <= t <= 1, "a number from 0 to 1, or None")
        self.momentum = momentum
        self.eps = check_eps(eps)
        self.sync = bases.check_bool(sync, "sync")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; coefficients are float16, bfloat16, float32 or float64")
        shape = (self.degree + 1,) if num_groups == 1 else (num_groups, self.degree + 1)
        self.coeffs = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if normalize:
            # In float64 whatever the dtype: a variance is of the size of φ_k², beyond float32 where φ_k is not.
            statistics = self.coeffs.detach()[..., 1:].double()
            self.register_buffer("running_mean", torch.zeros_like(statistics))
            self.register_buffer("running_var", torch.ones_like(statistics))
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives the coefficients the values that `init` names, and the running statistics theirs."""
        start = initial_normalized if self.normalize else initial_coeffs
        self.coeffs.copy_(start(self.init, self.degree, self.basis, self.domain, self.coeffs))
        if self.normalize:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        place: dict[str, Any] = {"dim": self.dim, "domain": self.domain, "outside": self.outside}
        if not self.normalize:
            return slaf(x, self.coeffs, self.basis, **place)
        check_dense(x)
        if not self.training or (x.numel() == 0 and not self.sync):
            folded = self._folded_coeffs()
            if is_beyond_float32(x, self.running_var):
                return slaf(x.double(), folded, self.basis, **place).to(x.dtype)
            return slaf(x, folded.to(self._wide), self.basis, **place)
        y, mean, var = normalized_slaf(x, self.coeffs, self.basis, eps=self.eps, sync=self.sync, **place)
        if x.numel() or not mean.isnan().all():  # no rank had elements
            self._track(mean, var)
        return y

    def _apply(self, fn: Callable, recurse: bool = True) -> SLAF:
        kept = {name: buffer for name, buffer in self._buffers.items() if name.startswith("running_")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            assert before is not None
            assert after is not None
            if after.dtype != torch.float64:
                self._buffers[name] = before.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Older checkpoints hold them in the dtype of the coefficients, and `assign=True` takes them as they are.
        for key in (f"{prefix}running_mean", f"{prefix}running_var"):
            if key in state_dict:
                state_dict[key] = state_dict[key].double()
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def _wide(self) -> torch.dtype:
        """The dtype of what is computed from half-precision coefficients."""
        return torch.promote_types(self.coeffs.dtype, torch.float32)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else self.num_batches_tracked.double().reciprocal()
        # What has left the range of float64, or is NaN, must not spoil what comes after it.
        usable = mean.isfinite() & var.isfinite()
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            running.copy_(torch.where(usable, running.double().lerp(batch, share), running))

    def _folded_coeffs(self) -> Tensor:
        return fold(self.coeffs, self.running_mean, self.running_var, self.eps)

    @torch.no_grad()
    def fold(self) -> SLAF:
        """A plain SLAF that equals this module in evaluation mode, with parameters of its own.

        Folding [arXiv:1906.09529's authors' test-time form]: a_k = w_k / sqrt(v_k + eps) and
        a_0 = β − Σ_k w_k μ_k / sqrt(v_k + eps), computed in float64. A plain module gives a copy of itself. The folded
        coefficients of a normalised module in half precision are float32, for they may be large.

        Example:
            >>> import torch, slaf_ext
            >>> f = slaf_ext.SLAF(2, basis="monomial", domain=None, normalize=True, momentum=None)
            >>> _ = f(torch.tensor([1.0, 3.0]))                    # mean 2, variance 1
            >>> f.fold().coeffs.detach().round(decimals=3)
            tensor([-2.,  1.,  0.])
        """
        coeffs = self._folded_coeffs() if self.normalize else self.coeffs
        if self.normalize and self._wide != torch.float64 and bool((self.running_var > LARGE_VARIANCE).any()):
            raise ValueError(
                f"a running variance is {self.running_var.max():.3g}, and float32 does not hold the folded "
                "coefficients that go with it; fold the module in float64: f.double().fold()"
            )
        plain = SLAF(
            self.degree,
            self.num_groups,
            basis=self.basis,
            dim=self.dim,
            domain=self.domain,
            outside=self.outside,
            init=coeffs,
            device=self.coeffs.device,
            dtype=self._wide if self.normalize else self.coeffs.dtype,
        )
        return plain.train(self.training)

    def to_numpy(self, group: int = 0) -> Series:
        """The polynomial of one group as a numpy.polynomial object with its domain, in float64; folded if normalised.

        Bases that numpy has keep their class and coefficients; any other becomes the equal
        `numpy.polynomial.Chebyshev`. What `outside` does beyond the domain has no place in it.

        Raises:
            ValueError: there is no such group.

        Example:
            >>> import slaf_ext
            >>> p = slaf_ext.SLAF(2, basis="legendre", init="relu", domain=(-2, 2)).to_numpy()
            >>> type(p).__name__, p.domain.tolist(), round(float(p(1.0)), 4)
            ('Legendre', [-2.0, 2.0], 0.9219)
        """
        if isinstance(group, bool) or not isinstance(group, (int, np.integer)) or not 0 <= group < self.num_groups:
            raise ValueError(f"group is {group!r}; this module has the groups 0 to {self.num_groups - 1}")
        row = (
            (self._folded_coeffs() if self.normalize else self.coeffs)
            .detach()
            .double()
            .cpu()
            .reshape(self.num_groups, -1)[group]
        )
        return to_numpy(row.numpy(), self.basis, self.domain)

    @torch.no_grad()
    def plot(self, ax: Axes | None = None, *, inputs: Tensor | None = None, max_groups: int = 16) -> Axes:
        """Draws the learned curve of every group, over a histogram of inputs where some are given.

        A normalised module is drawn as it is in evaluation mode. With inputs, a curve spans those of its group;
        without, the domain and a tenth of it on either side. Dotted lines mark the domain. A legend, or a colour bar of
        more than eight, tells the groups apart. The picture is as high, and with inputs as wide, as it takes to show
        where most groups are for most of the inputs: a curve that soars leaves it.

        Args:
            ax: the matplotlib axes to draw on; None for new ones.
            inputs: inputs that were seen; of these, about a million serve. They need not have the module's groups along
                `dim`; every curve spans all of them then.
            max_groups: of more groups than that, this many are drawn, evenly chosen; the key says of how many.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: inputs that are no tensor, or a complex one.
            ValueError: max_groups is no integer from 1 up.

        Example:
            >>> import slaf_ext
            >>> ax = slaf_ext.SLAF(5, init="gelu", domain=(-3, 3)).plot()  # doctest: +SKIP
        """
        return draw(self, ax, inputs, max_groups)

    def extra_repr(self) -> str:
        parts = [str(self.degree)]
        if self.num_groups != 1:
            parts.append(f"num_groups={self.num_groups}")
        parts.append(f"basis={self.basis.name!r}")
        if self.num_groups != 1 and self.dim != 1:
            parts.append(f"dim={self.dim}")
        if self.domain is not None:
            parts.append(f"domain={self.domain}")
        if self.outside != "extrapolate":
            parts.append(f"outside={self.outside!r}")
        if self.normalize:
            parts.append(f"normalize=True, momentum={self.momentum}, eps={self.eps}" + ", sync=True" * self.sync)
        return ", ".join(parts)


Init = str | Tensor | Callable


def as_init(init: str | Tensor | np.ndarray | Sequence | Callable) -> Init:
    """`init` as a name, a function or a tensor of its own."""
    if isinstance(init, str) or (callable(init) and not isinstance(init, Tensor)):
        return init
    if isinstance(init, Tensor):
        return init.detach().clone()
    try:
        array = np.array(init, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim == 0:
        raise ValueError(
            f"init is {init!r}; it must be a name, a function of x, or a tensor or an array of coefficients"
        )
    return torch.from_numpy(array)


def initial_coeffs(init: Init, degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor) -> Tensor:
    """The values that `init` names, for a parameter like `coeffs`. Every kind of start has its place here."""
    if isinstance(init, Tensor):
        if init.shape not in (coeffs.shape, coeffs.shape[-1:]):
            raise ValueError(
                f"init is a tensor of shape {tuple(init.shape)}; it must have that of the coefficients, "
                f"{tuple(coeffs.shape)}, or be one row of them, {tuple(coeffs.shape[-1:])}"
            )
        return init.to(coeffs).expand_as(coeffs)
    identity = torch.from_numpy(identity_coeffs(degree, basis, domain)).to(coeffs).expand_as(coeffs)
    if init == "identity":
        return identity
    if init == "noisy_identity":
        noisy = identity + torch.randn_like(coeffs)
        noisy[..., 0] = identity[..., 0] + 0.1
        return noisy
    if init == "variance_preserving":
        return variance_preserving(degree, basis, domain, coeffs)
    if not callable(init) and init not in FUNCTIONS:
        raise ValueError(
            f"init is {init!r}; it must be 'identity', 'noisy_identity', 'variance_preserving', a tensor, a function "
            f"or the name of one: {', '.join(FUNCTIONS)}"
        )
    return torch.from_numpy(fit(init, degree, basis, domain=domain).coeffs).to(coeffs).expand_as(coeffs)


def variance_preserving(
    degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor, inputs: int = 64
) -> Tensor:
    """Random rows with E f(X) = 0 and E f(X)² = 1 for a standard normal X, by Gauss-Hermite quadrature.

    Every φ_k but the constant gets a standard normal share of the deviation; the whole is then shifted and scaled.
    """
    if degree == 0:
        raise ValueError("init='variance_preserving' needs degree 1 or more; a constant has no variance")
    x, weights = np.polynomial.hermite_e.hermegauss(max(inputs, degree + 1))
    phi = basis_values(torch.from_numpy(x), degree, basis, domain=domain)
    w = torch.from_numpy(weights / weights.sum())
    mean = w @ phi
    covariance = (phi - mean).T @ (w[:, None] * (phi - mean))
    shares = torch.randn(coeffs.shape, dtype=torch.float64, device="cpu")
    shares[..., 1:] /= covariance.diagonal()[1:].sqrt()
    shares[..., 0] = 0
    rows = shares / torch.einsum("...i,ij,...j->...", shares, covariance, shares).sqrt().unsqueeze(-1)
    rows[..., 0] = -(rows @ mean)
    return rows.to(coeffs)


def initial_normalized(
    init: Init, degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor
) -> Tensor:
    """The β and w_k that `init` names. The terms have unit variance, so neither basis nor domain matters."""
    if isinstance(init, Tensor):
        return initial_coeffs(init, degree, basis, domain, coeffs)
    if init not in ("identity", "noisy_identity"):
        raise ValueError(
            f"init is {init!r} and normalize is True; the coefficients weigh normalised terms then, so init must be "
            "'identity', 'noisy_identity' or a tensor of (β, w_1, …)"
        )
    start = torch.zeros_like(coeffs) if init == "identity" else torch.randn_like(coeffs)
    start[..., 0] = 0.0 if init == "identity" else 0.1
    start[..., 1:2] += 1
    return start


def identity_coeffs(degree: int, basis: Basis, domain: tuple[float, float] | None) -> np.ndarray:
    """The a_k of f(x) = x. A polynomial of degree 0 comes nearest with the middle of the domain."""
    mapped = bases.mapped(basis, degree, domain)
    coeffs = np.zeros(degree + 1)
    if degree == 0:
        coeffs[0] = mapped.center if domain is not None else 0.5 * math.fsum(basis.domain)
        return coeffs
    # φ_1 = A_0 (x − center) + B_0
    a, b, _ = mapped.rows[:3]
    coeffs[:2] = mapped.center - b / a, 1 / a
    return coeffs
