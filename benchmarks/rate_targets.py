"""How close the rate controller comes to what is asked for, over models, losses and optimisers.

Nothing is set for a model but the target. The trainings are short: they show the bits, not the best
accuracy. `tests/test_rate.py` runs the same ones.

    python -m benchmarks.rate_targets --json docs/results/rate-targets.json
"""

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import egret
from egret.files import write_text
from egret.qat import StraightThrough
from egret.rate import RateRegularizer

TRAININGS: list[tuple[str, float, int, dict[str, Any]]] = [
    ("digits", 2.0, 20, {}),
    ("digits", 0.6, 20, {}),
    ("digits", 1.0, 20, {"falling": True}),
    ("images", 0.3, 20, {}),
    ("images", 0.6, 20, {"falling": True}),
    ("images", 0.6, 20, {"units": 1000.0}),
    ("images", 0.6, 20, {"units": 0.001}),
    ("images", 0.6, 20, {"optimizer": "momentum"}),
    ("images", 1.0, 5, {}),
    ("curve", 2.0, 20, {}),
    ("curve", 0.4, 20, {}),
    ("digits", 2.0, 20, {"rounded": True}),
    ("digits", 0.6, 20, {"rounded": True}),
    ("images", 1.0, 5, {"rounded": True, "falling": True}),
    ("images", 0.6, 20, {"rounded": True}),
    ("curve", 2.0, 40, {"rounded": True}),
    ("classes", 1.0, 20, {"rounded": True}),
    ("classes", 1.0, 20, {"rounded": True, "optimizer": "sgd"}),
    ("classes", 1.0, 20, {"rounded": True, "optimizer": "adagrad"}),
    ("classes", 0.5, 20, {"rounded": True, "optimizer": "adagrad"}),
    ("classes", 1.0, 20, {"rounded": True, "optimizer": "adamax"}),
]
"""Task, bits per weight asked for, epochs, and what else differs, as of `train_task`."""
SIZE = ("digits", 0.014, 40)
"""Task, size of the file asked for in units of 10^6 bytes, and epochs."""

_TITLES = {
    "digits": "digits MLP",
    "images": "CNN with batch norm on synthetic images",
    "curve": "MLP fitting a function",
    "classes": "MLP of 1,792 weights",
}
_OPTIMIZERS: dict[str, tuple[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]]] = {
    "adam": ("AdamW", lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)),
    "momentum": (
        "SGD with momentum",
        lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    ),
    "sgd": ("SGD", lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    "adagrad": ("Adagrad", lambda parameters: torch.optim.Adagrad(parameters, lr=0.02)),
    "adamax": ("Adamax", lambda parameters: torch.optim.Adamax(parameters, lr=5e-3)),
}


