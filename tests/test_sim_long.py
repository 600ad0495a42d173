"""The long run: what it streams, that it compares, and what it prints."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from benchmarks import sim_long
from benchmarks.sim_long import SIDE, Totals, play, sources
from tests.small_accelerator import SMALL

from egret.errors import EgretError
from egret.params import PRESETS
from egret_sim.fast import FastModel


def matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    values = rng.integers(-7, 8, (40, 50)).astype(np.int32)
    values[rng.random(values.shape) < 0.7] = 0
    return {"one": values, "two": values[::-1, :30].copy()}


def test_what_is_played_is_counted() -> None:
    totals = Totals()
    played, rng = matrices(), np.random.default_rng(1)
    for _ in range(2):
        play(FastModel(SMALL), "two matrices", played, totals, rng)
    assert totals.weights == 2 * 40 * 80
    assert totals.zeros == 2 * sum(int((values == 0).sum()) for values in played.values())
    assert totals.results == 2 * 80 * SMALL.batch
    assert totals.cycles > 2 * (totals.weights - totals.zeros) / 2 / SMALL.lanes
    assert totals.seconds > 0


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sim_long.expected_results

    def one_off(*arguments: Any) -> Any:
        activations, results = expected(*arguments)
        results[-1][3] += 1
        return activations, results

    monkeypatch.setattr(sim_long, "expected_results", one_off)
    with pytest.raises(
        EgretError, match=r"^two matrices, pauses .*, seed \d+: .* differ from NumPy"
    ):
        play(FastModel(SMALL), "two matrices", matrices(), Totals(), np.random.default_rng(1))


def test_sources_fit_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_long, "digits_models", lambda: iter(()))
    monkeypatch.setattr(sim_long, "SIDE", 64)
    drawn = list(islice(sources(np.random.default_rng(1)), 30))
    assert len({name for name, _ in drawn}) > 20
    for _, found in drawn:
        for values in found.values():
            assert values.dtype == np.int32
            assert max(values.shape) <= 64
            assert 0 < np.abs(values).max() <= 127
    depth = min(PRESETS[name].row_depth for name in ("m-ddr3", "l-onchip"))
    assert depth >= SIDE
