"""A plain training loop with the rate term, and what `egret train` does around it."""

import contextlib
import copy
import dataclasses
import glob
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import TensorDataset

from egret.compiler import compile_network
from egret.errors import EgretError
from egret.files import atomic_path, write_text
from egret.golomb import golomb_bits
from egret.inspection import inspect_file
from egret.network import IntegerNetwork
from egret.packing import load, pack, quantize_state
from egret.qat import StraightThrough
from egret.quantize import DEFAULT_STEP_LOG2, MAX_BITS, quantize
from egret.rate import DEFAULT_EPS, RateRegularizer, choose_parameters
from egret.rdo import check_lam
from egret.value_map import count_values

__all__ = [
    "Augment",
    "EpochRecord",
    "PackedAccuracy",
    "Progress",
    "SavedTraining",
    "Split",
    "Splits",
    "TrainedModel",
    "TrainingOptions",
    "accuracy",
    "load_data",
    "load_model",
    "measure_packed",
    "print_progress",
    "save_training",
    "train",
]

_EVALUATION_BATCH = 1024


class Split(NamedTuple):
    """Samples and their classes: `x` of shape (n, …), float, and `y` of shape (n,), int64."""

    x: torch.Tensor
    y: torch.Tensor


class Splits(NamedTuple):
    """The three parts of a data set: training, choices, and the final figures."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of one training.

    Parameters
    ----------
    epochs : int
        Passes over the training data with the rate term, 1 or more.
    final_epochs : int
        Further passes without it, which win back accuracy (arXiv 2506.00486).
    batch_size : int
        Samples per step.
    learning_rate : float
        Adam's step size at the start; it falls to 0 along half a cosine over all epochs.
    weight_decay : float
        Decoupled weight decay (AdamW).
    lam : float
        λ, the weight of the rate term in the loss; 0 trains an ordinary network.
    target_bits : float, optional
        Bits per weight to come to, in place of λ: proximal steps and a controller, see
        `egret.rate.RateRegularizer`, on weights that are rounded while they are trained, see
        `egret.qat.StraightThrough`. There are no final epochs then, which would undo them.
    step_log2 : int or mapping of str to int, optional
        Steps 2^-n that the weights are rounded to while they are trained, for all or by parameter
        name. With a target, `egret.qat.suitable_step` chooses each tensor's when absent. Without
        one and with λ = 0 it is quantisation-aware training alone.
    rdo : float
        Where weights are rounded, λ of the rounding at the end; see `egret.rdo.Rounder`.
    eps : float
        ε of the rate term.
    nu : float or "adaptive"
        ν of the rate term.
    seed : int
        Seed of the initial weights, the order of the samples, dropout and augmentation.

    Raises
    ------
    EgretError
        A value is out of its range.
    """

    epochs: int = 60
    final_epochs: int = 0
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    lam: float = 0.0
    target_bits: float | None = None
    step_log2: int | Mapping[str, int] | None = None
    rdo: float = 0.0
    eps: float = DEFAULT_EPS
    nu: float | str = "adaptive"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("epochs", 1), ("final_epochs", 0), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not lowest <= value < 1 << 63:
                raise EgretError(f"{name}: found {value}, expected {lowest} or more and below 2^63")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise EgretError(
                f"learning_rate: found {self.learning_rate}, expected a finite number above 0"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise EgretError(
                f"weight_decay: found {self.weight_decay}, expected a finite number of 0 or more"
            )
        check_lam(self.rdo, "rdo")
        if self.step_log2 is not None and self.lam != 0:
            raise EgretError(
                f"lam: found {self.lam:g} with step_log2 {self.step_log2}, expected 0: weights are "
                "rounded while they are trained to a target, or without a rate"
            )
        if self.rdo != 0 and self.target_bits is None and self.step_log2 is None:
            raise EgretError(
                f"rdo: found {self.rdo:g} with neither target_bits nor step_log2, expected one of "
                "them: without, nothing is rounded"
            )
        if self.target_bits is not None and (self.lam != 0 or self.final_epochs != 0):
            raise EgretError(
                f"target_bits: found λ {self.lam:g} and {self.final_epochs} final epochs with it, "
                "expected neither"
            )


@dataclass(frozen=True)
class EpochRecord:
    """State at the end of an epoch.

    Parameters
    ----------
    epoch : int
        Number of the epoch, from 1.
    loss : float
        Mean cross-entropy over the epoch's samples, in nats, without the rate term.
    rate : float
        R, the mean of (|θ| + ε)^ν over the weights.
    nu : float
        ν of the weights.
    bits_per_weight : float
        Code bits per weight if quantised now: step 2^-8, or the one the tensor is rounded to, one
        value map per tensor, exp-Golomb order 0.
    validation_accuracy : float
        Share of the validation samples classified correctly, 0 to 1; by the rounded weights where
        they are rounded.
    """

    epoch: int
    loss: float
    rate: float
    nu: float
    bits_per_weight: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and how it came about.

    Parameters
    ----------
    model : torch.nn.Module
        The model after the last epoch, in evaluation mode; with steps, its weights are rounded.
    options : TrainingOptions
        The settings.
    history : tuple of EpochRecord
        One record for each epoch.
    weight_names : tuple of str
        Names of the parameters that the rate term charges (or would, with λ = 0).
    weights : int
        Number of those weights.
    step_log2 : dict of str to int, or None
        Where they were rounded, n of each tensor's step: what `egret.pack` takes to lose nothing
        more.
    """

    model: nn.Module
    options: TrainingOptions
    history: tuple[EpochRecord, ...]
    weight_names: tuple[str, ...]
    weights: int
    step_log2: dict[str, int] | None = None

    @property
    def validation_accuracy(self) -> float:
        """Accuracy on the validation split after the last epoch, 0 to 1."""
        return self.history[-1].validation_accuracy

    @property
    def bits_per_weight(self) -> float:
        """Code bits per weight after the last epoch; see `EpochRecord`."""
        return self.history[-1].bits_per_weight

    def state(self) -> dict[str, torch.Tensor]:
        """Return the model's state dict, each tensor a copy in memory of its own."""
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.model.state_dict().items()
        }