class Task:
    """A small problem.

    Parameters
    ----------
    make : Callable
        Makes the model.
    sample : Callable
        Draws so many samples, inputs and what is asked for.
    criterion : Callable
        How wrong an output is.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        sample: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]],
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        self.make, self.criterion = make, criterion
        self.x, self.y = sample(640, generator)
        self.validation = sample(300, generator)


def _digits() -> Task:
    from egret.recipes.digits import DigitsMLP, load_digits_split

    splits = load_digits_split()
    rest = iter([(splits.train.x, splits.train.y), (splits.validation.x, splits.validation.y)])
    return Task(DigitsMLP, lambda n, generator: next(rest), nn.functional.cross_entropy)


def _images() -> Task:
    patterns = torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(4))

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(0, 6, (n,), generator=generator)
        return patterns[y] + torch.randn(n, 1, 12, 12, generator=generator), y

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 12, 3),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(216, 32),
            nn.ReLU(),
            nn.Linear(32, 6),
        )

    return Task(make, sample, nn.functional.cross_entropy)


def _curve() -> Task:
    matrix = torch.randn(20, 3, generator=torch.Generator().manual_seed(3)) * 0.3

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 20, generator=generator)
        return x, torch.tanh(x @ matrix)

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 100), nn.Tanh(), nn.Linear(100, 100), nn.Linear(100, 3))

    return Task(make, sample, nn.functional.mse_loss)


def _classes() -> Task:
    centres = torch.randn(8, 20, generator=torch.Generator().manual_seed(2))

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(0, 8, (n,), generator=generator)
        return centres[y] + torch.randn(n, 20, generator=generator), y

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 8))

    return Task(make, sample, nn.functional.cross_entropy)


TASKS = {"digits": _digits, "images": _images, "curve": _curve, "classes": _classes}


def train_task(
    task: Task,
    epochs: int,
    arguments: dict,
    *,
    optimizer: str = "adam",
    units: float = 1.0,
    falling: bool = False,
    rounded: bool = False,
) -> tuple[nn.Module, RateRegularizer]:
    """Train on one thread.

    Parameters
    ----------
    task : Task
        What to train.
    epochs : int
        Passes over the samples.
    arguments : dict
        Of `RateRegularizer`, besides `steps`.
    optimizer : str
        "adam", "momentum" (SGD), "sgd", "adagrad" or "adamax".
    units : float
        What the loss is multiplied by.
    falling : bool
        Whether the learning rate falls to 0 along half a cosine.
    rounded : bool
        Whether the weights are rounded in training, in steps that are chosen for the target.

    Returns
    -------
    tuple of torch.nn.Module and RateRegularizer
        The trained model, in evaluation mode, and its regulariser.
    """
    steps = epochs * math.ceil(len(task.x) / 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = task.make()
            trainer = _OPTIMIZERS[optimizer][1](model.parameters())
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer, steps)
            quantizer = None
            if rounded:
                quantizer = StraightThrough(model, target_bits=arguments["target_bits"])
            regularizer = RateRegularizer(model, steps=steps, quantizer=quantizer, **arguments)
            for _ in range(epochs):
                for batch in torch.randperm(len(task.x)).split(64):
                    trainer.zero_grad()
                    with quantizer or contextlib.nullcontext():
                        (units * task.criterion(model(task.x[batch]), task.y[batch])).backward()
                    trainer.step()
                    regularizer.step(trainer)
                    if falling:
                        schedule.step()
            if quantizer is not None:
                quantizer.apply()
    finally:
        torch.set_num_threads(threads)
    return model.eval(), regularizer


def _changes(training: dict[str, Any]) -> str:
    words = {
        "falling": lambda value: "learning rate falling to 0",
        "units": lambda value: f"loss times {value:g}",
        "optimizer": lambda value: _OPTIMIZERS[value][0],
        "rounded": lambda value: "weights rounded",
    }
    return "".join(f", {words[key](value)}" for key, value in training.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every training and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help="passes over the data (each training's)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parsed = parser.parse_args(arguments)
    print("| training | asked for | reached |\n|---|---|---|")
    figures = []
    for name, target, own, training in TRAININGS:
        epochs = parsed.epochs or own
        _, regularizer = train_task(TASKS[name](), epochs, {"target_bits": target}, **training)
        reached = regularizer.bits_per_weight()
        title = f"{_TITLES[name]}, {epochs} epochs{_changes(training)}"
        print(f"| {title} | {target:g} | {reached:.2f} |", flush=True)
        figures.append({"training": title, "asked": target, "reached": reached})
    name, megabytes, own = SIZE
    epochs = parsed.epochs or own
    model, _ = train_task(TASKS[name](), epochs, {"target_mb": megabytes})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.egret"
        egret.pack(model.state_dict(), path)
        size = path.stat().st_size
    title = f"{_TITLES[name]}, {epochs} epochs, bytes of the file"
    print(f"| {title} | {1e6 * megabytes:,.0f} | {size:,} |")
    figures.append({"training": title, "asked": 1e6 * megabytes, "reached": size})
    if parsed.json is not None:
        write_text(parsed.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
