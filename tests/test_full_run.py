"""The page behind `make test-full`: counts out of what the steps print, and the verdict."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.full_run import STEPS, Result, counts, format_page, main

MAKE = """#!{python}
import os, sys
print("egret: " + " ".join(sys.argv[1:]))
print("== 7 passed, 1 warning in 3.2s ==")
open(os.environ["EGRET_TALLY"], "a").write("1000\\n24\\n")
sys.exit("SIM=icarus" in sys.argv)
"""


def test_counts_are_read_from_the_output() -> None:
    printed = (
        "....\n=========== 412 passed in 90.01s (0:01:30) ============\n"
        "== 2 failed, 30 passed, 1 warning in 3.20s ==\n"
        ".faults: s: bit flips: 1536 faults (254 DESCRIPTOR, 1282 CRC)\n"
        "faults: s: truncation: 92 faults (92 TRUNCATED)\n"
        "PASS  Queue\nPASS  Gearbox\nFAIL  Parser\nmodule  property  result\nQueue  x  PASS\n"
        "sim-long: egret_s.v of hw/verilog, seed 1\n"
        "sim-long: 20,345,678 weights (61 % zero) in 1,234,567 cycles, 9 results\n"
        "mutate: 214 mutants, 209 caught\n"
    )
    assert counts(printed) == {
        "tests": 442,
        "faults": 1628,
        "proofs": 2,
        "weights": 20_345_678,
        "mutants": 214,
    }
    assert counts("nothing of the kind\n") == {}


def test_quiet_pytest_is_counted_too() -> None:
    assert counts("..\n30 passed in 4.00s\n") == {"tests": 30}


def test_the_page_says_what_failed() -> None:
    results = [
        Result("lint", True, {}, 4.0),
        Result("sim", True, {"tests": 1200, "cycles": 5_000_000}, 100.0),
        Result("faults", False, {"tests": 12, "faults": 9000}, 80.0),
    ]
    page = format_page(results)
    assert "  sim          passed        100 s  1,200 tests, 5,000,000 cycles\n" in page
    assert "in all: 1,212 tests, 5,000,000 cycles, 9,000 faults\n" in page
    assert page.endswith("  FAILED: faults, 3 minutes\n")
    assert format_page(results[:2]).endswith("  all passed, 2 minutes\n")


def test_every_step_runs_whatever_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make = tmp_path / "make"
    make.write_text(MAKE.format(python=sys.executable))
    make.chmod(0o755)
    monkeypatch.setenv("MAKE", str(make))
    monkeypatch.chdir(tmp_path)
    assert main(["--steps", "sim-icarus", "formal"]) == 1
    assert main(["--steps", "formal"]) == 0
    out = capfd.readouterr().out
    assert "egret: --no-print-directory sim SIM=icarus SEED=1\n" in out
    assert "  sim-icarus   FAILED " in out
    assert "  formal       passed " in out
    assert "in all: 14 tests, 2,048 cycles\n" in out
    assert "7 passed" in (tmp_path / "build/test-full/formal.log").read_text()
    assert "all passed" in (tmp_path / "build/test-full/summary.txt").read_text()


def test_make_knows_the_targets() -> None:
    root = Path(__file__).parent.parent
    steps = (root / "Makefile").read_text(encoding="utf-8").partition("FULL_STEPS := ")[2]
    for step in steps.splitlines()[0].split():
        done = subprocess.run(
            ["make", "-n", *STEPS[step]], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
