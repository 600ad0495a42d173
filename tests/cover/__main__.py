"""Coverage of the suite's tests of the whole accelerator: `make coverage`.

Functional: what the packets of the tests have in common. Structural: lines and toggles of the
generated Verilog, which Verilator counts. Writes docs/coverage.md, and fails where something is not
covered that tests/cover/holes.toml does not explain.
"""

import argparse
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.page import markdown_table
from tests.cover.constants import constant_bits
from tests.cover.functional import Collector
from tests.cover.structural import FLAGS, Structure, format_bits
from tests.mutation.campaign import find_caught, suite_cases
from tests.mutation.player import NO_LIMIT, Played, Player
from tests.test_hw_accelerator import SETS

from egret.errors import EgretError
from egret.files import write_text
from egret.params import AcceleratorParams
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.benches.accelerator import Job
from egret_sim.golden import GoldenAccelerator, Outcome

EXPLANATIONS = Path(__file__).parent / "holes.toml"
PAGE = Path(__file__).parents[2] / "docs/coverage.md"
CONSTANT = "Constant in this accelerator, as Yosys proves."


@dataclass(frozen=True)
class Hole:
    """Something that is not covered: its kind, a text that says what, and why it may be so."""

    kind: str
    what: str
    reason: str = ""


@dataclass(frozen=True)
class Measured:
    """Coverage of an accelerator."""

    params: AcceleratorParams
    cases: int
    cycles: int
    collector: Collector
    structure: Structure
    holes: list[Hole]


class CoveringPlayer(Player):
    """Plays the design alone, and keeps what Verilator writes about it."""

    def __init__(
        self, params: AcceleratorParams, verilog: str, structure: Structure, folder: Path
    ) -> None:
        super().__init__(params, verilog, mutants=False, flags=FLAGS, jobs=1)
        self.structure = structure
        self.file = folder / "coverage.dat"
        self.pause = ""

    def play(
        self,
        job: Job,
        mutants: Sequence[int],
        *,
        limit: int = NO_LIMIT,
        coverage: Path | None = None,
    ) -> dict[int, Played]:
        """Play a job; see `Player`."""
        if mutants:
            self.pause = job.pause
            coverage = self.file
        played = super().play(job, mutants, limit=limit, coverage=coverage)
        if mutants:
            self.structure.add(self.file)
        return played


