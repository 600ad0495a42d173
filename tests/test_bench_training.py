"""The training benchmarks run, in small, and keep what they print."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import digits_target, rate_step, rate_targets


def test_digits_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.json"
    digits_target.main(["--seeds", "2", "--epochs", "1", "--json", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["seed", "0", "1", "mean", "sd"]
    kept = json.loads(path.read_text())
    seeds = kept["seeds"]
    assert [seed["seed"] for seed in seeds] == [0, 1]
    difference = sum(seed["packed"] - seed["plain"] for seed in seeds) / 2
    assert kept["mean"]["difference"] == pytest.approx(difference)
    assert f"{difference:.3f}" in lines[3].split()
    assert kept["options"]["target_bits"] == seeds[0]["entropy_target"]


def test_rate_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    rate_step.main(["--small", "--rounds", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    kept = json.loads(path.read_text())
    for name in ("every=1", "default"):
        assert kept[f"ratio, {name}"] == pytest.approx(kept[name] / kept["training step"])
        assert f"{100 * kept[f'ratio, {name}']:.1f} %" in printed
    assert ("gpu" in kept) == torch.accelerator.is_available() == ("no GPU" not in printed)


def test_full_gpts_have_the_stated_sizes() -> None:
    with torch.device("meta"):
        models = rate_step.GPT(*rate_step.GPT_30M), rate_step.GPT(*rate_step.GPT2_SMALL)
    small, large = (sum(p.numel() for p in model.parameters()) for model in models)
    assert 29e6 < small < 31e6
    # GPT-2 small has 124.4 million.
    assert 124e6 < large < 125e6


def test_rate_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "targets.json"
    rate_targets.main(["--epochs", "1", "--json", str(path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    kept = json.loads(path.read_text())
    assert len(rows) == len(kept) == len(rate_targets.TRAININGS) + 1
    for row, figure in zip(rows, kept, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == figure["training"]
        assert float(cells[1].replace(",", "")) == figure["asked"]
        assert float(cells[2].replace(",", "")) == pytest.approx(figure["reached"], abs=0.005)
