"""Trainings: the methods that are compared, one loop for all of them, and a cache on the disk."""

import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import pickle
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.experiments import data
from benchmarks.experiments.tasks import TASKS, Task
from torch import nn

from egret.errors import EgretError
from egret.files import atomic_path
from egret.pruning import MagnitudePruner
from egret.rate import RateRegularizer, entropy_per_weight
from egret.training import Split, Splits

__all__ = [
    "METHODS",
    "Method",
    "Record",
    "Rule",
    "Settings",
    "Trained",
    "build",
    "quality",
    "sources_digest",
    "train",
]

FINAL_SHARE = 0.1
"""Share of the steps, at the end, that a rate in the loss is left out for (arXiv 2506.00486)."""
RECORDS = 40
"""States of a training that are kept, evenly over its epochs, or one for each epoch."""
_EVALUATION_BATCH = 500
# What decides the weights that come out, by module.
_SOURCES = (
    "benchmarks.experiments.data",
    "benchmarks.experiments.models",
    "benchmarks.experiments.training",
    "egret.ggd",
    "egret.pruning",
    "egret.rate",
    "egret.rate_control",
    "egret.recipes.digits",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a training depends on, besides the sources and the data.

    Parameters
    ----------
    task : str
        Of `benchmarks.experiments.tasks.TASKS`.
    method : str
        Of `METHODS`.
    seed : int
        Of the initial weights, the order of the samples, dropout and augmentation.
    epochs, batch_size : int
        Passes over the training data, and samples per step.
    learning_rate : float
        AdamW's step size at the start; it falls to 0 along half a cosine.
    weight_decay : float
        AdamW's.
    value : float or None
        The method's knob; None where training has none.
    samples : int or None
        So many training samples only; all where None.
    """

    task: str
    method: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    value: float | None = None
    samples: int | None = None


class Rule:
    """What a method does in each step of a training; this one trains an ordinary network."""

    lam = 0.0

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context of the forward and the backward pass."""
        return nullcontext()

    def loss(self) -> torch.Tensor | None:
        """Return what is added to the loss."""
        return None

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what comes after the optimiser's step."""


class _InLoss(Rule):
    """A rate, or a norm, in the loss, but for the final steps."""

    def __init__(self, model: nn.Module, lam: float, nu: float | str, steps: int) -> None:
        self._regularizer = RateRegularizer(model, lam, nu=nu, every=1)
        self._left = round((1 - FINAL_SHARE) * steps)
        self.lam = lam

    def loss(self) -> torch.Tensor | None:
        self._left -= 1
        return self._regularizer.loss() if self._left >= 0 else None


class _Proximal(Rule):
    """The proximal step and the controller that leads to a target."""

    def __init__(self, model: nn.Module, target_bits: float, steps: int) -> None:
        self._regularizer = RateRegularizer(model, target_bits=target_bits, steps=steps)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self._regularizer.step(optimizer)
        self.lam = self._regularizer.lam


class _Pruning(Rule):
    """Gradual magnitude pruning in the first half, fine-tuning with masks in the second."""

    def __init__(self, model: nn.Module, share: float, steps: int) -> None:
        self._pruner = MagnitudePruner(model, share, steps=max(1, steps // 2))

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self._pruner.step()


@dataclass(frozen=True)
class Method:
    """A way to a smaller network.

    Parameters
    ----------
    title : str
        Name in tables.
    knob : str
        What trades size for quality: "step" (n of the quantisation step 2^-n), "λ", "pruned" (a
        share) or "target" (bits per weight).
    trained_as : str
        The method whose trainings it uses.
    rule : Callable
        Makes its `Rule` from the model, the knob's value and the number of steps.
    """

    title: str
    knob: str
    trained_as: str
    rule: Callable[[nn.Module, float, int], Rule]

    @property
    def is_packing(self) -> bool:
        """Whether the knob turns only when the network is packed."""
        return self.knob == "step"


def _plain(model: nn.Module, value: float, steps: int) -> Rule:
    return Rule()


def _norm(nu: float | str) -> Callable[[nn.Module, float, int], Rule]:
    return lambda model, lam, steps: _InLoss(model, lam, nu, steps)


METHODS = {
    "plain": Method("plain", "step", "plain", _plain),
    "coarse": Method("plain, coarser steps", "step", "plain", _plain),
    "prune": Method("pruning, fine-tuned", "pruned", "prune", _Pruning),
    "l2": Method("L2", "λ", "l2", _norm(2.0)),
    "l1": Method("L1", "λ", "l1", _norm(1.0)),
    "l0.5": Method("L0.5", "λ", "l0.5", _norm(0.5)),
    "backslash": Method("BackSlash (DGGR in the loss)", "λ", "backslash", _norm("adaptive")),
    "proximal": Method("Egret (proximal step, target)", "target", "proximal", _Proximal),
}
"""The methods, by name. One that rounds in training, say, is a `Rule` whose `forward` does it."""


@dataclass(frozen=True)
class Record:
    """State at the end of an epoch.

    Parameters
    ----------
    epoch : int
        Number of the epoch, from 1.
    loss : float
        Mean cross-entropy over the epoch's training samples, in nats, without any rate term.
    rate : float
        R with ν of the weights and the library's ε.
    nu : float
        ν of the weights.
    lam : float
        λ.
    bits : float
        Entropy of the weights in steps of 2^-8, bits per weight.
    validation : float
        Quality on the validation split: accuracy in per cent, or nats.
    """

    epoch: int
    loss: float
    rate: float
    nu: float
    lam: float
    bits: float
    validation: float


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Parameters
    ----------
    settings : Settings
        How it was trained.
    state : dict of str to torch.Tensor
        Its state dict after the last epoch.
    history : tuple of Record
        At most `RECORDS` states.
    weight_names : tuple of str
        Parameters that a rate term charges.
    seconds : float
        Time that the training took.
    """

    settings: Settings
    state: dict[str, torch.Tensor]
    history: tuple[Record, ...]
    weight_names: tuple[str, ...]
    seconds: float


# --- the loop ----------------------------------------------------------------------------------


@torch.no_grad()
def quality(task: Task, model: nn.Module, split: Split) -> float:
    """Return the accuracy in per cent, or the mean cross-entropy in nats of a task with text."""
    model.eval()
    total = 0.0
    parts = zip(split.x.split(_EVALUATION_BATCH), split.y.split(_EVALUATION_BATCH), strict=True)
    for x, y in parts:
        logits = model(x)
        if task.predicts_text:
            total += nn.functional.cross_entropy(
                logits.flatten(0, -2), y.flatten(), reduction="sum"
            ).item()
        else:
            total += 100 * int((logits.argmax(-1) == y).sum())
    return total / split.y.numel()


def build(task: Task, trained: Trained) -> nn.Module:
    """Return the network with its trained weights, in evaluation mode."""
    # The weights drawn first mean nothing, and shall not move torch's random state.
    with torch.random.fork_rng(devices=[]):
        model = task.architecture.make()
    model.load_state_dict(trained.state)
    return model.eval()


def _run(task: Task, settings: Settings, splits: Splits) -> Trained:
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = task.architecture.make()
    x, y = (part[: settings.samples] for part in splits.train)
    steps = settings.epochs * math.ceil(len(x) / settings.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rule = METHODS[settings.method].rule(model, settings.value or 0.0, steps)
    gauge = RateRegularizer(model, 0.0)
    parameters = [model.get_parameter(name) for name in gauge.names]
    every = math.ceil(settings.epochs / RECORDS)
    history = []
    for epoch in range(1, settings.epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(settings.batch_size):
            inputs = x[batch] if task.augment is None else task.augment(x[batch], generator)
            optimizer.zero_grad()
            with rule.forward():
                logits = model(inputs)
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), y[batch].flatten())
                total += loss.item() * len(batch)
                added = rule.loss()
                (loss if added is None else loss + added).backward()
            optimizer.step()
            rule.after(optimizer)
            schedule.step()
        if not math.isfinite(total):
            raise EgretError(f"training diverged in epoch {epoch}: {settings}")
        if epoch % every == 0 or epoch == settings.epochs:
            with torch.no_grad():
                rate = gauge.rate().item()
            history.append(
                Record(
                    epoch=epoch,
                    loss=total / len(x),
                    rate=rate,
                    nu=gauge.nu,
                    lam=rule.lam,
                    bits=entropy_per_weight(parameters, gauge.step_log2),
                    validation=quality(task, model, splits.validation),
                )
            )
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Trained(settings, state, tuple(history), gauge.names, time.monotonic() - began)


# --- the cache ---------------------------------------------------------------------------------


@functools.cache
def sources_digest() -> str:
    """Return a fingerprint of the programs that decide the weights: comments do not count."""
    found = hashlib.sha256(version("torch").encode())
    for name in _SOURCES:
        file = importlib.import_module(name).__file__
        assert file is not None
        tree = _WithoutDocstrings().visit(ast.parse(Path(file).read_text(encoding="utf-8")))
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def cache_path(folder: Path, settings: Settings, data_digest: str) -> Path:
    """Return the file of a training."""
    augment = TASKS[settings.task].augment
    key = {
        "settings": dataclasses.asdict(settings),
        "network": TASKS[settings.task].network,
        "augment": None if augment is None else augment.__qualname__,
        "data": data_digest,
        "sources": sources_digest(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"{settings.task}-{settings.method}-{name}.pt"


def _read(path: Path, settings: Settings) -> Trained | None:
    if not path.exists():
        return None
    try:
        found: Mapping[str, Any] = torch.load(path, weights_only=True)
        return Trained(
            settings,
            found["state"],
            tuple(Record(**record) for record in found["history"]),
            tuple(found["weight_names"]),
            found["seconds"],
        )
    except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile):
        print(f"{path}: damaged, so that this network is trained again", file=sys.stderr)
        return None


def train(settings: Settings, folder: Path | None, cache: Path) -> tuple[Trained, bool]:
    """Train a network, or read it from the cache.

    Parameters
    ----------
    settings : Settings
        How.
    folder : Path or None
        Where the data lie.
    cache : Path
        Folder of trained networks.

    Returns
    -------
    trained : Trained
        The network.
    is_new : bool
        Whether it was trained now.

    Raises
    ------
    EgretError
        The data cannot be read, the cache cannot be written, or the training diverged.
    """
    task = TASKS[settings.task]
    splits = data.load(task.data, folder)
    path = cache_path(cache, settings, data.digest(splits))
    trained = _read(path, settings)
    if trained is not None:
        return trained, False
    with torch.random.fork_rng(devices=[]):
        trained = _run(task, settings, splits)
    with atomic_path(path) as temporary:
        torch.save(
            {
                "settings": dataclasses.asdict(settings),
                "state": trained.state,
                "history": [dataclasses.asdict(record) for record in trained.history],
                "weight_names": list(trained.weight_names),
                "seconds": trained.seconds,
            },
            temporary,
        )
    return trained, True
