"""Mutation testing of the generated accelerators: `make mutate`.

Seeded mutants of Yosys and designers' mistakes, in a model for each of two accelerators; the
suite's own tests of the whole accelerator look for them. Those that survive Yosys tries to prove
equal to the design; of the others, tests/mutation/survivors.toml says why. Ends with tables,
writes JSON and docs/mutation.md, and fails when less than 95 % of those that differ from the
design are caught, or one that is not caught has no explanation.
"""

import argparse
import hashlib
import json
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.page import markdown_table
from tests import image_builder, test_hw_accelerator
from tests.mutation import campaign
from tests.mutation.campaign import Case, find_caught, suite_cases
from tests.mutation.handwritten import LOGIC_MISTAKES, MICROCODE_MISTAKES
from tests.mutation.mutants import (
    Mistake,
    Mutant,
    is_equal,
    mutated_verilog,
    prepare,
    sample,
    unlike_modules,
    variant_verilog,
)
from tests.mutation.player import Played, Player
from tests.test_hw_accelerator import SETS

from egret.errors import EgretError
from egret.files import write_text
from egret.params import AcceleratorParams
from egret_hw.rtl import generate_verilog, top_name
from egret_sim import golden

SHARE = 0.95
"""At least so much must be caught of the mutants that differ from the design."""
PROVED = "Equivalent: Yosys proves the module equal."
EQUIVALENT = "Equivalent"
"""How the explanation of a mutant begins that nothing can tell from the design."""
FIRST_MISTAKE = 60_000
"""Numbers from here on are mistakes written by hand."""
EXPLANATIONS = Path(__file__).parent / "survivors.toml"
_JUDGES = tuple(
    Path(str(module.__file__)) for module in (campaign, golden, image_builder, test_hw_accelerator)
)
PAGE = Path(__file__).parents[2] / "docs/mutation.md"


@dataclass(frozen=True)
class Plan:
    """Mutants of an accelerator: how many of Yosys, and the mistakes."""

    params: AcceleratorParams
    count: int
    mistakes: Sequence[Mistake]


@dataclass
class Verdict:
    """What became of a mutant: `test` is the one that caught it, empty where none did."""

    accelerator: str
    module: str
    key: str
    handwritten: bool
    test: str = ""
    why: str = ""
    explained: str = ""


class Journal:
    """What the tests played so far have caught, so that a campaign that is broken off goes on.

    Parameters
    ----------
    path : Path
        File. What it holds of another model or of other tests is dropped.
    player : Player
        The model.
    """

    def __init__(self, path: Path, player: Player) -> None:
        self.path = path
        texts = [file.read_text(encoding="utf-8") for file in _JUDGES]
        self.key = hashlib.sha256("\0".join([player.model, *texts]).encode()).hexdigest()
        self.cases: dict[str, tuple[dict[str, str], int]] = {}
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["key"] == self.key:
                self.cases = {name: (caught, cycles) for name, caught, cycles in held["cases"]}

    def add(self, case: Case, caught: Mapping[int, str], played: Played) -> None:
        """Note what a test has caught."""
        reasons = {str(number): why[:300] for number, why in caught.items()}
        self.cases[case.name] = (reasons, played.recording.cycles)
        cases = [(name, *each) for name, each in self.cases.items()]
        write_text(self.path, json.dumps({"key": self.key, "cases": cases}, indent=1) + "\n")


def _say(started: float, text: str) -> None:
    print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)


