"""The rate term: what a network pays in training for the bits of its weights."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from egret.errors import EgretError
from egret.ggd import shape_from_ratio

__all__ = ["DEFAULT_EPS", "RateRegularizer"]

DEFAULT_EPS = 0.1
"""Default ε, in units of the weights."""


class RateRegularizer:
    """Discretized generalized Gaussian rate (DGGR) of a model's weights.

        R(θ) = (1/N) Σ (|θ_i| + ε)^ν

    over the N chosen weights, with the shape ν estimated from the same weights. Add `loss()` to
    the training loss. R is a mean, so that the force on a single weight falls with N: scale
    λ with the number of weights when the model grows.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    lam : float
        λ, the weight of the rate against the loss; 0 or more.
    eps : float
        ε, above 0: keeps the gradient finite at 0 where ν < 1. The larger it is, the weaker the
        pull on weights that are already small.
    nu : float or "adaptive"
        ν, or "adaptive" to estimate it anew at every `loss()`. 1 and 2 give L1 and L2.
    include : sequence of str, optional
        Patterns (`*`, `?`, `[…]`) of parameter names to charge. When absent: every parameter
        with two axes or more, so that biases and the parameters of norms go free.
    exclude : sequence of str
        Patterns of parameter names to leave out of those.

    Attributes
    ----------
    names : tuple of str
        Names of the parameters charged. Tied parameters appear once.
    weights : int
        N.
    lam, eps : float
        As given.
    nu : float
        ν of the latest `rate()` or `loss()`; before the first, that of the initial weights.

    Raises
    ------
    EgretError
        A number out of its range, or no parameter is chosen.

    Notes
    -----
    Source: arXiv 2504.16968, section 3.2 (DGGR and the gradient with ε).
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float,
        *,
        eps: float = DEFAULT_EPS,
        nu: float | str = "adaptive",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        if not (math.isfinite(lam) and lam >= 0):
            raise EgretError(f"lam: found {lam!r}, expected a finite number of 0 or more")
        if not (math.isfinite(eps) and eps > 0):
            raise EgretError(f"eps: found {eps!r}, expected a finite number above 0")
        if isinstance(nu, str):
            if nu != "adaptive":
                raise EgretError(f"nu: found {nu!r}, expected 'adaptive' or a number above 0")
        elif not (math.isfinite(nu) and nu > 0):
            raise EgretError(f"nu: found {nu!r}, expected 'adaptive' or a number above 0")
        # named_parameters yields a tied parameter once, under its first name.
        chosen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and (parameter.dim() >= 2 if include is None else _matches(name, include))
            and not _matches(name, exclude)
        }
        if not chosen:
            raise EgretError("rate term: no trainable parameter is chosen, expected at least one")
        self.names = tuple(chosen)
        self._parameters = tuple(chosen.values())
        self.weights = sum(parameter.numel() for parameter in self._parameters)
        self.lam = lam
        self.eps = eps
        self._adaptive = isinstance(nu, str)
        self.nu = 1.0 if isinstance(nu, str) else float(nu)
        self._update_shape()

    @torch.no_grad()
    def _update_shape(self) -> None:
        if not self._adaptive:
            return
        squares = absolutes = torch.zeros((), dtype=torch.float64)
        for parameter in self._parameters:
            squares = squares + parameter.square().sum(dtype=torch.float64).cpu()
            absolutes = absolutes + parameter.abs().sum(dtype=torch.float64).cpu()
        mean_square, mean = float(squares) / self.weights, float(absolutes) / self.weights
        self.nu = shape_from_ratio(mean_square / mean**2 if mean > 0 else math.inf)

    def rate(self) -> torch.Tensor:
        """Return R of the current weights, a scalar that carries gradients.

        ν is estimated first and is a constant to the gradient.
        """
        self._update_shape()
        device = self._parameters[0].device
        total = torch.zeros((), device=device)
        for parameter in self._parameters:
            # float32 or wider: a sum of many bfloat16 terms would stop growing.
            magnitudes = parameter.abs().to(torch.promote_types(parameter.dtype, torch.float32))
            total = total + (magnitudes + self.eps).pow(self.nu).sum().to(device)
        return total / self.weights

    def loss(self) -> torch.Tensor:
        """Return λ·R of the current weights, a scalar to add to the training loss."""
        return self.lam * self.rate()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
