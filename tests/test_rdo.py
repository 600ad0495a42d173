import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import egret
from egret.cli import main
from egret.code_search import Statistics, parse_codes, plan
from egret.codebook import Codebook
from egret.errors import EgretError
from egret.packing import quantize_state
from egret.quantize import QuantizedTensor
from egret.rdo import Rounder


@cache
def _lengths(book: Codebook) -> tuple[dict[int, int], list[int]]:
    """Bits of the values from -30 to 30, and of the runs that have a codeword."""
    values = np.arange(-30, 31, dtype=np.int32)
    indices = book.indices(values)
    longest = int(book.level.class_lengths[-1])
    known = book.level.lengths(np.maximum(indices, 0))
    bits = np.where(indices < 0, longest + 1, known)
    none = np.empty(0, np.int64)
    runs = none if book.run is None else book.run.lengths(np.arange(min(400, book.run.symbols)))
    return dict(zip(values.tolist(), bits.tolist(), strict=True)), [int(length) for length in runs]


def _cost(scaled: np.ndarray, values: np.ndarray, chunk: int, book: Codebook, lam: float) -> float:
    """Error and bits as docs/format.md has them: each chunk by itself, run by run."""
    bits = 0
    level, runs = _lengths(book)
    for first in range(0, values.size, chunk):
        run = 0
        for value in values[first : first + chunk].tolist():
            if book.run is None:
                bits += level[value]
            elif value == 0:
                run += 1
            else:
                bits += runs[run] + level[value]
                run = 0
        if book.run is not None and run:
            bits += runs[run]
    return float(np.square(scaled - values).sum()) + lam * bits


