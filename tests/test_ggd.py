import math
from typing import cast

import numpy as np
import pytest
from scipy.stats import gennorm

from egret.errors import EgretError
from egret.ggd import (
    SHAPE_MAX,
    SHAPE_MIN,
    Moments,
    cumulative,
    density,
    estimate_scale,
    estimate_shape,
    fit_likelihood,
    magnitude_quantile,
    moment_ratio,
    quantised_entropy,
    sample,
    shape_from_ratio,
)


@pytest.mark.parametrize(
    ("shape", "ratio"), [(1.0, 2.0), (2.0, math.pi / 2), (0.5, math.factorial(5) / 6**2 * 1.0)]
)
def test_moment_ratio_has_the_known_closed_forms(shape: float, ratio: float) -> None:
    # ν = 1/2: Γ(2) Γ(6) / Γ(4)² = 1 · 120 / 36.
    assert moment_ratio(shape) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("shape", [0.5, 0.85, 1.0, 1.36, 2.0, 3.0])
def test_density_integrates_to_one_and_has_the_moments(shape: float) -> None:
    # Midpoints, dense near 0 where the density of a small shape is sharp.
    edges = np.linspace(0.0, 400.0 ** (1 / 3), 400_001) ** 3
    x, width = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    f = density(x, shape, 1.5)
    assert 2 * np.sum(f * width) == pytest.approx(1, rel=1e-4)
    second = 2 * np.sum(f * x**2 * width)
    first = 2 * np.sum(f * x * width)
    assert second == pytest.approx(1.5**2, rel=1e-3)
    assert shape_from_ratio(second / first**2) == pytest.approx(shape, rel=2e-3)
    np.testing.assert_array_equal(density(-x[:9], shape, 1.5), f[:9])


def test_density_equals_gauss_and_laplace() -> None:
    x = np.linspace(-3, 3, 13)
    gauss = np.exp(-0.5 * (x / 0.7) ** 2) / (0.7 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(density(x, 2.0, 0.7), gauss, rtol=1e-12)
    b = 0.7 / math.sqrt(2)
    np.testing.assert_allclose(density(x, 1.0, 0.7), np.exp(-np.abs(x) / b) / (2 * b), rtol=1e-12)


@pytest.mark.parametrize("shape", [0.1, 0.3, 0.85, 1.54, 2.9])
def test_inverse_of_the_moment_ratio(shape: float) -> None:
    assert shape_from_ratio(moment_ratio(shape)) == pytest.approx(shape, abs=1e-9)


@pytest.mark.parametrize("shape", [0.4, 0.85, 1.36, 2.0])
def test_estimate_finds_the_shape_and_scale_of_samples(shape: float) -> None:
    seed = 11
    values = sample((400, 1000), shape, 0.02, np.random.default_rng(seed))
    assert values.shape == (400, 1000)
    assert estimate_shape(values) == pytest.approx(shape, rel=0.03), f"seed {seed}"
    assert estimate_scale(values) == pytest.approx(0.02, rel=0.03), f"seed {seed}"
    assert abs(np.mean(values < 0) - 0.5) < 0.01, f"seed {seed}"


@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e200])
def test_estimate_does_not_depend_on_the_units(factor: float) -> None:
    values = np.array([0.5, -1.0, 2.0, 0.25, -0.1])
    assert estimate_shape(values * factor) == pytest.approx(estimate_shape(values), rel=1e-9)
    assert estimate_scale(values * factor) == pytest.approx(
        factor * math.sqrt(np.mean(values**2)), rel=1e-12
    )


def test_degenerate_tensors_stay_in_range() -> None:
    assert estimate_shape(np.zeros((3, 4))) == SHAPE_MIN
    assert estimate_scale(np.zeros((3, 4))) == 0.0
    assert estimate_shape(np.full(100, -0.3)) == SHAPE_MAX
    one = np.zeros(100_000)
    one[5] = 1.0
    assert estimate_shape(one) == SHAPE_MIN
    # Uniform has ratio 4/3, below that of every shape in range.
    assert estimate_shape(np.linspace(-1, 1, 1001)) == SHAPE_MAX
    assert shape_from_ratio(math.nan) == SHAPE_MIN
    assert shape_from_ratio(math.inf) == SHAPE_MIN