Progress = Callable[[EpochRecord, TrainingOptions], None]
"""Called after each epoch."""
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Returns the inputs to train on for a batch of inputs."""


def train(
    make_model: Callable[[], nn.Module],
    splits: Splits,
    options: TrainingOptions,
    *,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a classifier by AdamW on cross-entropy, with the rate term.

    Equal arguments give equal weights on the same machine and number of threads. The global
    random state of torch is left as it was.

    Parameters
    ----------
    make_model : Callable[[], torch.nn.Module]
        Makes the model; called once, after seeding. Its output is logits of shape (n, classes).
    splits : Splits
        Only `train` and `validation` are used.
    options : TrainingOptions
        The settings.
    augment : Callable, optional
        Called with a batch's x and a generator, returns the x to train on.
    progress : Callable, optional
        Called with each epoch's record and the options.

    Returns
    -------
    TrainedModel
        The model after the last epoch.

    Raises
    ------
    EgretError
        The model does not fit the data, or the training diverged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return _train(make_model(), splits, options, augment, progress)


def _train(
    model: nn.Module,
    splits: Splits,
    options: TrainingOptions,
    augment: Augment | None,
    progress: Progress | None,
) -> TrainedModel:
    generator = torch.Generator().manual_seed(options.seed)
    # Before the optimiser, which has no clear words for a model without parameters.
    choose_parameters(model, None, ())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    x, y = splits.train
    _check_fit(model, x, y)
    epochs = options.epochs + options.final_epochs
    steps = epochs * len(_batches(torch.arange(len(x)), options.batch_size))
    rounding: StraightThrough | contextlib.nullcontext[None] = contextlib.nullcontext()
    if options.target_bits is None:
        if options.step_log2 is not None:
            rounding = StraightThrough(model, options.step_log2)
        regularizer = RateRegularizer(model, options.lam, eps=options.eps, nu=options.nu, every=1)
    else:
        bits = options.target_bits if options.step_log2 is None else None
        rounding = StraightThrough(model, options.step_log2, target_bits=bits)
        regularizer = RateRegularizer(
            model,
            target_bits=options.target_bits,
            steps=steps,
            quantizer=rounding,
            eps=options.eps,
            nu=options.nu,
        )
    step_log2 = rounding.step_log2 if isinstance(rounding, StraightThrough) else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for epoch in range(1, epochs + 1):
        charged = options.lam > 0 and epoch <= options.epochs
        model.train()
        total = 0.0
        seen = 0
        for batch in _batches(torch.randperm(len(x), generator=generator), options.batch_size):
            seen += len(batch)
            inputs = x[batch] if augment is None else augment(x[batch], generator)
            optimizer.zero_grad()
            with rounding:
                loss = nn.functional.cross_entropy(_logits(model, inputs), y[batch])
                (loss + regularizer.loss() if charged else loss).backward()
            total += loss.item() * len(batch)
            optimizer.step()
            if options.target_bits is not None:
                regularizer.step(optimizer)
            schedule.step()
        if not math.isfinite(total):
            raise EgretError(
                f"training diverged in epoch {epoch}: the loss is {total / seen}; "
                "try a smaller learning rate or λ"
            )
        if epoch == epochs and step_log2 is not None:
            _round_for_good(model, step_log2, options.rdo)
        with torch.no_grad():
            rate = regularizer.rate().item()
        with rounding:
            right = accuracy(model, splits.validation)
        record = EpochRecord(
            epoch=epoch,
            loss=total / seen,
            rate=rate,
            nu=regularizer.nu,
            bits_per_weight=_bits_per_weight(model, regularizer.names, step_log2 or {}),
            validation_accuracy=right,
        )
        history.append(record)
        if progress is not None:
            progress(record, options)
    return TrainedModel(
        model.eval(), options, tuple(history), regularizer.names, regularizer.weights, step_log2
    )


def _logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    try:
        logits: torch.Tensor = model(inputs)
    except Exception as error:
        # The user's forward may raise anything, and only in training, as batch norm does.
        raise EgretError(
            f"model {type(model).__name__}: cannot be trained on a batch of shape "
            f"{tuple(inputs.shape)}: {error}"
        ) from error
    return logits


def _batches(order: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Split into batches; one sample left over waits for another epoch: it has no batch norm."""
    batches = order.split(size)
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        return batches[:-1]
    return batches


