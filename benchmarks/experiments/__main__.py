"""Run an experiment, print its table, keep its figures, draw them.

    python -m benchmarks.experiments codes --data FOLDER
    python -m benchmarks.experiments all --tasks digits --quick
    python -m benchmarks.experiments page --results FOLDER --page docs/experiments.md

Networks are trained once and kept in --cache, under a fingerprint of their settings, data and
programs: experiments share them, and one that was interrupted goes on. `page` only lays out what
is kept in --results. docs/experiments.md says what each experiment does.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments import data
from benchmarks.experiments.lab import SEEDS, Lab
from benchmarks.experiments.measure import Measured
from benchmarks.experiments.report import draw, format_study, write_page
from benchmarks.experiments.results import Result, read_results, versions, write_result
from benchmarks.experiments.studies import STUDIES
from benchmarks.experiments.tasks import TASKS, Task
from benchmarks.experiments.training import Settings, fingerprint

from egret.errors import EgretError
from egret.training import Splits

__all__ = ["main"]

FOLDER = Path("build/experiments")
"""Where networks and results are kept."""

Memory = dict[tuple[Settings, int], Measured]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="experiments:\n"
        + "\n".join(f"  {name:11} {study.title}" for name, study in STUDIES.items())
        + "\n\ntasks:\n"
        + "\n".join(f"  {name:11} {task.title}" for name, task in TASKS.items()),
    )
    parser.add_argument("name", choices=[*STUDIES, "all", "page"], metavar="NAME", help="see below")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data sets lie")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help="what is trained (digits; with --data everything)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="seeds (0 1 2; 0 to 4 where methods are ranked)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny trainings, to see that all of it works"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training (1)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=FOLDER / "trained",
        help=f"folder of trained networks ({FOLDER / 'trained'})",
    )
    parser.add_argument(
        "--results", type=Path, help=f"folder of the figures ({FOLDER}; {FOLDER}/quick if --quick)"
    )
    parser.add_argument("--page", type=Path, help="Markdown file that shows all kept figures")
    parser.add_argument("--charts", type=Path, help="folder of the SVGs (that of the figures)")
    return parser


def _samples(splits: Splits) -> dict[str, object]:
    counts = {name: len(split.x) for name, split in zip(Splits._fields, splits, strict=True)}
    return {"digest": data.digest(splits), "samples": counts}


def _run(name: str, task: Task, parsed: argparse.Namespace, memory: Memory) -> Result:
    study = STUDIES[name]
    lab = Lab(
        parsed.data,
        parsed.cache,
        seeds=parsed.seeds or SEEDS[: study.seeds],
        quick=parsed.quick,
        jobs=parsed.jobs,
        threads=parsed.threads,
        memory=memory,
    )
    print(
        f"{name}: {study.title}; {task.title}, seeds {', '.join(map(str, lab.seeds))}",
        file=sys.stderr,
        flush=True,
    )
    began = time.monotonic()
    figures = study.run(lab, task)
    architecture = task.architecture
    return Result(
        experiment=name,
        task=task.name,
        quick=parsed.quick,
        seeds=list(lab.seeds),
        network={
            "name": task.network,
            "layers": architecture.title,
            "parameters": architecture.parameters,
            "weights": architecture.weights,
        },
        data=_samples(lab.splits(task)),
        settings=[
            {**dataclasses.asdict(settings), "fingerprint": fingerprint(settings, parsed.data)}
            for settings in lab.used
        ],
        versions=versions(),
        threads=parsed.threads,
        seconds=round(time.monotonic() - began, 1),
        figures=figures,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    for option in ("jobs", "threads"):
        if getattr(parsed, option) < 1:
            parser.error(f"--{option}: found {getattr(parsed, option)}, expected 1 or more")
    seeds = parsed.seeds or [0]
    if min(seeds) < 0 or max(seeds) >= 1 << 63 or len(set(seeds)) < len(seeds):
        parser.error(f"--seeds: found {parsed.seeds}, expected distinct numbers from 0 to 2^63 - 1")
    folder = parsed.results or (FOLDER / "quick" if parsed.quick else FOLDER)
    names = [] if parsed.name == "page" else [parsed.name]
    tasks = parsed.tasks or (["digits"] if parsed.data is None else list(TASKS))
    memory: Memory = {}
    try:
        for name in list(STUDIES) if parsed.name == "all" else names:
            for task in tasks:
                path = write_result(_run(name, TASKS[task], parsed, memory), folder)
                print(f"kept: {path}", file=sys.stderr)
            print(format_study(name, read_results(folder)[name]), flush=True)
        results = read_results(folder)
        for path in draw(results, parsed.charts or folder):
            print(f"drawn: {path}", file=sys.stderr)
        if parsed.page is not None:
            written = write_page(results, parsed.page)
            print(f"{parsed.page}: tables of {', '.join(written) or 'nothing'}", file=sys.stderr)
    except EgretError as error:
        print(f"benchmarks.experiments: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