def test_extreme_weights_stay_in_the_stated_range() -> None:
    assert (SHAPE_MIN, SHAPE_MAX) == (0.1, 3.0)
    seed = 21
    rng = np.random.default_rng(seed)
    # What PyTorch's layers start with: the ratio is that of a shape of 15 or more.
    uniform = rng.uniform(-0.05, 0.05, 100_000)
    assert np.mean(uniform**2) / np.mean(np.abs(uniform)) ** 2 < moment_ratio(10), f"seed {seed}"
    # One weight of 10,000 is left: the ratio is 10,000 and more, as for a shape below 0.06.
    sparse = np.zeros(1_000_000)
    sparse[::10_000] = 0.1
    assert np.mean(sparse**2) / np.mean(np.abs(sparse)) ** 2 > moment_ratio(0.06)
    for dtype in (np.float16, np.float32, np.float64):
        assert estimate_shape(uniform.astype(dtype)) == SHAPE_MAX, f"seed {seed}, {dtype}"
        assert estimate_shape(sparse.astype(dtype)) == SHAPE_MIN, dtype
        assert estimate_shape(np.full(70_000, 2e-7, dtype)) == SHAPE_MAX, dtype
        assert estimate_shape(np.full(70_000, 60_000.0, dtype)) == SHAPE_MAX, dtype
        assert estimate_shape(np.zeros(70_000, dtype)) == SHAPE_MIN, dtype


def test_half_precision_is_summed_in_double() -> None:
    # In float16 the sums would stop at 2,048 or overflow, and squares below 6e-8 would vanish.
    seed = 22
    values = sample(200_000, 1.2, 1.0, np.random.default_rng(seed))
    for factor in (1e-3, 30.0):
        half = (values * factor).astype(np.float16)
        exact = estimate_shape(half.astype(np.float64))
        assert estimate_shape(half) == exact == pytest.approx(1.2, rel=0.03), f"seed {seed}"
        assert Moments.of(half).shape == exact, f"seed {seed}"
        assert estimate_scale(half) == pytest.approx(factor, rel=0.02), f"seed {seed}"


def test_moments_of_parts_are_those_of_all() -> None:
    rng = np.random.default_rng(12)
    weights = np.concatenate([rng.laplace(0, 1e-3, 1000), rng.laplace(0, 5, 1000), np.zeros(10)])
    parts = [Moments.of(block) for block in np.split(weights, 6 * [0] + [300, 301, 1500])]
    for order in (parts, parts[::-1]):
        moments = sum(order, Moments())
        assert moments.count == 2010
        assert moments.shape == pytest.approx(estimate_shape(weights), rel=1e-9)
        assert moments.scale == pytest.approx(estimate_scale(weights), rel=1e-12)
    # The three plain sums, as machines would add them up.
    plain = Moments(2010, float(np.abs(weights).sum()), float(np.square(weights).sum()))
    assert plain.shape == pytest.approx(estimate_shape(weights), rel=1e-9)
    assert plain.scale == pytest.approx(estimate_scale(weights), rel=1e-12)
    assert (plain + parts[0]).unit == 1.0
    values, counts = np.unique(np.rint(weights), return_counts=True)
    moments = Moments.of(values, counts)
    assert moments.shape == pytest.approx(estimate_shape(np.rint(weights)), rel=1e-9)


def test_moments_of_nothing_of_zeros_and_of_huge_weights() -> None:
    assert Moments().shape is None
    assert Moments().scale == 0
    zeros = Moments.of(np.zeros(5))
    assert (zeros.shape, zeros.scale) == (SHAPE_MIN, 0)
    huge, tiny = Moments.of(np.array([1e300, -1e300])), Moments.of(np.array([1e-300]))
    assert (huge + tiny).scale == pytest.approx(1e300 * (2 / 3) ** 0.5)
    assert (zeros + tiny).scale == pytest.approx(1e-300 * (1 / 6) ** 0.5)
    assert (tiny + zeros).shape == estimate_shape(np.array([1e-300, 0, 0, 0, 0, 0]))
    # What diverged is not a shape either; it must not end the training by itself.
    assert Moments(3, math.nan, math.nan).shape == SHAPE_MIN
    assert Moments(3, math.inf, math.inf).shape == SHAPE_MIN
    with pytest.raises(EgretError, match="found -1 weights, expected 0 or more"):
        Moments(-1)
    with pytest.raises(EgretError, match="unit: found 0"):
        Moments(1, 1.0, 1.0, 0.0)


