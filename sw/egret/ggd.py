"""The generalized Gaussian distribution that trained weights follow.

    f(x) = C1 · exp(−C2 |x|^ν),   C1 = νγ / (2Γ(1/ν)),   C2 = γ^ν,
    γ = (1/σ) · sqrt(Γ(3/ν) / Γ(1/ν))

with shape ν and standard deviation σ, mean 0. ν = 2 is Gaussian, ν = 1 Laplacian
(arXiv 2504.16968, section 3.1; its printed γ inside the gamma functions stands for ν).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from egret.checks import check_at_least, check_positive
from egret.errors import EgretError

__all__ = [
    "SHAPE_MAX",
    "SHAPE_MIN",
    "Moments",
    "cumulative",
    "density",
    "estimate_scale",
    "estimate_shape",
    "fit_likelihood",
    "magnitude_quantile",
    "moment_ratio",
    "quantised_entropy",
    "sample",
    "shape_from_ratio",
]

SHAPE_MIN = 0.1
"""Smallest shape an estimate returns, as in the table of the paper's authors."""
SHAPE_MAX = 3.0
"""Largest shape an estimate returns, as in the table of the paper's authors."""
_SINGLE = 4096
# Beyond, powers of shape ν, or their inverses, leave the range of a float64.
_SHAPES = 0.01, 25.0


def _check_shape(shape: float) -> None:
    check_at_least("shape", shape, _SHAPES[0])
    if shape > _SHAPES[1]:
        raise EgretError(f"shape: found {shape!r}, expected {_SHAPES[0]} to {_SHAPES[1]:g}")


def moment_ratio(shape: float) -> float:
    """Return ρ(ν) = Γ(1/ν) Γ(3/ν) / Γ(2/ν)², which is E[x²] / E[|x|]².

    Parameters
    ----------
    shape : float
        ν, 0.01 to 25.

    Returns
    -------
    float
        Falls monotonically in ν: 2 at ν = 1, π/2 at ν = 2, towards 4/3 for large ν.

    Notes
    -----
    Source: K. Sharifi and A. Leon-Garcia, "Estimation of shape parameter for generalized
    Gaussian distributions in subband decompositions of video", 1995.
    """
    _check_shape(shape)
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
        and the ratio grows without bound (ν would be 0.056 where one weight of 10,000 is left); a
        uniform initialisation comes close to 4/3, which no shape reaches (ν would be 15 and more).
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


