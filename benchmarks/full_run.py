"""Runs every check that the repository has, and prints a page of what was run: `make test-full`.

Each step is a make target. All are run, whatever the ones before gave; what they print goes to the
console and into build/test-full. The exit status tells whether all passed.

    python -m benchmarks.full_run
    python -m benchmarks.full_run --steps sim sim-icarus faults
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egret.files import write_text

__all__ = ["STEPS", "Result", "counts", "format_page", "main"]

FOLDER = Path("build/test-full")
STEPS: dict[str, tuple[str, ...]] = {
    "lint": ("lint",),
    "test": ("test",),
    "sim": ("sim", "SIM=verilator", "SEED=1"),
    "sim-icarus": ("sim", "SIM=icarus", "SEED=1"),
    "faults": ("faults",),
    "formal": ("formal",),
    "sim-long": ("sim-long",),
    "mutate": ("mutate",),
    "coverage": ("coverage",),
}
"""Names and what make is given."""
_PATTERNS = {
    "tests": r"(?m)^(?:=+ )?(?:\d+ failed, )?(\d+) passed",
    "faults": r"(?m)^\.*faults: .*: (\d+) faults \(",
    "proofs": r"(?m)^PASS  \S+()",
    "weights": r"(?m)^sim-long: ([\d,]+) weights",
    "mutants": r"(?m)^mutate: (\d+) mutants",
}


@dataclass(frozen=True)
class Result:
    """A step's name, whether it passed, its counts by what is counted, and its seconds."""

    step: str
    is_passed: bool
    counts: dict[str, int]
    seconds: float


def counts(text: str) -> dict[str, int]:
    """Return what a step's output says it ran, by what is counted."""
    found = {}
    for name, pattern in _PATTERNS.items():
        # A line without a number counts as one.
        numbers = [int(n.replace(",", "")) if n else 1 for n in re.findall(pattern, text)]
        if numbers:
            found[name] = sum(numbers)
    return found


def _run(step: str, make: str) -> Result:
    """Run a step; its output is shown and kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tally = FOLDER / f"{step}.cycles"
    tally.unlink(missing_ok=True)
    lines = []
    began = time.monotonic()
    with subprocess.Popen(
        [make, "--no-print-directory", *STEPS[step]],
        env={**os.environ, "EGRET_TALLY": str(tally.resolve())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # a pipe was asked for
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    seconds = time.monotonic() - began
    write_text(FOLDER / f"{step}.log", "".join(lines))
    found = counts("".join(lines))
    if tally.exists():
        found["cycles"] = sum(map(int, tally.read_text(encoding="ascii").split()))
    return Result(step, process.returncode == 0, found, seconds)


def format_page(results: Sequence[Result]) -> str:
    """Return the summary: a line for each step, and the sums."""
    lines = ["", "Everything that was run", ""]
    totals: dict[str, int] = {}
    for result in results:
        for name, count in result.counts.items():
            totals[name] = totals.get(name, 0) + count
        shown = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
        verdict = "passed" if result.is_passed else "FAILED"
        lines.append(f"  {result.step:12} {verdict:8} {result.seconds:8.0f} s  {shown}".rstrip())
    failed = [result.step for result in results if not result.is_passed]
    lines += ["", "  in all: " + ", ".join(f"{count:,} {name}" for name, count in totals.items())]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    lines.append(f"  {verdict}, {sum(result.seconds for result in results) / 60:.0f} minutes")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print and keep the page, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.full_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parsed = parser.parse_args(arguments)
    make = os.environ.get("MAKE", "make")
    results = [_run(step, make) for step in parsed.steps]
    page = format_page(results)
    write_text(FOLDER / "summary.txt", page)
    print(page, end="")
    return 0 if all(result.is_passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