def test_bad_values_are_named() -> None:
    with pytest.raises(EgretError, match="element 1 is nan"):
        estimate_shape([0.0, math.nan])
    with pytest.raises(EgretError, match="found none"):
        estimate_scale([])
    with pytest.raises(EgretError, match="shape: found 0"):
        density(0.0, 0.0, 1.0)
    with pytest.raises(EgretError, match="scale: found -1"):
        sample(3, 1.0, -1.0, np.random.default_rng(0))


@pytest.mark.parametrize("shape", [0.1, 0.3, 0.5, 1.0, 1.36, 2.0, 3.0, 8.0])
def test_probabilities_and_quantiles_are_those_of_scipy(shape: float) -> None:
    scale = 0.7
    reference = gennorm(shape, scale=scale / gennorm(shape).std())
    x = np.concatenate([[0.0], np.geomspace(1e-8, 30, 200)])
    x = np.concatenate([-x[::-1], x]).reshape(2, -1)
    np.testing.assert_allclose(cumulative(x, shape, scale), reference.cdf(x), atol=1e-12)
    assert float(cumulative(0.0, shape, scale)) == 0.5
    p = np.array([0.0, 1e-15, 1e-9, 1e-4, 0.2, 0.4999, 0.5, 0.8, 0.999, 1 - 1e-9])
    found = magnitude_quantile(p, shape, scale)
    # By isf where ppf would lose the small ones in 0.5 + p / 2.
    np.testing.assert_allclose(found[3:], reference.isf(0.5 - p[3:] / 2), rtol=1e-5)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()


def test_quantile_inverts_probability() -> None:
    p = np.linspace(0, 0.9999, 5000)
    for shape in (0.2, 0.7, 1.5):
        back = 2 * cumulative(magnitude_quantile(p, shape, 2.0), shape, 2.0) - 1
        np.testing.assert_allclose(back, p, atol=2e-6)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(EgretError, match="shares: found one out of range"):
            magnitude_quantile([0.5, wrong], 1.0, 1.0)


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("step", [1e-3, 0.1, 0.5, 3.0])
def test_entropy_of_the_rounded_values(shape: float, step: float) -> None:
    reference = gennorm(shape, scale=1 / gennorm(shape).std())
    # Where the probability ends, beyond which 1e-12 of the values are left.
    last = math.ceil(reference.isf(1e-12) / step)
    edges = (np.arange(last + 1) + 0.5) * step
    upper = reference.sf(edges)
    parts = np.concatenate([[1 - 2 * upper[0]], *[upper[:-1] - upper[1:]] * 2])
    parts = parts[parts > 0]
    expected = float(-(parts * np.log2(parts)).sum())
    assert quantised_entropy(shape, 1.0, step) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert quantised_entropy(shape, 8.0, 8 * step) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_entropy_at_the_limits() -> None:
    # Of fine steps the differential entropy: of a Gaussian log2(σ sqrt(2πe)), of a Laplacian
    # log2(e sqrt(2) σ).
    fine = 2.0**-14
    gaussian, laplacian = 0.5 * math.log2(2 * math.pi * math.e), math.log2(math.e * math.sqrt(2))
    assert quantised_entropy(2.0, 1.0, fine) == pytest.approx(gaussian + 14, abs=1e-4)
    assert quantised_entropy(1.0, 1.0, fine) == pytest.approx(laplacian + 14, abs=1e-4)
    assert quantised_entropy(0.1, 1.0, 1e-2) > 0
    assert quantised_entropy(1.0, 0.0, 0.1) == 0
    assert quantised_entropy(2.0, 1e-6, 1.0) == pytest.approx(0, abs=1e-9)
    for arguments in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0), (1.0, math.nan, 1.0)):
        with pytest.raises(EgretError, match=r"expected a finite number (above|of 0\.01)"):
            quantised_entropy(*arguments)


def test_entropy_foretells_that_of_drawn_values() -> None:
    seed = 14
    values = sample(400_000, 0.8, 0.05, np.random.default_rng(seed))
    counts = np.unique(np.rint(values * 64), return_counts=True)[1] / values.size
    found = float(-(counts * np.log2(counts)).sum())
    assert quantised_entropy(0.8, 0.05, 1 / 64) == pytest.approx(found, rel=0.01), f"seed {seed}"


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0, 1.4, 2.0, 2.7])
def test_likelihood_finds_shape_and_scale(shape: float) -> None:
    seed = 15
    values = sample(60_000, shape, 0.04, np.random.default_rng(seed))
    found = fit_likelihood(values)
    assert found == pytest.approx((shape, 0.04), rel=0.04), f"seed {seed}"

    # No neighbour is likelier.
    def likelihood(nu: float, sigma: float) -> float:
        return float(gennorm(nu, scale=sigma / gennorm(nu).std()).logpdf(values).sum())

    best = likelihood(*found)
    for change in (0.995, 1.005):
        assert likelihood(found[0] * change, found[1]) <= best
        assert likelihood(found[0], found[1] * change) <= best


