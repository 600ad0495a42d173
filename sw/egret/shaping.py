"""Weights that follow a generalized Gaussian of a chosen shape, before and after training.

Source: arXiv 2506.00486, which begins with weights of the shape that trained ones have, and
reshapes trained weights (DeepShape), to be trained on for a while.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from egret.errors import EgretError
from egret.ggd import magnitude_quantile, sample
from egret.rate import choose_parameters, root_mean_square

__all__ = ["draw_weights", "reshape_weights"]


def _whole(name: str, parameter: nn.Parameter) -> torch.Tensor:
    if hasattr(parameter, "to_local"):
        raise EgretError(f"parameter {name!r}: is sharded, expected a whole one: shape it before")
    return parameter.detach()


@torch.no_grad()
def draw_weights(
    model: nn.Module,
    shape: float,
    *,
    seed: int = 0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> None:
    """Draw initial weights from generalized Gaussians that are as wide as the present ones.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was initialised as usual: each chosen tensor keeps its root mean square, which
        its layer's width decides.
    shape : float
        ν, 0.01 to 25; trained networks have 0.8 to 1.6.
    seed : int
        Seed of the draws, 0 or more.
    include, exclude : sequence of str
        As for `egret.rate.RateRegularizer`: matrices and kernels when absent.

    Raises
    ------
    EgretError
        A number out of its range, no parameter is chosen, or one is sharded.
    """
    if seed < 0:
        raise EgretError(f"seed: found {seed}, expected 0 or more")
    rng = np.random.default_rng(seed)
    for name, parameter in choose_parameters(model, include, exclude).items():
        weights = _whole(name, parameter)
        scale = root_mean_square(weights)
        if scale > 0:
            drawn = sample(tuple(weights.shape), shape, scale, rng)
            # Few draws of a small shape are far from the mean of many.
            drawn *= scale / np.sqrt(np.square(drawn).mean())
            weights.copy_(torch.from_numpy(drawn))


@torch.no_grad()
def reshape_weights(
    model: nn.Module,
    shape: float,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> None:
    """Map the magnitudes of trained weights to those of a generalized Gaussian (DeepShape).

    In each chosen tensor the n-th smallest magnitude becomes what the n-th smallest is in the
    distribution of the same root mean square: signs, order and scale stay,
    the histogram becomes the chosen one. Zeros stay 0. Train on afterwards, as after pruning.

    Parameters
    ----------
    model : torch.nn.Module
        The trained model.
    shape : float
        ν, 0.01 to 25. Below the weights' own it makes most smaller and few larger.
    include, exclude : sequence of str
        As for `egret.rate.RateRegularizer`: matrices and kernels when absent.

    Raises
    ------
    EgretError
        A number out of its range, no parameter is chosen, or one is sharded or not finite.
    """
    for name, parameter in choose_parameters(model, include, exclude).items():
        weights = _whole(name, parameter)
        values = weights.to("cpu", torch.float64).numpy()
        if not np.isfinite(values).all():
            raise EgretError(f"parameter {name!r}: found NaN or infinity, expected finite weights")
        magnitudes = np.abs(values)
        distinct, places, counts = np.unique(magnitudes, return_inverse=True, return_counts=True)
        if not distinct.size or distinct[-1] == 0:
            continue
        scale = float(np.sqrt(np.square(magnitudes).mean()))
        # Equal ones share the middle of their places.
        middles = (np.cumsum(counts) - 0.5 * counts) / magnitudes.size
        new = np.where(distinct > 0, magnitude_quantile(middles, shape, scale), 0.0)
        # The sums of few places, and the zeros, leave the root mean square a little off.
        new *= scale / np.sqrt(np.dot(np.square(new), counts) / magnitudes.size)
        shaped = np.copysign(new[places].reshape(values.shape), values)
        weights.copy_(torch.from_numpy(np.where(values == 0, 0.0, shaped)))