def _run(
    plan: Plan, seed: int, folder: Path, jobs: int, other: AcceleratorParams | None, started: float
) -> tuple[list[Verdict], int]:
    """Make mutants of an accelerator and look for them; return verdicts, and cycles played."""
    params, top = plan.params, top_name(plan.params)
    verilog = generate_verilog(params)
    work = folder / params.name
    variants = variant_verilog(plan.mistakes, params, work, jobs=jobs)
    _say(started, f"{params.name}: {len(variants)} mistakes generated")
    prepare(verilog, top, work)
    alike: list[str] = []
    if other is not None:
        unlike = unlike_modules(verilog, top, generate_verilog(other), top_name(other))
        every = unlike_modules(verilog, top, "", top)
        alike = sorted(every - unlike)
    mutants = sample(work, top, plan.count, seed, leave_out=alike)
    numbered = dict(enumerate(variants, FIRST_MISTAKE))
    text = mutated_verilog(work, top, mutants, numbered)
    mutants += [
        Mutant(FIRST_MISTAKE + place, mistake.file.removesuffix(".py"), mistake.name)
        for place, mistake in enumerate(plan.mistakes)
    ]
    _say(started, f"{params.name}: {len(mutants)} mutants; compiling")
    player = Player(params, text, jobs=jobs)
    verdicts = {
        mutant.number: Verdict(params.name, mutant.module, mutant.key, not mutant.command)
        for mutant in mutants
    }
    journal = Journal(work / "journal.json", player)
    cycles = 0
    for case in suite_cases(params):
        left = [number for number, verdict in verdicts.items() if not verdict.test]
        if case.name not in journal.cases:
            journal.add(case, *find_caught(player, case, left))
        caught, played = journal.cases[case.name]
        cycles += played
        for number, why in caught.items():
            if not verdicts[int(number)].test:
                verdicts[int(number)].test, verdicts[int(number)].why = case.name, why
        _say(started, f"{params.name}: {len(caught)} of {len(left)} by {case.name}")
    survived = [m for m in mutants if not verdicts[m.number].test and m.command]
    for mutant in survived:
        if is_equal(work, top, mutant):
            verdicts[mutant.number].explained = PROVED
    proved = sum(verdict.explained == PROVED for verdict in verdicts.values())
    _say(started, f"{params.name}: {proved} of {len(survived)} survivors proved equal")
    return list(verdicts.values()), cycles


def explain(verdicts: Sequence[Verdict]) -> list[str]:
    """Note the explanations of what survived unproved; return those that fit nothing any more."""
    entries = tomllib.loads(EXPLANATIONS.read_text(encoding="utf-8"))["survivor"]
    reasons = {(entry["accelerator"], entry["key"]): entry["reason"] for entry in entries}
    played = {verdict.accelerator for verdict in verdicts}
    open_ones = [verdict for verdict in verdicts if not verdict.test and not verdict.explained]
    for verdict in open_ones:
        verdict.explained = reasons.get((verdict.accelerator, verdict.key), "")
    survived = {(verdict.accelerator, verdict.key) for verdict in open_ones}
    stale = [place for place in reasons if place[0] in played and place not in survived]
    return [f"{accelerator}: {key}" for accelerator, key in stale]


def score(verdicts: Sequence[Verdict]) -> float:
    """Return the share of the mutants that differ from the design that was caught."""
    caught = sum(verdict.test != "" for verdict in verdicts)
    equal = sum(verdict.explained.startswith(EQUIVALENT) for verdict in verdicts)
    return caught / (len(verdicts) - equal)