def test_likelihood_varies_less_than_moments() -> None:
    seeds = range(30)
    draws = [sample(2000, 0.5, 1.0, np.random.default_rng(seed)) for seed in seeds]
    likely = np.std([fit_likelihood(values)[0] for values in draws])
    moments = np.std([estimate_shape(values) for values in draws])
    print(f"seeds 0 to 29: ν varies by {likely:.4f}, by moments {moments:.4f}")
    assert likely < 0.7 * moments


def test_likelihood_survives_every_weight() -> None:
    assert fit_likelihood(np.zeros(50)) == (SHAPE_MIN, 0.0)
    shape, scale = fit_likelihood(np.full(50, -0.3))
    assert shape == SHAPE_MAX
    assert math.isfinite(scale)
    rng = np.random.default_rng(16)
    assert fit_likelihood(rng.uniform(-1, 1, 5000))[0] == SHAPE_MAX
    sparse = np.zeros(100_000)
    sparse[:10] = rng.normal(size=10)
    shape, scale = fit_likelihood(sparse)
    assert shape == SHAPE_MIN
    assert math.isfinite(scale)
    assert scale > 0
    for unit in (1e-300, 1e-30, 1e30, 1e300):
        shape, scale = fit_likelihood(unit * np.array([-2.0, 1.0, 0.5, 3.0]))
        assert shape == pytest.approx(fit_likelihood([-2.0, 1.0, 0.5, 3.0])[0])
        assert scale / unit == pytest.approx(fit_likelihood([-2.0, 1.0, 0.5, 3.0])[1])
    half = rng.normal(size=500).astype(np.float16)
    assert fit_likelihood(half) == pytest.approx(fit_likelihood(half.astype(np.float64)))
    values, counts = np.array([0.0, 1.0, 2.0, -3.0]), np.array([5, 3, 2, 1])
    assert fit_likelihood(values, counts) == pytest.approx(fit_likelihood(values.repeat(counts)))
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(EgretError, match="weights: "):
            fit_likelihood(wrong)


@pytest.mark.parametrize("shape", [0.01, 0.05, 20.0, 25.0])
def test_extreme_shapes_are_drawn_and_have_quantiles(shape: float) -> None:
    seed, shares = 17, np.array([0.05, 0.3, 0.5, 0.7, 0.95])
    drawn = np.sort(np.abs(sample(100_000, shape, 1.0, np.random.default_rng(seed))))
    assert np.isfinite(drawn).all()
    assert drawn[0] > 0
    # Of many draws the share below a quantile is that of the quantile.
    quantiles = magnitude_quantile(shares, shape, 1.0)
    found = np.searchsorted(drawn, quantiles) / drawn.size
    np.testing.assert_allclose(found, shares, atol=0.008, err_msg=f"seed {seed}")
    np.testing.assert_allclose(2 * cumulative(quantiles, shape, 1.0) - 1, shares, atol=1e-5)


@pytest.mark.parametrize("shape", [0.005, 26.0, math.inf, "1", None])
def test_shapes_beyond_are_refused(shape: object) -> None:
    for function in (cumulative, magnitude_quantile):
        with pytest.raises(EgretError, match="shape: found"):
            function(0.5, cast(float, shape), 1.0)


def test_bad_counts_are_named() -> None:
    values = np.array([0.5, -1.0, 2.0])
    # A value that occurs 0 times is as if it were not there.
    some = fit_likelihood(values, np.array([3, 4, 0]))
    assert some == pytest.approx(fit_likelihood(np.repeat(values[:2], [3, 4])))
    for counts, message in (
        (np.array([0, 0, 0]), "counts of 0 only"),
        (np.array([3]), r"counts: found shape \(1,\), expected \(3,\)"),
        (np.array([1, -2, 1]), "counts: found -2"),
    ):
        with pytest.raises(EgretError, match=message):
            fit_likelihood(values, counts)
    with pytest.raises(EgretError, match="counts: found -2"):
        Moments.of(values, np.array([1, -2, 1]))
