"""The generalized Gaussian distribution that trained weights follow.

    f(x) = C1 · exp(−C2 |x|^ν),   C1 = νγ / (2Γ(1/ν)),   C2 = γ^ν,
    γ = (1/σ) · sqrt(Γ(3/ν) / Γ(1/ν))

with shape ν and standard deviation σ, mean 0. ν = 2 is Gaussian, ν = 1 Laplacian
(arXiv 2504.16968, section 3.1; its printed γ inside the gamma functions stands for ν).
"""

import math

import numpy as np
import numpy.typing as npt

from egret.errors import EgretError

__all__ = [
    "SHAPE_MAX",
    "SHAPE_MIN",
    "density",
    "estimate_scale",
    "estimate_shape",
    "moment_ratio",
    "sample",
    "shape_from_ratio",
]

SHAPE_MIN = 0.1
"""Smallest shape an estimate returns, as in the table of the paper's authors."""
SHAPE_MAX = 3.0
"""Largest shape an estimate returns, as in the table of the paper's authors."""


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise EgretError(f"{what}: found {value!r}, expected a finite number above 0")


def moment_ratio(shape: float) -> float:
    """Return ρ(ν) = Γ(1/ν) Γ(3/ν) / Γ(2/ν)², which is E[x²] / E[|x|]².

    Parameters
    ----------
    shape : float
        ν, above 0.

    Returns
    -------
    float
        Falls monotonically in ν: 2 at ν = 1, π/2 at ν = 2, towards 4/3 for large ν.

    Notes
    -----
    Source: K. Sharifi and A. Leon-Garcia, "Estimation of shape parameter for generalized
    Gaussian distributions in subband decompositions of video", 1995.
    """
    _check_positive("shape", shape)
    return math.exp(math.lgamma(1 / shape) + math.lgamma(3 / shape) - 2 * math.lgamma(2 / shape))


_RATIO_AT_MIN = moment_ratio(SHAPE_MIN)
_RATIO_AT_MAX = moment_ratio(SHAPE_MAX)


def shape_from_ratio(ratio: float) -> float:
    """Invert `moment_ratio`.

    Parameters
    ----------
    ratio : float
        E[x²] / E[|x|]². NaN, which 0/0 gives where all weights are 0, counts as infinite.

    Returns
    -------
    float
        ν, clamped to `SHAPE_MIN` … `SHAPE_MAX`: under strong rate pressure most weights are 0
        and the ratio grows without bound.
    """
    if ratio <= _RATIO_AT_MAX:
        return SHAPE_MAX
    if not ratio < _RATIO_AT_MIN:
        return SHAPE_MIN
    low, high = SHAPE_MIN, SHAPE_MAX
    # Halving 2.9 forty times leaves less than 3e-12.
    for _ in range(40):
        middle = 0.5 * (low + high)
        if moment_ratio(middle) > ratio:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def estimate_shape(values: npt.ArrayLike) -> float:
    """Estimate ν by moments.

    Parameters
    ----------
    values : array_like of float, any shape
        Weights, taken to have mean 0.

    Returns
    -------
    float
        ν in `SHAPE_MIN` … `SHAPE_MAX`. Weights that are all 0 give `SHAPE_MIN`, weights of one
        magnitude `SHAPE_MAX`.

    Raises
    ------
    EgretError
        No values, or one that is not finite.
    """
    magnitudes = np.abs(_finite(values))
    largest = float(magnitudes.max())
    if largest == 0.0:
        return SHAPE_MIN
    # Scaled so that no square underflows or overflows; the ratio does not change.
    magnitudes = magnitudes / largest
    return shape_from_ratio(float(np.square(magnitudes).mean() / magnitudes.mean() ** 2))


def estimate_scale(values: npt.ArrayLike) -> float:
    """Estimate σ, the root mean square.

    Parameters
    ----------
    values : array_like of float, any shape
        Weights, taken to have mean 0.

    Returns
    -------
    float
        σ in the units of the weights; 0 where all are 0.

    Raises
    ------
    EgretError
        No values, or one that is not finite.
    """
    magnitudes = np.abs(_finite(values))
    largest = float(magnitudes.max())
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(float(np.square(magnitudes / largest).mean()))


def density(x: npt.ArrayLike, shape: float, scale: float) -> npt.NDArray[np.float64]:
    """Probability density f(x).

    Parameters
    ----------
    x : array_like of float, any shape
        Where to evaluate.
    shape : float
        ν, above 0.
    scale : float
        Standard deviation σ, above 0.

    Returns
    -------
    ndarray of float64, shape of `x`
        Density per unit of `x`.

    Raises
    ------
    EgretError
        `shape` or `scale` is not a finite number above 0.
    """
    gamma = _gamma(shape, scale)
    log_peak = math.log(shape * gamma / 2) - math.lgamma(1 / shape)
    distance = gamma * np.abs(np.asarray(x, dtype=np.float64))
    return np.exp(log_peak - distance**shape)


def sample(
    size: int | tuple[int, ...], shape: float, scale: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw from the distribution.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the result.
    shape : float
        ν, above 0.
    scale : float
        Standard deviation σ, above 0.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of float64, shape `size`
        Independent draws: |γx|^ν has the gamma distribution of shape 1/ν.

    Raises
    ------
    EgretError
        `shape` or `scale` is not a finite number above 0.
    """
    gamma = _gamma(shape, scale)
    magnitudes = rng.gamma(1 / shape, size=size) ** (1 / shape) / gamma
    return np.where(rng.random(size) < 0.5, -magnitudes, magnitudes)


def _gamma(shape: float, scale: float) -> float:
    _check_positive("shape", shape)
    _check_positive("scale", scale)
    return math.exp(0.5 * (math.lgamma(3 / shape) - math.lgamma(1 / shape))) / scale


def _finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise EgretError("weights: found none, expected at least one")
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise EgretError(
            f"weights: element {int(wrong[0])} is {array[wrong[0]]}, expected a finite number"
        )
    return array
