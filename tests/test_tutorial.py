"""The blocks of docs/tutorial.md run, one after the other, and show what the text says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BLOCKS) == TEXT.count("```python") == 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            for number, block in enumerate(BLOCKS, 1):
                exec(compile(block, f"docs/tutorial.md, block {number}", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    bits, right = names["bits"], names["accuracy"]
    x, y = names["test_x"], names["test_y"]
    print(capsys.readouterr().out)
    assert 5 < bits("plain.egret") < 7
    assert bits("model.egret") == pytest.approx(0.7, rel=0.2)
    assert bits("tuned.egret") == pytest.approx(1.0, rel=0.2)
    assert bits("chosen.egret") < bits("coarse.egret")
    for model in ("plain", "back", "tuned"):
        assert right(names[model], x, y) > 0.85, model
    assert right(names["back"], x, y) > right(names["plain"], x, y) - 0.05