def report(verdicts: Sequence[Verdict], seed: int, cycles: int) -> str:
    """Return the page: figures, by module, by test, and what survived.

    Parameters
    ----------
    verdicts : sequence of Verdict
        All mutants.
    seed : int
        Seed of Yosys' choice.
    cycles : int
        Cycles of the scripts, played once.
    """
    found = Counter(verdict.test != "" for verdict in verdicts)
    by_hand = [verdict for verdict in verdicts if verdict.handwritten]
    survived = [verdict for verdict in verdicts if not verdict.test]
    names = " and ".join(dict.fromkeys(verdict.accelerator for verdict in verdicts))
    lines = [
        f"# Mutants of {names}",
        "",
        "Written by `make mutate`; [verification.md](verification.md#mutants) says how.",
        "",
        f"Mutants: {len(verdicts)} ({len(verdicts) - len(by_hand)} of Yosys, seed {seed}, "
        f"{len(by_hand)} mistakes written by hand). Caught: {found[True]}. Survived: "
        f"{found[False]}, of which {sum(v.explained.startswith(EQUIVALENT) for v in survived)} are "
        f"equivalent ({sum(v.explained == PROVED for v in survived)} proved by Yosys). Caught of "
        f"those that are not: {score(verdicts):.1%}. The scripts take {cycles:,} cycles.",
        "",
        "## By module",
        "",
    ]
    modules = sorted({(verdict.accelerator, verdict.module) for verdict in verdicts})
    rows: list[Sequence[object]] = [("accelerator", "module", "mutants", "caught")]
    for accelerator, module in modules:
        own = [v for v in verdicts if (v.accelerator, v.module) == (accelerator, module)]
        rows.append((accelerator, f"`{module}`", len(own), sum(v.test != "" for v in own)))
    lines += [markdown_table(rows[0], rows[1:]), "", "## By the test that caught them first", ""]
    tests = Counter((v.accelerator, v.test) for v in verdicts if v.test)
    rows = [("accelerator", "test", "caught")]
    rows += [(accelerator, f"`{test}`", number) for (accelerator, test), number in tests.items()]
    lines += [markdown_table(rows[0], rows[1:]), "", "## Mistakes written by hand", ""]
    rows = [("accelerator", "file", "mistake", "caught by")]
    rows += [
        (v.accelerator, f"`{v.module}.py`", v.key, f"`{v.test}`" if v.test else "nothing")
        for v in by_hand
    ]
    lines += [markdown_table(rows[0], rows[1:]), "", "## Survivors", ""]
    rows = [("accelerator", "mutant", "explanation")]
    rows += [
        (v.accelerator, f"`{v.key.replace('|', '&#124;')}`", v.explained or "**none**")
        for v in survived
    ]
    lines += [markdown_table(rows[0], rows[1:]) if survived else "None.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the campaign; return 0 when enough is caught and the rest is explained."""
    parser = argparse.ArgumentParser(prog="tests.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=240, help="mutants of Yosys, about")
    parser.add_argument("--accelerator", help="only this one, by its name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/mutation"))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    microcode, logic = SETS[2], SETS[3]
    share = options.count // 3
    plans = [
        (Plan(microcode, options.count - share, MICROCODE_MISTAKES), None),
        # Of the second one only what it does not share with the first.
        (Plan(logic, share, LOGIC_MISTAKES), microcode),
    ]
    verdicts: list[Verdict] = []
    cycles = 0
    try:
        for plan, other in plans:
            if options.accelerator not in (None, plan.params.name):
                continue
            more, played = _run(plan, options.seed, options.folder, options.jobs, other, started)
            verdicts += more
            cycles += played
    except EgretError as error:
        print(f"egret: {error}", file=sys.stderr)
        return 1
    if not verdicts:
        print(f"egret: no accelerator is named {options.accelerator!r}", file=sys.stderr)
        return 1
    stale = explain(verdicts)
    page = report(verdicts, options.seed, cycles)
    write_text(options.page, page)
    rows = [asdict(verdict) for verdict in verdicts]
    write_text(options.folder / "mutants.json", json.dumps(rows, indent=1) + "\n")
    print()
    print(page)
    silent = [v for v in verdicts if not v.test and not v.explained]
    for verdict in silent:
        print(f"egret: not caught: {verdict.accelerator}: {verdict.key}", file=sys.stderr)
    for entry in stale:
        print(f"egret: {EXPLANATIONS.name} explains no survivor: {entry}", file=sys.stderr)
    if score(verdicts) < SHARE:
        print(f"egret: found {score(verdicts):.1%} caught, expected {SHARE:.0%}", file=sys.stderr)
    print(f"mutate: {len(verdicts)} mutants, {score(verdicts):.1%} of those that differ caught")
    return int(score(verdicts) < SHARE or bool(silent) or bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
