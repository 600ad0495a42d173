"""Trainings: one loop for all methods, and a cache on the disk."""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import pickle
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.experiments import data
from benchmarks.experiments.methods import METHODS, code_digest, plain_code
from benchmarks.experiments.tasks import TASKS, Task
from torch import nn

from egret.errors import EgretError
from egret.files import atomic_path
from egret.quantize import DEFAULT_STEP_LOG2
from egret.rate import RateRegularizer, entropy_per_weight
from egret.training import Split, Splits

__all__ = ["Record", "Settings", "Trained", "build", "fingerprint", "quality", "train"]

RECORDS = 40
"""States of a training that are kept, evenly over its epochs, or one for each epoch."""
_EVALUATION_BATCH = 500
# Samples by which networks and distortions are told apart.
_PROBES = 8


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
        Entropy of the rounded weights, in bits per weight.
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
    steps : dict of str to int
        n of the step 2^-n that a tensor was trained for; absent where it may be any.
    seconds : float
        Time that the training took.
    """

    settings: Settings
    state: dict[str, torch.Tensor]
    history: tuple[Record, ...]
    weight_names: tuple[str, ...]
    steps: dict[str, int]
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
    rule = METHODS[settings.method].start(model, settings.value or 0.0, steps)
    gauge = RateRegularizer(model, 0.0)
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
        if epoch == settings.epochs:
            rule.finish()
        if epoch % every == 0 or epoch == settings.epochs:
            with torch.no_grad():
                rate = gauge.rate().item()
            with rule.forward():
                validation = quality(task, model, splits.validation)
            history.append(
                Record(
                    epoch=epoch,
                    loss=total / len(x),
                    rate=rate,
                    nu=gauge.nu,
                    lam=rule.lam,
                    bits=_entropy(model, gauge.names, rule.steps()),
                    validation=validation,
                )
            )
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    seconds = time.monotonic() - began
    return Trained(settings, state, tuple(history), gauge.names, rule.steps(), seconds)


def _entropy(model: nn.Module, names: Sequence[str], steps: Mapping[str, int]) -> float:
    """Return the bits per weight of the rounded weights, each tensor in its own steps."""
    parameters = {name: model.get_parameter(name) for name in names}
    bits = sum(
        parameter.numel() * entropy_per_weight([parameter], steps.get(name, DEFAULT_STEP_LOG2))
        for name, parameter in parameters.items()
    )
    return bits / sum(parameter.numel() for parameter in parameters.values())


# --- the cache ---------------------------------------------------------------------------------


def _task(settings: Settings) -> Task:
    task = TASKS[settings.task]
    return dataclasses.replace(task, augment=task.augmentation(settings.epochs))


@functools.lru_cache(maxsize=4)
def _start_digest(task: Task, folder: Path | None) -> str:
    """Return a fingerprint of what a training starts from: samples, distortion, network, loop.

    The network and the distortion are known by what they do: weights drawn from one seed, and
    outputs for a few samples.
    """
    splits = data.load(task.data, folder)
    x = splits.train.x[:_PROBES]
    found = hashlib.sha256(data.digest(splits).encode())
    found.update(plain_code(inspect.getsource(_run)).encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if task.augment is not None:
            x = task.augment(x, torch.Generator().manual_seed(0))
        model = task.architecture.make()
        with torch.no_grad():
            tensors = {**model.state_dict(), "input": x, "output": model.train()(x)}
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def fingerprint(settings: Settings, folder: Path | None) -> str:
    """Return a name for a training: another one for other settings, data or programs.

    Parameters
    ----------
    settings : Settings
        How it is trained.
    folder : Path or None
        Where the data lie.
    """
    key = {
        "settings": dataclasses.asdict(settings),
        "start": _start_digest(_task(settings), folder),
        "method": code_digest(METHODS[settings.method]),
        "torch": version("torch"),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


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
            dict(found["steps"]),
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
    task = _task(settings)
    splits = data.load(task.data, folder)
    name = f"{settings.task}-{settings.method}-{fingerprint(settings, folder)}.pt"
    path = cache / name
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
                "steps": trained.steps,
                "seconds": trained.seconds,
            },
            temporary,
        )
    return trained, True
