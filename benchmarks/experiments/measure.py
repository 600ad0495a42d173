"""What a trained network is, once it is quantised, packed, and unpacked again."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from benchmarks.experiments.tasks import Task
from benchmarks.experiments.training import quality
from numpy.typing import NDArray
from torch import nn

import egret
from egret.container import CodedRecord
from egret.golomb import golomb_bits
from egret.packed import PackedWeights
from egret.quantize import MAX_BITS, quantize
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits
from egret.training import Splits
from egret.value_map import count_values

__all__ = ["ORDERS", "Measured", "measure"]

ORDERS = (0, 1, 2, 3)
"""Orders of the exp-Golomb codes that are counted."""


@dataclass(frozen=True)
class Measured:
    """A packed network. Sizes are in bits per weight, over all weights with two axes or more.

    Parameters
    ----------
    seed : int
        Of the training.
    payload : float
        Codewords, maps and tables of the file; weights that are kept as they are in full.
    file_bytes : int
        The whole file.
    fixed_length, huffman, entropy : float
        Code bits, without any map, as the paper counts; a map for each tensor.
    golomb : tuple of float
        Likewise exp-Golomb codes, for each of `ORDERS`.
    zeros : float
        Share of the weights that are 0, in per cent.
    validation, test : float
        Quality of the unpacked network: accuracy in per cent, or nats.
    """

    seed: int
    payload: float
    file_bytes: int
    fixed_length: float
    huffman: float
    entropy: float
    golomb: tuple[float, ...]
    zeros: float
    validation: float
    test: float


def _integers(packed: PackedWeights, name: str, step_log2: int) -> NDArray[np.int32]:
    """Return a tensor's integers, also of one that was not worth coding."""
    if isinstance(packed.container.record(name), CodedRecord):
        return packed.quantized(name).values
    return quantize(packed[name], step_log2, name=name, bits=MAX_BITS).values


def measure(
    task: Task,
    model: nn.Module,
    weight_names: tuple[str, ...],
    splits: Splits,
    *,
    seed: int,
    step_log2: int,
    steps: Mapping[str, int] = MappingProxyType({}),
) -> Measured:
    """Pack a network, unpack it and measure both.

    Parameters
    ----------
    task : Task
        What it is trained on.
    model : torch.nn.Module
        The network; it has the unpacked weights afterwards.
    weight_names : tuple of str
        The weights that count.
    splits : Splits
        Validation and test are used.
    seed : int
        Kept with the figures.
    step_log2 : int
        Weights are rounded to steps of 2^-step_log2.
    steps : mapping of str to int
        Other n for single tensors.
    """
    state: dict[str, Any] = model.state_dict()
    for name, step in steps.items():
        weight = state[name].numpy()
        state[name] = quantize(weight, step, name=name, bits=MAX_BITS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.egret"
        egret.pack(state, path, step_log2=step_log2)
        file_bytes = path.stat().st_size
        with egret.load(path) as packed:
            container = packed.container
            coded = [
                record
                for record in map(container.record, weight_names)
                if isinstance(record, CodedRecord)
            ]
            kept = sum(
                packed[name].nbytes
                for name in weight_names
                if not isinstance(container.record(name), CodedRecord)
            )
            payload = sum(record.code_bits for record in coded) + 8 * (container.books_bytes + kept)
            values = [_integers(packed, name, steps.get(name, step_log2)) for name in weight_names]
            model.load_state_dict(packed.state_dict())
    counts = [count_values(each)[1] for each in values]
    weights = sum(each.size for each in values)
    return Measured(
        seed=seed,
        payload=payload / weights,
        file_bytes=file_bytes,
        fixed_length=sum(map(fixed_length_bits, counts)) / weights,
        huffman=sum(map(huffman_bits, counts)) / weights,
        entropy=sum(map(entropy_bits, counts)) / weights,
        golomb=tuple(sum(golomb_bits(c, order) for c in counts) / weights for order in ORDERS),
        zeros=100 * sum(int((each == 0).sum()) for each in values) / weights,
        validation=quality(task, model, splits.validation),
        test=quality(task, model, splits.test),
    )