def measure(params: AcceleratorParams, folder: Path) -> Measured:
    """Run the suite's tests on an accelerator and count.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    folder : Path
        Where Verilator's file goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    structure, collector = Structure(), Collector(params)
    verilog = generate_verilog(params)
    constant = constant_bits(verilog, top_name(params), folder)
    player = CoveringPlayer(params, verilog, structure, folder)
    run_packet = GoldenAccelerator.run_packet
    sent: list[tuple[bytes, Outcome]] = []

    def noting(self: GoldenAccelerator, packet: bytes, *rest: Any, **options: Any) -> Outcome:
        outcome = run_packet(self, packet, *rest, **options)
        sent.append((packet, outcome))
        return outcome

    cases = suite_cases(params)
    cycles = 0
    for case in cases:
        sent.clear()
        with patch.object(GoldenAccelerator, "run_packet", noting):
            _, played = find_caught(player, case, [])
        # What a test that fails sends counts for nothing: that raises.
        for packet, outcome in sent:
            collector.sample(packet, outcome, player.pause)
        cycles += played.recording.cycles
        print(f"{params.name}: {case.name}: {played.recording.cycles:,} cycles", flush=True)
    holes = _holes(collector, structure, verilog, constant)
    return Measured(params, len(cases), cycles, collector, structure, holes)


def _holes(
    collector: Collector,
    structure: Structure,
    verilog: str,
    constant: Mapping[tuple[str, str], set[int]],
) -> list[Hole]:
    top = top_name(collector.params)
    texts = verilog.splitlines()
    holes = [
        Hole("functional", f"{group.name}: {', '.join(values)}")
        for group, values in collector.holes()
    ]
    holes += [
        Hole("line", f"{_short(module, top)}: {' '.join(texts[line - 1].split())}")
        for module, line in structure.missing_lines()
    ]
    for (module, signal), bits in structure.missing_toggles().items():
        name = f"{_short(module, top)}.{signal}"
        proved = constant.get((module, signal), set())
        if not bits:
            holes.append(Hole("toggle", name, CONSTANT if proved else ""))
            continue
        for part, reason in ((bits & proved, CONSTANT), (bits - proved, "")):
            if part:
                holes.append(Hole("toggle", f"{name}[{format_bits(part)}]", reason))
    return holes


def _short(module: str, top: str) -> str:
    return module.removeprefix(f"{top}_") if module != top else "top"


def explain(holes: Sequence[Hole], accelerator: str) -> list[Hole]:
    """Return holes with their reasons.

    Parameters
    ----------
    holes : sequence of Hole
        Holes; those that have a reason keep it.
    accelerator : str
        Whose they are.
    """
    rules = tomllib.loads(EXPLANATIONS.read_text(encoding="utf-8"))["hole"]
    return [
        Hole(
            hole.kind,
            hole.what,
            hole.reason
            or next(
                (
                    rule["reason"]
                    for rule in rules
                    if rule["kind"] == hole.kind
                    and rule.get("accelerator", accelerator) == accelerator
                    and re.match(rule["match"], hole.what)
                ),
                "",
            ),
        )
        for hole in holes
    ]


def _reached(count: int, of: int) -> str:
    return f"{count} of {of} ({count / of:.1%})" if of else "none"


def report(measured: Sequence[Measured]) -> str:
    """Return the page."""
    lines = [
        "# Coverage of the accelerator's tests",
        "",
        "Written by `make coverage`; [verification.md](verification.md#coverage) says how.",
        "",
    ]
    rows: list[Sequence[object]] = [("accelerator", "tests", "cycles", "bins", "lines", "toggles")]
    for each in measured:
        bins = [(found, len(group.bins)) for group, found in each.collector.totals()]
        totals = [each.structure.totals(module) for module in each.structure.modules()]
        sums = [sum(column) for column in zip(*totals, strict=True)]
        rows.append(
            (
                each.params.name,
                each.cases,
                f"{each.cycles:,}",
                _reached(sum(found for found, _ in bins), sum(of for _, of in bins)),
                _reached(sums[0], sums[1]),
                _reached(sums[2], sums[3]),
            )
        )
    lines += [markdown_table(rows[0], rows[1:]), ""]
    for each in measured:
        name = each.params.name
        top = top_name(each.params)
        lines += [f"## {name}: functional", ""]
        rows = [("looked at together", "bins")]
        rows += [
            (group.name, _reached(found, len(group.bins)))
            for group, found in each.collector.totals()
        ]
        lines += [markdown_table(rows[0], rows[1:]), "", f"## {name}: lines and toggles", ""]
        rows = [("module", "lines", "toggles")]
        for module in each.structure.modules():
            reached, of, seen, toggles = each.structure.totals(module)
            rows.append(
                (f"`{_short(module, top)}`", _reached(reached, of), _reached(seen, toggles))
            )
        lines += [markdown_table(rows[0], rows[1:]), "", f"## {name}: not covered", ""]
        reasons = dict.fromkeys(hole.reason for hole in each.holes)
        rows = [("why", "what")]
        for reason in reasons:
            own = [f"`{hole.what}`" for hole in each.holes if hole.reason == reason]
            rows.append((reason or "**not explained**", "<br>".join(own).replace("|", "&#124;")))
        lines += [markdown_table(rows[0], rows[1:]) if each.holes else "Nothing.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure; return 0 when every hole is explained."""
    parser = argparse.ArgumentParser(prog="tests.cover", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/coverage"))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    measured = []
    try:
        for params in SETS[2:4]:
            found = measure(params, options.folder / params.name)
            holes = explain(found.holes, params.name)
            measured.append(
                Measured(params, found.cases, found.cycles, found.collector, found.structure, holes)
            )
    except EgretError as error:
        print(f"egret: {error}", file=sys.stderr)
        return 1
    page = report(measured)
    write_text(options.page, page)
    print(page)
    silent = [(each.params.name, hole) for each in measured for hole in each.holes]
    silent = [(name, hole) for name, hole in silent if not hole.reason]
    for name, hole in silent:
        print(f"egret: not covered: {name}: {hole.kind}: {hole.what[:200]}", file=sys.stderr)
    print(f"egret: {len(silent)} holes without a reason, {time.monotonic() - started:.0f} s")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