def _example(seed: int, size: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random(size) < share
    return rng.laplace(0, 0.08, size) + kept * rng.choice([-1, 1], size) * rng.gamma(2, 0.6, size)


@pytest.mark.parametrize("codes", ["eg-run", "eg-0", "eg-table", "eg-k"])
@pytest.mark.parametrize("lam", [0.02, 0.1, 0.4, 3.0])
def test_no_choice_costs_less(codes: str, lam: float) -> None:
    for seed in range(12):
        scaled = _example(seed, 16, 0.3)
        nearest = np.rint(scaled).astype(np.int32)
        chunk = (16, 7, 4)[seed % 3]
        book = plan(Statistics.of(nearest, chunk), parse_codes(codes)).book
        if book.run is not None and book.run.symbols <= chunk:
            # Longer runs than the codebook knows: the test's own cost has no length for them.
            continue
        found = nearest.copy()
        Rounder(book, lam).improve(scaled, found, chunk)
        options = [
            sorted({int(value), int(value - np.sign(value)), 0}) for value in nearest.tolist()
        ]
        best = min(
            _cost(scaled, np.array(choice, np.int32), chunk, book, lam)
            for choice in itertools.product(*options)
        )
        assert _cost(scaled, found, chunk, book, lam) == pytest.approx(best), f"seed {seed}"


def test_long_chunks_and_many_zeros() -> None:
    """Beside dynamic programming without the bound that ends the search early."""
    for seed, lam in itertools.product(range(4), (0.05, 0.3, 2.0)):
        scaled = _example(seed, 300, 0.3)
        nearest = np.rint(scaled).astype(np.int32)
        book = plan(Statistics.of(nearest, 300), parse_codes("eg-run")).book
        assert book.run is not None
        found = nearest.copy()
        Rounder(book, lam).improve(scaled, found, 300)
        lengths = book.run.lengths(np.arange(301))
        errors = np.concatenate(([0.0], np.cumsum(np.square(scaled))))
        best = {-1: 0.0}
        for place in np.flatnonzero(nearest).tolist():
            value = int(nearest[place])
            own = min(
                (scaled[place] - q) ** 2
                + lam * int(book.level.lengths(book.indices(np.array([q], np.int32)))[0])
                for q in {value, value - int(np.sign(value))} - {0}
                if book.indices(np.array([q], np.int32))[0] >= 0
            )
            best[place] = own + min(
                cost + errors[place] - errors[start + 1] + lam * lengths[place - start - 1]
                for start, cost in best.items()
            )
        least = min(
            cost + errors[300] - errors[start + 1] + lam * (lengths[r] if (r := 299 - start) else 0)
            for start, cost in best.items()
        )
        assert _cost(scaled, found, 300, book, lam) == pytest.approx(least), f"seed {seed}"
        if lam == 2.0:
            assert np.count_nonzero(found) < np.count_nonzero(nearest) / 2


def _payload(values: np.ndarray) -> int:
    return plan(Statistics.of(values, values.size)).cost


@pytest.mark.parametrize("size", [20_000, 400_000])
def test_packed_weights_take_fewer_bits_and_lose_little(tmp_path: Path, size: int) -> None:
    seed = 3
    weights = (0.03 * _example(seed, size, 0.2)).astype(np.float32).reshape(-1, 100)
    files = {}
    for lam in (0.0, 0.1):
        path = files[lam] = tmp_path / f"{lam}.egret"
        egret.pack({"w": weights, "b": weights[0]}, path, step_log2=5, rdo=lam)
    nearest, chosen = (egret.load(path).quantized("w").values for path in files.values())
    np.testing.assert_array_equal(nearest, np.rint(weights * 32.0))
    state = {"w": weights, "b": weights[0]}
    again = quantize_state(state, step_log2=5, rdo=0.1)
    assert list(again) == ["w"]
    np.testing.assert_array_equal(again["w"].values, chosen)
    assert again["w"].step_log2 == 5
    assert np.isin(nearest - chosen, [-1, 0, 1, 2, -2]).all()
    moved = chosen != nearest
    assert (np.abs(chosen) <= np.abs(nearest)).all()
    assert 0.01 < moved.mean() < 0.2
    scaled = weights.astype(np.float64) * 32
    costs = [
        np.square(scaled - values).sum() + 0.1 * _payload(values) for values in (nearest, chosen)
    ]
    assert costs[1] < costs[0]
    sizes = [path.stat().st_size for path in files.values()]
    print(f"seed {seed}: {sizes} bytes, {100 * moved.mean():.1f} % of the weights moved")
    assert sizes[1] < 0.93 * sizes[0]
    np.testing.assert_array_equal(egret.load(files[0.1])["b"], weights[0])


def test_large_lam_leaves_nothing(tmp_path: Path) -> None:
    weights = _example(4, 3000, 0.2).astype(np.float32).reshape(30, 100)
    found = quantize_state({"w": weights}, step_log2=0, rdo=1e6)
    assert not found["w"].values.any()


def test_integers_and_what_is_quantised_already_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    integers = rng.integers(-3, 4, (50, 40)).astype(np.int8)
    given = QuantizedTensor(rng.integers(-3, 4, (50, 40)).astype(np.int32), 4)
    weights = rng.laplace(0, 0.01, (50, 40)).astype(np.float32)
    path = tmp_path / "mixed.egret"
    egret.pack({"i": integers, "q": given, "w": weights, "tied": weights}, path, rdo=0.5)
    packed = egret.load(path)
    np.testing.assert_array_equal(packed["i"], integers)
    np.testing.assert_array_equal(packed.quantized("q").values, given.values)
    assert (packed.quantized("w").values != np.rint(weights * 256.0)).any()
    np.testing.assert_array_equal(packed["tied"], packed["w"])
    found = quantize_state({"w": weights, "tied": weights}, rdo=0.5)
    np.testing.assert_array_equal(found["w"].values, found["tied"].values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_dtype(dtype: type) -> None:
    weights: np.ndarray = (0.05 * _example(6, 4000, 0.2)).astype(dtype).reshape(40, 100)
    wide = quantize_state({"w": weights.astype(np.float64)}, step_log2=4, rdo=0.2)["w"]
    found = quantize_state({"w": weights}, step_log2=4, rdo=0.2)["w"]
    np.testing.assert_array_equal(found.values, wide.values)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (0.01 * _example(5, 4000, 0.2)).astype(np.float32).reshape(40, 100)
    source = tmp_path / "in.safetensors"
    save_file({"w": weights}, source)
    arguments = ["pack", str(source), "-o", str(tmp_path / "out.egret"), "--rdo"]
    assert main([*arguments, "0.2"]) == 0
    found = egret.load(tmp_path / "out.egret").quantized("w").values
    np.testing.assert_array_equal(found, quantize_state({"w": weights}, rdo=0.2)["w"].values)
    assert main([*arguments, "-1"]) == 1
    assert "rdo: found -1.0, expected a finite number of 0 or more" in capsys.readouterr().err


def test_bad_lam_is_named() -> None:
    wrong: list[Any] = [float("nan"), float("inf"), -0.1, True, "0.1"]
    for lam in wrong:
        with pytest.raises(EgretError, match="rdo: found"):
            quantize_state({"w": np.ones((2, 2), np.float32)}, rdo=lam)
