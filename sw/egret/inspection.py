"""What a file's weights look like and what each code takes for them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from egret import safetensors_file
from egret.checkpoint import read_bytes, read_checkpoint
from egret.container import RESERVED_PREFIX, read_container
from egret.errors import EgretError
from egret.ggd import estimate_shape
from egret.golomb import best_order, golomb_bits
from egret.packing import select_tensors
from egret.progress import Progress
from egret.quantize import DEFAULT_STEP_LOG2, MAX_BITS, QuantizedTensor, quantize
from egret.safetensors_file import RawTensor
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits
from egret.value_map import count_values

__all__ = ["FileReport", "TensorReport", "inspect_file", "weights_of"]


@dataclass(frozen=True)
class TensorReport:
    """A tensor's statistics. Bits are those of all its weights together, without tables.

    Parameters
    ----------
    name, dtype : str
        As in the file.
    shape : tuple of int
        Shape.
    weights : int
        Number of weights.
    ggd_shape : float or None
        ν of the generalized Gaussian fitted by moments; None without weights.
    zeros : int
        Weights that quantise to 0.
    distinct : int
        Distinct quantised values.
    step_log2 : int
        n of the step 2^-n.
    order : int
        k of the exp-Golomb code: the one in the file, or the best.
    fixed_length_bits, exp_golomb_bits, huffman_bits : int
        Bits of the codewords of each code.
    entropy_bits : float
        Empirical entropy.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    weights: int
    ggd_shape: float | None
    zeros: int
    distinct: int
    step_log2: int
    order: int
    fixed_length_bits: int
    exp_golomb_bits: int
    huffman_bits: int
    entropy_bits: float

    @classmethod
    def of(
        cls, name: str, tensor: QuantizedTensor, weights: ArrayLike, order: int | None = None
    ) -> "TensorReport":
        """Measure a tensor.

        Parameters
        ----------
        name : str
            Its name.
        tensor : QuantizedTensor
            Its integers.
        weights : array_like of float
            The weights themselves, to which the shape is fitted.
        order : int, optional
            k; the best one when absent.
        """
        distinct, counts = count_values(tensor.values)
        chosen = best_order(counts)[0] if order is None else order
        return cls(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            weights=tensor.values.size,
            ggd_shape=estimate_shape(weights) if tensor.values.size else None,
            zeros=int(counts[distinct == 0].sum()),
            distinct=distinct.size,
            step_log2=tensor.step_log2,
            order=chosen,
            fixed_length_bits=fixed_length_bits(counts),
            exp_golomb_bits=golomb_bits(counts, chosen),
            huffman_bits=huffman_bits(counts),
            entropy_bits=entropy_bits(counts),
        )


@dataclass(frozen=True)
class FileReport:
    """What `inspect_file` found.

    Parameters
    ----------
    file : str
        Name of the file.
    file_bytes : int
        Every byte of it.
    packed : bool
        Whether it is a `.egret` container.
    tensors : tuple of TensorReport
        The coded tensors, or those that packing would code.
    raw : tuple of dict
        Name, dtype, shape and bytes of each other tensor.
    map_bytes : int or None
        Bytes of all value maps; None unless packed.
    layers : tuple of dict or None
        The network's layers, in the order in which they run; None without a network.
    """

    file: str
    file_bytes: int
    packed: bool
    tensors: tuple[TensorReport, ...]
    raw: tuple[dict[str, Any], ...]
    map_bytes: int | None
    layers: tuple[dict[str, Any], ...] | None

    def total(self, field: str) -> float:
        """Sum a field of every `TensorReport`."""
        return sum(getattr(tensor, field) for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON's types, with the totals."""
        fields = (
            "weights",
            "zeros",
            "fixed_length_bits",
            "exp_golomb_bits",
            "huffman_bits",
            "entropy_bits",
        )
        return {**asdict(self), "total": {field: self.total(field) for field in fields}}


def _is_packed(path: str | Path) -> bool:
    data = read_bytes(path)
    if not safetensors_file.looks_like_safetensors(data):
        return False
    # A reserved name without an index is a damaged packed file, which its reader then refuses.
    return any(name.startswith(RESERVED_PREFIX) for name in safetensors_file.parse(data, path))


def _layers(path: str | Path) -> tuple[dict[str, Any], ...]:
    from egret.network import IntegerNetwork

    return tuple(
        {
            "name": layer.name,
            "rows": layer.rows,
            "columns": layer.columns,
            "step_log2": layer.weight.step_log2,
            "bias": layer.bias is not None,
            "input_scale": layer.input_scale,
            "output_scale": layer.output_scale,
            "multiplier": layer.multiplier,
            "shift": layer.shift,
            "relu": layer.relu,
        }
        for layer in IntegerNetwork.load(path).layers
    )


def _raw_entry(name: str, tensor: RawTensor) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "bytes": len(tensor.data),
    }


def inspect_file(path: str | Path, *, step_log2: int = DEFAULT_STEP_LOG2) -> FileReport:
    """Measure the weights of a packed file, a safetensors file or a PyTorch state dict.

    Parameters
    ----------
    path : str or Path
        The file.
    step_log2 : int
        n of the step 2^-n for weights that are not packed.

    Returns
    -------
    FileReport
        Statistics of each tensor that is, or would be, coded.

    Raises
    ------
    EgretError
        The file does not exist, is of another kind or damaged, or has weights that cannot be
        quantised.
    """
    progress = Progress("inspecting")
    size = len(read_bytes(path))
    if _is_packed(path):
        container = read_container(path)
        reports = []
        for record in container.coded_records:
            progress(record.name, len(container.coded_names))
            tensor = container.quantized(record.name)
            reports.append(TensorReport.of(record.name, tensor, tensor.dequantize(), record.order))
        return FileReport(
            file=str(path),
            file_bytes=size,
            packed=True,
            tensors=tuple(reports),
            raw=tuple(_raw_entry(name, container.raw(name)) for name in container.raw_names),
            map_bytes=sum(record.map_bytes for record in container.coded_records),
            layers=_layers(path) if container.network is not None else None,
        )
    tensors = read_checkpoint(path)
    chosen = select_tensors(tensors)
    reports = []
    for name in chosen:
        progress(name, len(chosen))
        weights = tensors[name].array()
        try:
            tensor = quantize(
                weights, step_log2, name=name, bits=MAX_BITS, dtype=tensors[name].dtype
            )
        except EgretError as error:
            raise EgretError(f"{path}: {error}") from error
        reports.append(TensorReport.of(name, tensor, weights))
    return FileReport(
        file=str(path),
        file_bytes=size,
        packed=False,
        tensors=tuple(reports),
        raw=tuple(_raw_entry(name, tensors[name]) for name in tensors if name not in set(chosen)),
        map_bytes=None,
        layers=None,
    )


def weights_of(path: str | Path) -> Iterator[NDArray[np.floating[Any]]]:
    """Yield the float weights of each tensor that `inspect_file` measures, flat.

    Raises
    ------
    EgretError
        As from `inspect_file`.
    """
    if _is_packed(path):
        container = read_container(path)
        for name in container.coded_names:
            yield container.quantized(name).dequantize().reshape(-1)
    else:
        tensors = read_checkpoint(path)
        for name in select_tensors(tensors):
            yield tensors[name].array().reshape(-1)
