"""Where experiments get their networks: settings chosen on the validation split, trained once."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch
from benchmarks.experiments import data
from benchmarks.experiments.measure import Measured, measure
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.tasks import Task
from benchmarks.experiments.training import Settings, Trained, build, train
from torch import nn

from egret.quantize import DEFAULT_STEP_LOG2
from egret.training import Splits

__all__ = ["SEEDS", "TUNING_SEEDS", "Lab", "Point", "knob_values"]

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the networks that are shown."""
CHOICE_SEEDS = 3
"""λ is chosen by so many of them, on the validation split."""
TUNING_SEEDS = (20, 21)
"""Seeds of the networks by which epochs and step sizes are chosen; none is shown."""
FINALISTS = 3
FINAL_SEEDS = (20, 21, 22, 23, 24, 25)
"""Seeds by which the networks of the targets decide between the best `FINALISTS` settings."""
PULLS = (0.5e-4, 1e-4, 2e-4, 4e-4, 8e-4)
"""λ over the number of weights, which makes a λ that carries from one network to another."""
SHARES = (0.8, 0.9, 0.95, 0.98)
"""Shares that pruning goes to."""
COARSE_STEPS = (8, 7, 6, 5, 4, 3, 2)
"""n of the steps 2^-n of the plain network."""
AIMS = (4.0, 2.5, 1.5, 1.0)
"""Targets of the curves, in multiples of a task's limit."""
TIGHT_AIMS = (*(aim / 40 for aim in range(52, 40, -1)), 1.0, 0.95, 0.9)
"""Targets that are tried for the limit itself: from 1.3 down in steps of 0.025, then of 0.05. The
controller goes by the entropy; maps and tables come on top of it, and a code that knows more than
the values' frequencies, a row's or a column's for one, stays below it by up to a quarter."""
_BASE_BITS = 0.9
# Share of the limit that the first seed's payload may take: the mean may lie a little above it.
_SEED_MARGIN = 0.99
# Of a quick run: it shows that the programs work, not what the methods are worth.
QUICK_EPOCHS, QUICK_SAMPLES, QUICK_SEEDS = 2, 256, 2

Value = TypeVar("Value")


@dataclass(frozen=True)
class Point:
    """One setting of one method, over several seeds.

    Parameters
    ----------
    method : str
        Of `METHODS`.
    value : float or None
        λ, share or target that it was trained with.
    step_log2 : int
        n of the step 2^-n that it was packed in.
    pruned : float
        Share of the weights that were set to 0 after the training.
    measured : tuple of Measured
        One for each seed.
    """

    method: str
    value: float | None
    step_log2: int
    pruned: float
    measured: tuple[Measured, ...]


def knob_values(task: Task, method: str) -> tuple[float, ...]:
    """Return the values of a method's knob that are trained: smaller networks come last."""
    knob = METHODS[method].knob
    if knob == "λ":
        return tuple(float(f"{pull * task.architecture.weights:.2g}") for pull in PULLS)
    if knob == "pruned":
        return SHARES
    if knob == "target":
        return tuple(round(aim * _limit(task), 3) for aim in AIMS)
    return tuple(float(step) for step in COARSE_STEPS)


def tight_targets(task: Task) -> tuple[float, ...]:
    """Return the targets that are tried for a task's limit, in bits per weight, largest first."""
    return tuple(round(aim * _limit(task), 3) for aim in TIGHT_AIMS)


def _limit(task: Task) -> float:
    """Return a task's limit; where it has none, the target of the curves' smallest networks."""
    return task.most_bits or _BASE_BITS


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _train(settings: Settings, folder: Path | None, cache: Path, threads: int) -> float:
    """Train in a process of its own, or in this one; return the seconds it took, 0 if none."""
    torch.set_num_threads(threads)
    trained, is_new = train(settings, folder, cache)
    return trained.seconds if is_new else 0.0


