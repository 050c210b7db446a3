"""The activation as a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils import parametrize

from . import bases
from .arguments import DTYPES, check_dense, check_dim, check_eps, check_outside
from .bases import Basis
from .functional import normalized_slaf, slaf
from .init import as_init, initial_coeffs, initial_normalized
from .ops import LARGE_VARIANCE, fold, is_beyond_float32
from .plot import draw
from .series import Series, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SLAF(nn.Module):
    """A self-learnable activation function: f(x) = Σ_k a_k φ_k(x), element by element, with trained a_k.

    By default it starts near GELU on (−4, 4) and continues along the tangents outside, which trains from scratch; for
    other uses see :func:`slaf_ext.training.recipe`. ``outside="extrapolate"`` gives a polynomial everywhere.

    Args:
        degree: n; the module has n + 1 coefficients for each group.
        num_groups: 1 for one polynomial for all of x; or G polynomials, one for each of G groups of neighbouring
            indices along `dim`, such as the channels. ``x.shape[dim]`` must be a multiple of it.
        basis: the φ_k, a name or a :class:`slaf_ext.bases.Basis`.
        dim: the dimension of x that the groups divide: 1 for (N, C, …), −1 for (…, features).
        domain: (lo, hi), mapped affinely onto the basis's window; None for no map.
        outside: "extrapolate", "clamp" or "linear", see :func:`slaf_ext.slaf`: what f does outside the domain, or, if
            that is None, outside the basis's window, (−1, 1) for most. None for "extrapolate" without a domain, else
            "clamp" with `normalize`, else "linear".
        init: the initial coefficients: "identity", f(x) = x; "noisy_identity", the paper's: f(x) = x plus a standard
            normal sample on every coefficient except the constant, which gets 0.1; "variance_preserving": random, so
            that f(X) has mean 0 and variance 1 for a standard normal X; the name of an activation ("relu", "gelu", …)
            or a function, which :func:`slaf_ext.fit` fits by least squares on the domain, or, without one, on the
            window; or a tensor or an array of shape (K,) or (G, K). None for "identity" with `normalize`, else "gelu".
        normalize: the paper's normalised form, in which the first column of the coefficients is a bias β and the
            others are weights w_k: f(x) = β + Σ_k w_k (φ_k(x) − μ_k) / sqrt(v_k + eps), k = 1 … n. In training mode μ_k
            and v_k are the mean and the biased variance of φ_k(x) over the elements of a group, and gradients flow
            through them; in evaluation mode running averages replace them. `init` then gives β and the w_k, and
            "identity" means β = 0, w_1 = 1 and all others 0: x normalised.
        momentum: running = (1 − momentum) · running + momentum · batch; None for the average of all batches.
        eps: a constant added to the variance.
        sync: with `normalize`, take the statistics over all ranks of torch.distributed's default group in training, as
            nn.SyncBatchNorm does. In plain PyTorch. Every rank must then run the module; batches may be empty on some.
        device, dtype: of the coefficients; float32 coefficients also work with half-precision input.

    Shape:
        Input and output: any shape, the same.

    Attributes:
        coeffs: the parameter, (K,) where num_groups is 1, else (G, K), K = degree + 1, low order first.
        running_mean, running_var, num_batches_tracked: buffers, with `normalize` only; the first two are float64, of
            shape (K − 1,) or (G, K − 1), and start at 0 and 1. A batch without elements does not change them, nor does
            a mean or a variance that is not finite.

    Raises:
        ValueError: an argument is out of range; the message says which.

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
            # Always float64: a variance is of the order of φ_k², which can overflow float32 where φ_k does not.
            statistics = self.coeffs.detach()[..., 1:].double()
            self.register_buffer("running_mean", torch.zeros_like(statistics))
            self.register_buffer("running_var", torch.ones_like(statistics))
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the coefficients to the values that `init` names, and the running statistics to 0 and 1."""
        if parametrize.is_parametrized(self, "coeffs"):
            raise ValueError("the coefficients have gates or a mask; slaf_ext.training.ungate(model) removes them")
        start = initial_normalized if self.normalize else initial_coeffs
        self.coeffs.copy_(start(self.init, self.degree, self.basis, self.domain, self.coeffs))
        if self.normalize:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy) and type(self).forward is SLAF.forward and getattr(x.tracer, "root", None) is not self:
            # torch.fx keeps the module whole, as those of torch.nn.
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
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
        if x.numel() or not mean.isnan().all():  # all NaN: no rank had elements
            self._track(mean, var)
        return y

    def __prepare_scriptable__(self) -> SLAF:
        raise NotImplementedError(
            "torch.jit.script cannot compile a SLAF; use torch.jit.trace(model, example) or torch.export.export"
        )

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
        # Older checkpoints have them in the dtype of the coefficients, and `assign=True` would keep it.
        for key in (f"{prefix}running_mean", f"{prefix}running_var"):
            if key in state_dict:
                state_dict[key] = state_dict[key].double()
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def _wide(self) -> torch.dtype:
        """The dtype for results computed from the coefficients: at least float32."""
        return torch.promote_types(self.coeffs.dtype, torch.float32)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else self.num_batches_tracked.double().reciprocal()
        # An average never recovers from inf or NaN, whose difference to itself is NaN. Each operation here is a launch.
        usable = mean - mean == var - var
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(torch.where(usable, batch.to(running.dtype), running), weight)

    def _folded_coeffs(self) -> Tensor:
        return fold(self.coeffs, self.running_mean, self.running_var, self.eps)

    @torch.no_grad()
    def fold(self) -> SLAF:
        """A plain SLAF that equals this module in evaluation mode, with its own parameters.

        a_k = w_k / sqrt(v_k + eps) and a_0 = β − Σ_k w_k μ_k / sqrt(v_k + eps), computed in float64: the test-time form
        of arXiv:1906.09529's authors. A plain module gives a copy of itself. For a normalised module in half precision
        the result is float32, because folded coefficients may be large.

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

        Bases that numpy has keep their class and coefficients; any other becomes an equal `numpy.polynomial.Chebyshev`.
        The result extrapolates, whatever `outside` is.

        Raises:
            ValueError: the module has no such group.

        Example:
            >>> import slaf_ext
            >>> p = slaf_ext.SLAF(2, basis="legendre", init="relu", domain=(-2, 2)).to_numpy()
            >>> type(p).__name__, p.domain.tolist(), round(float(p(1.0)), 4)
            ('Legendre', [-2.0, 2.0], 0.9219)
        """
        if isinstance(group, bool) or not isinstance(group, (int, np.integer)) or not 0 <= group < self.num_groups:
            raise ValueError(f"group is {group!r}; this module has the groups 0 to {self.num_groups - 1}")
        return to_numpy(coefficient_rows(self)[group], self.basis, self.domain)

    @torch.no_grad()
    def plot(self, ax: Axes | None = None, *, inputs: Tensor | None = None, max_groups: int = 16) -> Axes:
        """Plots the learned curve of every group, over a histogram of the inputs if some are given.

        A normalised module is plotted as in evaluation mode. With inputs, each curve spans those of its group;
        otherwise the domain and a tenth of its width on each side. Dotted lines mark the domain. A legend, or for more
        than eight groups a colour bar, identifies the groups. The limits of the axes show most groups for most inputs;
        a curve that grows far beyond the others is cut off.

        Args:
            ax: the matplotlib axes to plot on; None for new axes.
            inputs: inputs that the module has seen; about a million of them are used. If `dim` does not divide into the
                module's groups, every curve spans all inputs.
            max_groups: if there are more groups, this many are plotted, evenly spaced; the key says how many there are.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: inputs is not a tensor, or is complex.
            ValueError: max_groups is not an integer from 1 up.

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


@torch.no_grad()
def coefficient_rows(module: SLAF) -> np.ndarray:
    """The coefficients in float64 with a row for each group, as evaluation mode has them."""
    coeffs = module._folded_coeffs() if module.normalize else module.coeffs
    return coeffs.double().cpu().reshape(module.num_groups, -1).numpy().copy()  # not the parameter's own memory