@dataclass(frozen=True)
class Moments:
    """Sums over weights, to which a generalized Gaussian of mean 0 is fitted.

    Sums of parts are added with `+`, so that the weights may come in blocks, or lie on several
    machines: there, sum the three numbers (with equal units) and make a `Moments` of them. The
    order of the parts changes nothing beyond rounding.

    Parameters
    ----------
    count : int
        Number of weights.
    absolutes, squares : float
        Sums of |x| / unit and of (x / unit)².
    unit : float
        A finite number above 0. With 1 the sums are plainly those of |x| and x²: sums in float64
        of weights in float32 or narrower neither overflow nor vanish. `of` takes another where
        they might.

    Raises
    ------
    EgretError
        `count` is below 0, or `unit` is not a finite number above 0.
    """

    count: int = 0
    absolutes: float = 0.0
    squares: float = 0.0
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise EgretError(f"moments: found {self.count} weights, expected 0 or more")
        check_positive("moments: unit", self.unit)

    @classmethod
    def of(
        cls, weights: npt.NDArray[np.generic], counts: npt.NDArray[np.integer] | None = None
    ) -> "Moments":
        """Sum over an array.

        Parameters
        ----------
        weights : ndarray of any real dtype and shape
            Weights. They are summed in float64, half precision too.
        counts : ndarray of integers, same shape, optional
            How often each occurs; once when absent.

        Raises
        ------
        EgretError
            The counts have another shape, or one is below 0.
        """
        magnitudes = np.abs(weights.astype(np.float64))
        times = np.ones(1) if counts is None else _times(counts, magnitudes.shape)
        count = magnitudes.size if counts is None else int(counts.sum())
        unit = float(magnitudes.max(initial=0.0))
        if unit == 0.0:
            return cls(count)
        magnitudes /= unit
        return cls(
            count,
            float((magnitudes * times).sum()),
            float((np.square(magnitudes) * times).sum()),
            unit,
        )

    def __add__(self, other: "Moments") -> "Moments":
        """Return the sums over both parts."""
        # The unit of a part whose weights are all 0 means nothing.
        unit = max((part.unit for part in (self, other) if part.absolutes > 0), default=1.0)
        mine, others = min(1.0, self.unit / unit), min(1.0, other.unit / unit)
        return Moments(
            self.count + other.count,
            self.absolutes * mine + other.absolutes * others,
            self.squares * mine**2 + other.squares * others**2,
            unit,
        )

    @property
    def shape(self) -> float | None:
        """ν by moments, in `SHAPE_MIN` … `SHAPE_MAX`; `SHAPE_MIN` where all are 0, None of none."""
        if self.count == 0:
            return None
        if not self.absolutes > 0:
            return SHAPE_MIN
        return shape_from_ratio((self.squares / self.absolutes) * (self.count / self.absolutes))

    @property
    def scale(self) -> float:
        """σ, the root mean square, in the units of the weights; 0 of none."""
        return self.unit * math.sqrt(self.squares / max(1, self.count))


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
    shape = Moments.of(_finite(values)).shape
    assert shape is not None
    return shape


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
    return Moments.of(_finite(values)).scale


def density(x: npt.ArrayLike, shape: float, scale: float) -> npt.NDArray[np.float64]:
    """Probability density f(x).

    Parameters
    ----------
    x : array_like of float, any shape
        Where to evaluate.
    shape : float
        ν, 0.01 to 25.
    scale : float
        Standard deviation σ, above 0.

    Returns
    -------
    ndarray of float64, shape of `x`
        Density per unit of `x`.

    Raises
    ------
    EgretError
        `shape` or `scale` is out of its range.
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
        ν, 0.01 to 25.
    scale : float
        Standard deviation σ, above 0.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of float64, shape `size`
        Independent draws: |γx|^ν has the gamma distribution of shape 1/ν, which is that of
        shape 1 + 1/ν times the ν-th power of a uniform number.

    Raises
    ------
    EgretError
        `shape` or `scale` is out of its range.
    """
    gamma = _gamma(shape, scale)
    # As the product: draws of a small shape would vanish before their root is taken.
    magnitudes = rng.gamma(1 + 1 / shape, size=size) ** (1 / shape) * rng.random(size) / gamma
    return np.where(rng.random(size) < 0.5, -magnitudes, magnitudes)