@torch.no_grad()
def _round_for_good(model: nn.Module, step_log2: Mapping[str, int], rdo: float) -> None:
    state = {name: model.get_parameter(name).detach().cpu() for name in step_log2}
    chosen = quantize_state(state, step_log2=step_log2, bits=MAX_BITS, rdo=rdo)
    for name, tensor in chosen.items():
        model.get_parameter(name).copy_(torch.from_numpy(tensor.dequantize()))


def _check_fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x[:1])
    except Exception as error:
        # The user's forward may raise anything.
        raise EgretError(
            f"model {type(model).__name__}: cannot run on an input of shape "
            f"{(1, *x.shape[1:])}: {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise EgretError(
            f"model {type(model).__name__}: found output {found}, expected logits of shape "
            "(n, classes)"
        )
    if int(y.max()) >= logits.shape[1]:
        raise EgretError(
            f"model {type(model).__name__}: found class {int(y.max())} in the training data, "
            f"expected less than the model's {logits.shape[1]} outputs"
        )


def _bits_per_weight(
    model: nn.Module, names: tuple[str, ...], step_log2: Mapping[str, int]
) -> float:
    bits = count = 0
    for name in names:
        weight = model.get_parameter(name).detach().to("cpu", torch.float64).numpy()
        step = step_log2.get(name, DEFAULT_STEP_LOG2)
        values = quantize(weight, step, name=name, bits=MAX_BITS).values
        # The map lists the most frequent value first, so its counts are the indices' histogram.
        bits += golomb_bits(count_values(values)[1], 0)
        count += values.size
    return bits / count


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of samples that the model classifies correctly, 0 to 1.

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits of shape (n, classes); put into evaluation mode.
    split : Split
        Samples and classes.
    """
    model.eval()
    correct = 0
    pairs = zip(split.x.split(_EVALUATION_BATCH), split.y.split(_EVALUATION_BATCH), strict=True)
    for x, y in pairs:
        correct += int((model(x).argmax(dim=1) == y).sum())
    return correct / len(split.x)


def print_progress(record: EpochRecord, options: TrainingOptions) -> None:
    """Print a line on standard error for about every tenth part of a training."""
    epochs = options.epochs + options.final_epochs
    every = max(1, epochs // 10)
    if record.epoch % every == 0 or record.epoch == epochs:
        print(
            f"  epoch {record.epoch:4d}/{epochs}  loss {record.loss:.4f}  "
            f"shape ν {record.nu:.2f}  {record.bits_per_weight:5.2f} bits/weight  "
            f"validation {100 * record.validation_accuracy:.2f} %",
            file=sys.stderr,
            flush=True,
        )


def load_model(factory: str) -> Callable[[], nn.Module]:
    """Return a function that makes the user's model.

    Parameters
    ----------
    factory : str
        "module:function"; the module is looked for in the current folder too.

    Raises
    ------
    EgretError
        The string or the module is wrong; or, when called, what the factory returns.
    """
    make = _load_factory(factory, "--model")

    def make_model() -> nn.Module:
        model = _call(make, factory, "--model")
        if not isinstance(model, nn.Module):
            raise EgretError(
                f"--model {factory}: returned {type(model).__name__}, expected a torch.nn.Module"
            )
        return model

    return make_model


def load_data(factory: str) -> Splits:
    """Call the user's data factory and check what it returns.

    Parameters
    ----------
    factory : str
        "module:function" that returns (train, validation, test), each a pair (x, y) of tensors
        or a TensorDataset of two.

    Returns
    -------
    Splits
        x as float tensors, y as int64.

    Raises
    ------
    EgretError
        The string, the module, or what the factory returns is wrong.
    """
    where = f"--data {factory}"
    parts = _call(_load_factory(factory, "--data"), factory, "--data")
    if not isinstance(parts, tuple | list) or len(parts) != 3:
        found = f"{len(parts)} parts" if isinstance(parts, tuple | list) else type(parts).__name__
        raise EgretError(f"{where}: returned {found}, expected (train, validation, test)")
    splits = Splits(
        *(
            _check_split(part, f"{where}: {name}")
            for part, name in zip(parts, Splits._fields, strict=True)
        )
    )
    for name, split in zip(Splits._fields, splits, strict=True):
        if split.x.shape[1:] != splits.train.x.shape[1:]:
            raise EgretError(
                f"{where}: {name}: found samples of shape {tuple(split.x.shape[1:])}, expected "
                f"{tuple(splits.train.x.shape[1:])} as in train"
            )
    return splits


def _check_split(part: object, where: str) -> Split:
    pair = part.tensors if isinstance(part, TensorDataset) else part
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(isinstance(tensor, torch.Tensor) for tensor in pair)
    ):
        raise EgretError(
            f"{where}: found {type(part).__name__}, expected a pair (x, y) of tensors or a "
            "TensorDataset of two"
        )
    x, y = pair
    if not x.is_floating_point() or x.dim() < 2 or len(x) == 0:
        raise EgretError(
            f"{where}: x: found {x.dtype} of shape {tuple(x.shape)}, expected floats of shape "
            "(n, …) with n of 1 or more"
        )
    if not torch.isfinite(x).all():
        raise EgretError(f"{where}: x: found NaN or infinity, expected finite numbers")
    if y.is_floating_point() or y.is_complex() or tuple(y.shape) != (len(x),):
        raise EgretError(
            f"{where}: y: found {y.dtype} of shape {tuple(y.shape)}, expected integer class "
            f"numbers of shape ({len(x)},)"
        )
    if int(y.min()) < 0:
        raise EgretError(f"{where}: y: found class {int(y.min())}, expected 0 or more")
    return Split(x.to(torch.get_default_dtype()), y.long())


def _load_factory(factory: str, option: str) -> Callable[[], object]:
    module_name, separator, name = factory.partition(":")
    if not (separator and module_name and name.isidentifier()):
        raise EgretError(f"{option} {factory}: expected MODULE:FACTORY, such as mymodule:make")
    # A console script does not look for modules in the current folder; `python -m` does.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise EgretError(
            f"{option} {factory}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    make = getattr(module, name, None)
    if not callable(make):
        state = "is not callable" if hasattr(module, name) else "does not exist"
        raise EgretError(f"{option} {factory}: {name!r} {state} in module {module_name!r}")
    return make


def _call(make: Callable[[], object], factory: str, option: str) -> object:
    try:
        return make()
    except Exception as error:
        # The user's function may raise anything.
        raise EgretError(
            f"{option} {factory}: the call failed: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class PackedAccuracy:
    """What a packed model takes, and what it is worth once it is unpacked.

    Parameters
    ----------
    payload_bits : float
        Codewords, codes and maps in the file, in bits per weight that is coded.
    file_bytes : int
        Size of the file.
    accuracy : dict of str to float
        Accuracy on each split, 0 to 1, of the model as the file gives it back.
    """

    payload_bits: float
    file_bytes: int
    accuracy: dict[str, float]


def measure_packed(
    trained: TrainedModel, splits: Splits, path: str | Path, *, step_log2: int | Mapping[str, int]
) -> PackedAccuracy:
    """Pack a model's weights, unpack them and look what they are worth.

    Parameters
    ----------
    trained : TrainedModel
        The result of `train`.
    splits : Splits
        Accuracies are taken on all three.
    path : str or Path
        The packed file, which is written.
    step_log2 : int or mapping of str to int
        n of the steps 2^-n, as for `egret.pack`.

    Raises
    ------
    EgretError
        The file cannot be written, or a weight does not fit it.
    """
    pack(trained.state(), path, step_log2=step_log2, include=_coded(trained))
    unpacked = copy.deepcopy(trained.model)
    unpacked.load_state_dict(load(path).state_dict())
    report = inspect_file(path)
    return PackedAccuracy(
        report.payload_bits / report.total("weights"),
        Path(path).stat().st_size,
        {
            name: accuracy(unpacked, split)
            for name, split in zip(Splits._fields, splits, strict=True)
        },
    )


def _coded(trained: TrainedModel) -> list[str]:
    """Return patterns of what was charged, by all of its names: the rest is kept as it is."""
    charged = {id(trained.model.get_parameter(name)) for name in trained.weight_names}
    parameters = trained.model.named_parameters(remove_duplicate=False)
    return [glob.escape(name) for name, parameter in parameters if id(parameter) in charged]


@dataclass(frozen=True)
class SavedTraining:
    """What `save_training` wrote.

    Parameters
    ----------
    network : IntegerNetwork or None
        What `model.egret` holds; None where the model cannot be compiled.
    reason : str or None
        Why it cannot.
    packed : PackedAccuracy
        Of `weights.egret`.
    """

    network: IntegerNetwork | None
    reason: str | None
    packed: PackedAccuracy


def save_training(
    trained: TrainedModel,
    splits: Splits,
    folder: str | Path,
    *,
    step_log2: int | None = None,
) -> SavedTraining:
    """Write `model.safetensors`, `weights.egret`, `model.egret` and `training.json`.

    `weights.egret` is the packed state dict, of any model; `model.egret` the integer network, of
    a model that can be compiled.

    Parameters
    ----------
    trained : TrainedModel
        The result of `train`.
    splits : Splits
        The training inputs calibrate the activations; accuracies are taken on all three.
    folder : str or Path
        Where to write; created when missing.
    step_log2 : int, optional
        The packed files keep the weights in steps of 2^-step_log2. When absent, of the steps that
        they were trained with, or 2^-8 if with none.

    Returns
    -------
    SavedTraining
        What was written. An older `model.egret` is removed where none is.

    Raises
    ------
    EgretError
        A file cannot be written, or a weight does not fit the packed file.
    """
    folder = Path(folder)
    with atomic_path(folder / "model.safetensors") as temporary:
        safetensors.torch.save_file(trained.state(), temporary)
    steps = step_log2 if step_log2 is not None else trained.step_log2 or DEFAULT_STEP_LOG2
    packed = measure_packed(trained, splits, folder / "weights.egret", step_log2=steps)
    network: IntegerNetwork | None = None
    reason: str | None = None
    if any(isinstance(module, nn.BatchNorm1d) for module in trained.model.modules()):
        # Folded batch norm scales the weights, which then lie on no coarse grid any more.
        steps = DEFAULT_STEP_LOG2 if step_log2 is None else step_log2
    try:
        network = compile_network(trained.model, splits.train.x, step_log2=steps)
    except EgretError as error:
        reason = str(error)
        (folder / "model.egret").unlink(missing_ok=True)
    else:
        network.save(folder / "model.egret")
    result = {
        "options": dataclasses.asdict(trained.options),
        "samples": {name: len(split.x) for name, split in zip(Splits._fields, splits, strict=True)},
        "accuracy": {
            name: accuracy(trained.model, split)
            for name, split in zip(Splits._fields, splits, strict=True)
        },
        "accuracy_packed": packed.accuracy,
        "weights": trained.weights,
        "weight_tensors": trained.weight_names,
        "step_log2": trained.step_log2,
        "bits_per_weight": trained.bits_per_weight,
        "payload_bits_per_weight": packed.payload_bits,
        "file_bytes": packed.file_bytes,
        "not_compiled": reason,
        "history": [dataclasses.asdict(record) for record in trained.history],
    }
    write_text(folder / "training.json", json.dumps(result, indent=2) + "\n")
    return SavedTraining(network, reason, packed)
