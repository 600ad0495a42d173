"""The runner's choices: the simulator, and waves with their view."""

import os
import re
from pathlib import Path

import pytest

from egret.errors import EgretError
from egret_hw.elastic import ElasticBuffer
from egret_sim.bank import bank_verilog
from egret_sim.benches.streams import Job, Run
from egret_sim.runner import chosen_simulator, count_cycles, run_bench

CYCLES = 30


def play_elastic() -> None:
    job = Job([Run([1, 2, 3], "none", "none", 1, CYCLES)], 4)
    verilog = bank_verilog({"buffer": ElasticBuffer(4)}, "waved")
    run_bench(verilog, "waved", "egret_sim.benches.streams", {"buffer": job})


def test_waves_are_kept_with_a_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "EGRET_BUILD", os.environ.get("EGRET_BUILD", str(Path("build/sim").resolve()))
    )
    monkeypatch.setenv("WAVES", "1")
    monkeypatch.setenv("EGRET_TALLY", str(tmp_path / "cycles"))
    monkeypatch.chdir(tmp_path)
    play_elastic()
    play_elastic()
    name = "test_hw_waves-test_waves_are_kept_with_a_view-call"
    suffix = {"verilator": ".vcd", "icarus": ".fst"}[chosen_simulator()]
    kept = {path.name for path in (tmp_path / "build" / "waves").iterdir()}
    assert kept == {f"{name}-{number}{end}" for number in (0, 1) for end in (suffix, ".gtkw")}
    waves = tmp_path / "build" / "waves" / f"{name}-0{suffix}"
    view = waves.with_suffix(".gtkw").read_text(encoding="utf-8").splitlines()
    assert view[0] == f'[dumpfile] "{waves}"'
    shown = [line for line in view if line.startswith("waved.")]
    assert {line.rpartition(".")[2] for line in shown} >= {"clk", "buffer__i__payload[3:0]"}
    if suffix == ".vcd":
        text = waves.read_text(encoding="utf-8")
        head, _, body = text.partition("$enddefinitions")
        scopes = re.findall(r"\$scope \w+ (\w+) \$end", head)
        names = set(re.findall(r"\$var +\w+ +\d+ +\S+ (\w+)", head))
        assert scopes[0] == "waved"
        assert {line.rpartition(".")[2].partition("[")[0] for line in shown} <= names
        assert body.count("\n#") >= 2 * CYCLES
    noted = (tmp_path / "cycles").read_text(encoding="ascii").split()
    assert len(noted) == 2
    assert all(CYCLES <= int(cycles) < CYCLES + 10 for cycles in noted)


def test_without_waves_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "EGRET_BUILD", os.environ.get("EGRET_BUILD", str(Path("build/sim").resolve()))
    )
    monkeypatch.delenv("WAVES", raising=False)
    monkeypatch.delenv("EGRET_TALLY", raising=False)
    monkeypatch.chdir(tmp_path)
    play_elastic()
    count_cycles(5)
    assert not list(tmp_path.iterdir())


def test_an_unknown_simulator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGRET_SIMULATOR", "modelsim")
    with pytest.raises(
        EgretError, match=r"^EGRET_SIMULATOR: found 'modelsim', expected one of ver"
    ):
        chosen_simulator()


def test_icarus_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGRET_SIMULATOR", "icarus")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EgretError, match=r"iverilog and vvp: not found; .* package iverilog\)$"):
        play_elastic()