class Lab:
    """Trains what experiments ask for, and keeps it.

    Parameters
    ----------
    folder : Path or None
        Where the data lie.
    cache : Path
        Where trained networks are kept.
    seeds : sequence of int
        Seeds of the networks that are shown.
    quick : bool
        Very short trainings on few samples.
    jobs, threads : int
        Trainings at once, and threads of each.
    free : bool
        Every method chooses its epochs as the plain network does, from a task's `target_epochs`,
        and from its `more_rates` too. Else all take the plain network's epochs.
    memory : dict, optional
        Keeps what was measured, for several labs.
    say : Callable, optional
        Takes lines about the progress; standard error when absent.

    Attributes
    ----------
    used : dict of Settings to None
        Every training that was asked for since it was last cleared, in order.
    """

    def __init__(
        self,
        folder: Path | None,
        cache: Path,
        *,
        seeds: Sequence[int] = SEEDS,
        quick: bool = False,
        jobs: int = 1,
        threads: int = 1,
        free: bool = False,
        memory: dict[tuple[Settings, int], Measured] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.cache = folder, cache
        self.seeds = tuple(seeds)[: QUICK_SEEDS if quick else None]
        self.quick = quick
        self.threads = threads
        self._free = free
        self._jobs = jobs
        self._memory = {} if memory is None else memory
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.used: dict[Settings, None] = {}
        self._tuned: dict[tuple[str, str], tuple[int, float]] = {}

    def splits(self, task: Task) -> Splits:
        """Return a task's samples."""
        return data.load(task.data, self.folder)

    def values(self, task: Task, method: str) -> tuple[float, ...]:
        """Return the values of a method's knob; two of them in a quick run."""
        return self.some(knob_values(task, method))

    def some(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return all of them; the first and the last in a quick run."""
        return (values[0], values[-1]) if self.quick else values

    # --- settings ------------------------------------------------------------------------------

    def settings(self, task: Task, method: str, seed: int, value: float | None) -> Settings:
        """Return the settings of a training, epochs and step size as chosen by `tuned`."""
        epochs, learning_rate = self.tuned(task, METHODS[method].trained_as)
        return self._settings(task, method, seed, value, epochs, learning_rate)

    def _settings(
        self,
        task: Task,
        method: str,
        seed: int,
        value: float | None,
        epochs: int,
        learning_rate: float,
    ) -> Settings:
        return Settings(
            task=task.name,
            method=METHODS[method].trained_as,
            seed=seed,
            epochs=epochs,
            batch_size=task.batch_size,
            learning_rate=learning_rate,
            weight_decay=task.weight_decay,
            value=None if METHODS[method].is_packing else value,
            samples=QUICK_SAMPLES if self.quick else None,
        )

    def tuned(self, task: Task, method: str) -> tuple[int, float]:
        """Return epochs and step size with the best quality on the validation split.

        The plain network's epochs hold for all methods, equal steps, unless the lab is `free`. Each
        has a step size of its own, chosen at the middle of its knob's values, by two seeds. In a
        `free` lab that is the middle of the targets tried for the limit, and six seeds decide
        between the best three settings. Of equally good ones the first is taken.
        """
        if self.quick:
            return QUICK_EPOCHS, task.learning_rates[len(task.learning_rates) // 2]
        if (task.name, method) not in self._tuned:
            grid = self._grid(task, method)
            # Where there is nothing to choose nothing is trained.
            if len(grid) > 1:
                found = sorted(self.tuning(task, method), key=lambda row: row[2])
                if self._free:
                    best = [row[:2] for row in found[:FINALISTS]]
                    found = self._tried(task, method, best, FINAL_SEEDS)
                grid = [min(found, key=lambda row: row[2])[:2]]
            self._tuned[task.name, method] = grid[0]
        return self._tuned[task.name, method]

    def tuning(self, task: Task, method: str) -> list[tuple[int, float, float, float]]:
        """Return epochs, step size, shortfall and bits of each setting that is tried.

        The shortfall is the mean quality on the validation split, negated where more is better.
        """
        return self._tried(task, method, self._grid(task, method), TUNING_SEEDS)

    def _grid(self, task: Task, method: str) -> list[tuple[int, float]]:
        if self._free:
            epochs = task.target_epochs or task.epochs
            rates = task.learning_rates + task.more_rates
        else:
            is_plain = METHODS[method].is_packing
            epochs = task.epochs if is_plain else (self.tuned(task, "plain")[0],)
            rates = task.learning_rates
        return [(each, rate) for each in epochs for rate in rates]

    def _tried(
        self, task: Task, method: str, grid: Sequence[tuple[int, float]], seeds: Sequence[int]
    ) -> list[tuple[int, float, float, float]]:
        is_tight = self._free and METHODS[method].knob == "target"
        values = tight_targets(task) if is_tight else knob_values(task, method)
        value = None if METHODS[method].is_packing else values[len(values) // 2]
        wanted = {
            pair: [self._settings(task, method, seed, value, *pair) for seed in seeds]
            for pair in grid
        }
        self.train_all(settings for group in wanted.values() for settings in group)
        found = []
        for (each, rate), group in wanted.items():
            measured = [self._measure(task, settings, DEFAULT_STEP_LOG2) for settings in group]
            # The last digits of a mean shall not decide between equal ones.
            quality = round(fmean(m.validation for m in measured), 9)
            payload = fmean(m.payload for m in measured)
            found.append((each, rate, task.shortfall(quality, 0.0), payload))
        return found

    # --- networks ------------------------------------------------------------------------------

    def train_all(self, wanted: Iterable[Settings]) -> None:
        """Train what the cache lacks, several at once if the lab has several jobs."""
        todo = list(dict.fromkeys(wanted))
        if not todo:
            return
        began = time.monotonic()
        runs = zip(todo, self._trainings(todo), strict=True)
        for done, (settings, seconds) in enumerate(runs, 1):
            self.used[settings] = None
            if seconds:
                left = (time.monotonic() - began) / done * (len(todo) - done)
                knob = METHODS[settings.method].knob
                value = "" if settings.value is None else f" {knob} {settings.value:g}"
                self._say(
                    f"{settings.task}: {settings.method}{value}, seed {settings.seed}, "
                    f"{settings.epochs} epochs, step size {settings.learning_rate:g}: "
                    f"{_minutes(seconds)}; {done} of {len(todo)}, "
                    f"at most {_minutes(left)} left"
                )

    def _trainings(self, todo: Sequence[Settings]) -> Iterator[float]:
        def run(settings: Settings) -> float:
            return _train(settings, self.folder, self.cache, self.threads)

        if self._jobs == 1 or len(todo) == 1:
            yield from map(run, todo)
            return
        # Forked processes would inherit torch's threads in a state that hangs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self._jobs, len(todo)), mp_context=context) as pool:
            count = len(todo)
            yield from pool.map(
                _train, todo, [self.folder] * count, [self.cache] * count, [self.threads] * count
            )

    def trained(self, settings: Settings) -> Trained:
        """Return one network."""
        self.train_all([settings])
        return train(settings, self.folder, self.cache)[0]

    def _measure(
        self,
        task: Task,
        settings: Settings,
        step_log2: int,
        change: Callable[[nn.Module], None] | None = None,
    ) -> Measured:
        """Pack one network and measure it, unless that was done before."""
        key = settings, step_log2
        if change is None and key in self._memory:
            return self._memory[key]
        trained = self.trained(settings)
        model = build(task, trained)
        if change is not None:
            change(model)
        measured = measure(
            task,
            model,
            trained.weight_names,
            self.splits(task),
            seed=settings.seed,
            step_log2=step_log2,
            steps=trained.steps,
        )
        if change is None:
            self._memory[key] = measured
        return measured

    def point(
        self,
        task: Task,
        method: str,
        value: float | None = None,
        *,
        step_log2: int = DEFAULT_STEP_LOG2,
        pruned: float = 0.0,
        change: Callable[[nn.Module], None] | None = None,
    ) -> Point:
        """Train, pack and measure one setting for every seed.

        Parameters
        ----------
        task : Task
            What is trained.
        method : str
            Of `METHODS`.
        value : float, optional
            The knob's value; n of the step 2^-n replaces `step_log2`.
        step_log2 : int
            n of the step 2^-n that is packed in.
        pruned : float
            Kept with the figures, where `change` prunes.
        change : Callable, optional
            Changes the network before it is packed.
        """
        if METHODS[method].knob == "step" and value is not None:
            step_log2 = int(value)
        if METHODS[method].is_packing:
            value = None
        wanted = [self.settings(task, method, seed, value) for seed in self.seeds]
        self.train_all(wanted)
        measured = tuple(self._measure(task, settings, step_log2, change) for settings in wanted)
        return Point(method, value, step_log2, pruned, measured)

    def curve(self, task: Task, method: str) -> list[Point]:
        """Return a point for every value of a method's knob."""
        values = self.values(task, method)
        if not METHODS[method].is_packing:
            self.train_all(
                self.settings(task, method, seed, value) for value in values for seed in self.seeds
            )
        return [self.point(task, method, value) for value in values]

    def chosen(self, task: Task, method: str) -> float:
        """Return the largest λ that the validation split lets pass.

        Of λ with a mean shortfall within the task's tolerance, over the first three seeds, the
        largest; where there is none, the one with the smallest shortfall. What is compared are
        unpacked networks in steps of 2^-8.
        """
        lab = self._for_choice(CHOICE_SEEDS)
        plain = lab.point(task, "plain")
        points = lab.curve(task, method)
        self.used |= lab.used

        def shortfall(point: Point) -> float:
            pairs = zip(point.measured, plain.measured, strict=True)
            return fmean(task.shortfall(a.validation, b.validation) for a, b in pairs)

        passing = [p for p in points if shortfall(p) <= task.tolerance]
        best = passing[-1] if passing else min(points, key=shortfall)
        assert best.value is not None
        return best.value

    def chosen_target(self, task: Task, method: str) -> float:
        """Return the largest target whose payload, with the first seed, is well in the limit.

        Where none is, the smallest target. The payload rises with the target and hardly differs
        between seeds, so that each network rules out half of the targets that are left.
        """
        lab = self._for_choice(1)
        targets = self.some(tight_targets(task))
        first, last = 0, len(targets) - 1
        while first < last:
            middle = (first + last) // 2
            found = lab.point(task, method, targets[middle])
            self.used |= lab.used
            if found.measured[0].payload <= _SEED_MARGIN * _limit(task):
                last = middle
            else:
                first = middle + 1
        return targets[last]

    def freed(self) -> "Lab":
        """Return a lab in which every method chooses its epochs."""
        return self._other(self.seeds, free=True)

    def _for_choice(self, seeds: int) -> "Lab":
        other = self._other(self.seeds[:seeds], free=self._free)
        other._tuned = self._tuned
        return other

    def _other(self, seeds: Sequence[int], *, free: bool) -> "Lab":
        return Lab(
            self.folder,
            self.cache,
            seeds=seeds,
            quick=self.quick,
            jobs=self._jobs,
            threads=self.threads,
            free=free,
            memory=self._memory,
            say=self._say,
        )
