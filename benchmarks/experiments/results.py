"""Results of experiments as JSON files, one for each experiment and task."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.experiments.studies import STUDIES
from benchmarks.experiments.tasks import TASKS

from egret.errors import EgretError
from egret.files import write_text

__all__ = ["Result", "read_results", "versions", "write_result"]


@dataclass(frozen=True)
class Result:
    """What an experiment found on one task, and everything that it depends on.

    Parameters
    ----------
    experiment, task : str
        Of `STUDIES` and of `TASKS`.
    quick : bool
        Whether it was a quick run, whose figures mean nothing.
    seeds : list of int
        Seeds of the networks shown.
    network : dict
        Architecture, parameters and weights.
    data : dict
        Fingerprint, and number of samples of each split.
    settings : list of dict
        Those of every training, with the fingerprint of settings, data and programs.
    versions : dict of str to str
        Of Python and of packages.
    threads : int
        Threads of a training.
    seconds : float
        Time that it took here, without what had been trained before.
    figures : dict
        What it found.
    """

    experiment: str
    task: str
    quick: bool
    seeds: list[int]
    network: dict[str, Any]
    data: dict[str, Any]
    settings: list[dict[str, Any]]
    versions: dict[str, str]
    threads: int
    seconds: float
    figures: dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions that figures may depend on."""
    found = {name: version(name) for name in ("egret", "numpy", "scikit-learn", "torch")}
    return {"python": platform.python_version(), **found}


def _path(folder: Path, experiment: str, task: str) -> Path:
    return folder / f"{experiment}-{task}.json"


def write_result(result: Result, folder: Path) -> Path:
    """Write a result into a folder, in the place of an older one.

    Raises
    ------
    EgretError
        The file cannot be written.
    """
    path = _path(folder, result.experiment, result.task)
    write_text(path, json.dumps(asdict(result), indent=1) + "\n")
    return path


def read_results(folder: Path, experiments: Iterable[str] = STUDIES) -> dict[str, list[Result]]:
    """Read what a folder has.

    Returns
    -------
    dict of str to list of Result
        By experiment, those that there are, in the order of `TASKS`.

    Raises
    ------
    EgretError
        A file is damaged.
    """
    found: dict[str, list[Result]] = {}
    for experiment in experiments:
        for task in TASKS:
            path = _path(folder, experiment, task)
            if not path.exists():
                continue
            try:
                result = Result(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise EgretError(
                    f"{path}: found no result of an experiment ({error}); remove the file or run "
                    f"{experiment} again"
                ) from error
            found.setdefault(experiment, []).append(result)
    return found