def fit_likelihood(
    values: npt.ArrayLike, counts: npt.NDArray[np.integer] | None = None
) -> tuple[float, float]:
    """Estimate ν and σ by maximum likelihood.

    For a given ν the likeliest scale has a closed form; ν is found by a search. Where the weights
    do follow the distribution, this varies less than the moments do, the more so the smaller ν;
    it takes some eighty powers of every weight, where the moments take one. Exact zeros draw it to
    small shapes, because the density at 0 is not bounded there: of weights of which many are 0,
    fit those that are not.

    Parameters
    ----------
    values : array_like of float, any shape
        Weights, taken to have mean 0.
    counts : ndarray of integers, same shape, optional
        How often each occurs; once when absent.

    Returns
    -------
    shape : float
        ν, the likeliest in `SHAPE_MIN` … `SHAPE_MAX`. Weights that are all 0 give `SHAPE_MIN`,
        weights of one magnitude or uniform ones `SHAPE_MAX`.
    scale : float
        σ of the fitted distribution, in the units of the weights; 0 where all are 0.

    Raises
    ------
    EgretError
        No values, or one that is not finite; counts of another shape, below 0, or all 0.

    Notes
    -----
    Source: M. Varanasi and B. Aazhang, "Parametric generalized Gaussian density estimation", 1989.
    """
    magnitudes = np.abs(_finite(values))
    weights = np.ones(1)
    if counts is not None:
        weights = _times(counts, np.shape(values)).ravel()
        magnitudes, weights = magnitudes[weights > 0], weights[weights > 0]
        if not magnitudes.size:
            raise EgretError("weights: found counts of 0 only, expected at least one weight")
    unit = float(magnitudes.max())
    if unit == 0.0:
        return SHAPE_MIN, 0.0
    magnitudes /= unit
    total = magnitudes.size if counts is None else float(weights.sum())

    def spread(shape: float) -> float:
        # 1/γ of the likeliest scale.
        return (shape * float((weights * magnitudes**shape).sum()) / total) ** (1 / shape)

    def likelihood(shape: float) -> float:
        return math.log(shape / spread(shape)) - math.lgamma(1 / shape) - 1 / shape

    grid = np.geomspace(SHAPE_MIN, SHAPE_MAX, 40)
    best = int(np.argmax([likelihood(shape) for shape in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = likelihood(left), likelihood(right)
    # Each round leaves 0.62 of the interval: after forty it is below 1e-8.
    for _ in range(40):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = likelihood(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = likelihood(right)
    shape = max((SHAPE_MIN, SHAPE_MAX, 0.5 * (low + high)), key=likelihood)
    return shape, unit * spread(shape) * _gamma(shape, 1.0)


def _incomplete_gamma(a: float, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the upper regularised incomplete gamma function Q(a, x) for x of 0 or more."""
    upper = np.ones_like(x)
    near = (x > 0) & (x < a + 1)
    with np.errstate(under="ignore"):
        if near.any():
            t = x[near]
            term = total = np.full_like(t, 1 / a)
            for n in range(1, 200):
                term = term * t / (a + n)
                total = total + term
            upper[near] = 1 - total * np.exp(a * np.log(t) - t - math.lgamma(a))
        far = x >= a + 1
        if far.any():
            # Lentz's continued fraction.
            t = x[far]
            b = t + 1 - a
            c = np.full_like(t, 1e300)
            d = 1 / b
            fraction = d
            for n in range(1, 200):
                factor = -n * (n - a)
                b = b + 2
                d = 1 / (factor * d + b)
                c = b + factor / c
                fraction = fraction * d * c
            upper[far] = fraction * np.exp(a * np.log(t) - t - math.lgamma(a))
    return np.clip(upper, 0.0, 1.0)


def cumulative(x: npt.ArrayLike, shape: float, scale: float) -> npt.NDArray[np.float64]:
    """Probability of a value of at most x.

    Parameters
    ----------
    x : array_like of float, any shape
        Where to evaluate.
    shape : float
        ν, 0.01 to 25.
    scale : float
        Standard deviation σ, above 0.

    Returns
    -------
    ndarray of float64, shape of `x`
        Probabilities, to within 1e-12.

    Raises
    ------
    EgretError
        `shape` or `scale` is out of its range.
    """
    gamma = _gamma(shape, scale)
    where = np.asarray(x, dtype=np.float64)
    tail = 0.5 * _incomplete_gamma(1 / shape, np.atleast_1d((gamma * np.abs(where)) ** shape))
    return np.where(where > 0, 1 - tail.reshape(where.shape), tail.reshape(where.shape))


def magnitude_quantile(p: npt.ArrayLike, shape: float, scale: float) -> npt.NDArray[np.float64]:
    """Return the magnitudes below which a share p of the values lies.

    Parameters
    ----------
    p : array_like of float, any shape
        Shares, 0 or more and below 1.
    shape : float
        ν, 0.01 to 25.
    scale : float
        Standard deviation σ, above 0.

    Returns
    -------
    ndarray of float64, shape of `p`
        Magnitudes, interpolated to within 1e-5 of themselves.

    Raises
    ------
    EgretError
        `shape` or `scale` is out of its range, or a share is out of range.
    """
    gamma = _gamma(shape, scale)
    shares = np.asarray(p, dtype=np.float64)
    if not ((shares >= 0) & (shares < 1)).all():
        raise EgretError("shares: found one out of range, expected 0 or more and below 1")
    a = 1 / shape
    # Q(a, x) is below 1e-18 at the end, and 1 − Q about x^a / Γ(a + 1) at the beginning.
    end = a + 45 + 10 * math.sqrt(a)
    begin = math.exp((math.log(1e-12) + math.lgamma(a + 1)) / a)
    grid = np.geomspace(min(begin, end / 4), end, 1 << 14)
    upper = _incomplete_gamma(a, grid)
    # From the middle on by the logarithm of what is above, before by that of what is below.
    below = np.log(np.maximum(1 - upper, 1e-300))
    above = np.log(np.maximum(upper, 1e-300))
    logs = np.log(grid)
    with np.errstate(divide="ignore"):
        small = np.interp(np.log(shares), below, logs)
        large = np.interp(-np.log1p(-shares), -above, logs)
        exact = (np.log(shares) + math.lgamma(a + 1)) / a
    found = np.where(shares < 0.5, np.where(shares < 1e-12, exact, small), large)
    return np.exp(found / shape) / gamma


def quantised_entropy(shape: float, scale: float, step: float) -> float:
    """Entropy of values rounded to the nearest multiple of a step.

    Parameters
    ----------
    shape : float
        ν, 0.01 to 25.
    scale : float
        Standard deviation σ, 0 or more.
    step : float
        Distance of the multiples, above 0, in the units of `scale`.

    Returns
    -------
    float
        Bits per value, which no code of single values can go below.

    Raises
    ------
    EgretError
        A number out of its range.
    """
    check_positive("step", step)
    _check_shape(shape)
    if scale == 0:
        return 0.0
    gamma = _gamma(shape, scale)
    # Beyond, less than 1e-15 of the values are left.
    reach = (1 / shape + 35 + 8 / math.sqrt(shape)) ** (1 / shape) / gamma / step
    if not math.isfinite(reach):
        raise EgretError(f"step: found {step!r}, which is too small for the scale {scale!r}")
    last = max(1, math.ceil(reach))
    # The first multiples one by one, further ones in groups of a 500th of their size, within which
    # they are about equally likely.
    edges = np.arange(min(last, _SINGLE) + 1, dtype=np.float64)
    if last > _SINGLE:
        count = math.ceil(500 * math.log(last / _SINGLE)) + 1
        edges = np.union1d(edges, np.rint(np.geomspace(_SINGLE, last, count)))
    upper = _incomplete_gamma(1 / shape, (gamma * step * (edges + 0.5)) ** shape)
    zero = 1 - float(upper[0])
    groups, sizes = upper[:-1] - upper[1:], np.diff(edges)
    used = groups > 0
    # Half of each group lies on either side of 0.
    bits = -(groups[used] * np.log2(groups[used] / (2 * sizes[used]))).sum()
    return float(bits) - (zero * math.log2(zero) if zero > 0 else 0.0)


def _gamma(shape: float, scale: float) -> float:
    _check_shape(shape)
    check_positive("scale", scale)
    return math.exp(0.5 * (math.lgamma(3 / shape) - math.lgamma(1 / shape))) / scale


def _times(counts: npt.NDArray[np.integer], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if counts.shape != shape:
        raise EgretError(f"counts: found shape {counts.shape}, expected {shape} as of the weights")
    times = counts.astype(np.float64)
    if (times < 0).any():
        raise EgretError(f"counts: found {times.min():g}, expected 0 or more")
    return times


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
