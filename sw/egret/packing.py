"""From a state dict to a packed file and back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from egret.checkpoint import as_raw_tensor
from egret.container import read_container, write_container
from egret.errors import EgretError, QuantizationError
from egret.quantize import (
    DEFAULT_BITS,
    DEFAULT_STEP_LOG2,
    FLOAT_DTYPES,
    QuantizedTensor,
    quantize,
)
from egret.safetensors_file import RawTensor

__all__ = ["load", "pack", "select_tensors"]


def select_tensors(
    tensors: Mapping[str, RawTensor],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Choose the tensors to code.

    Parameters
    ----------
    tensors : Mapping of str to RawTensor
        All tensors.
    include : sequence of str
        Patterns (`*`, `?`, `[…]`) over names. When given, floating tensors that match one are
        coded; else those with two or more dimensions.
    exclude : sequence of str
        Patterns of tensors to leave as they are.

    Returns
    -------
    list of str
        Names, in the order of `tensors`.

    Raises
    ------
    EgretError
        A pattern matches no tensor.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise EgretError(f"pattern {pattern!r} matches none of the {len(tensors)} tensors")

    def is_chosen(name: str, tensor: RawTensor) -> bool:
        if tensor.dtype not in FLOAT_DTYPES or any(fnmatchcase(name, p) for p in exclude):
            return False
        if include:
            return any(fnmatchcase(name, pattern) for pattern in include)
        return len(tensor.shape) >= 2

    return [name for name, tensor in tensors.items() if is_chosen(name, tensor)]


class _LazilyQuantized(Mapping[str, QuantizedTensor]):
    """Quantises a tensor when it is asked for, so that only one at a time lies in memory."""

    def __init__(
        self,
        ready: Mapping[str, QuantizedTensor],
        waiting: Mapping[str, RawTensor],
        step_log2: int,
        bits: int,
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self._ready = ready
        self._waiting = waiting
        self._step_log2 = step_log2
        self._bits = bits
        self._progress = progress

    def __getitem__(self, name: str) -> QuantizedTensor:
        if self._progress is not None:
            self._progress(name, len(self))
        if name in self._ready:
            return self._ready[name]
        raw = self._waiting[name]
        return quantize(raw.array(), self._step_log2, name=name, bits=self._bits, dtype=raw.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._ready or name in self._waiting

    def __iter__(self) -> Iterator[str]:
        yield from self._ready
        yield from self._waiting

    def __len__(self) -> int:
        return len(self._ready) + len(self._waiting)


def pack(
    state: Mapping[str, Any],
    path: str | Path,
    *,
    step_log2: int = DEFAULT_STEP_LOG2,
    bits: int = DEFAULT_BITS,
    order: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Quantise and code a network's weights and write the packed file.

    Parameters
    ----------
    state : Mapping of str to tensor
        What `model.state_dict()` returns, or NumPy arrays, `RawTensor` and `QuantizedTensor`
        objects. The last are coded as they are.
    path : str or Path
        The `.egret` file to write.
    step_log2 : int
        n of the step 2^-n.
    bits : int
        Range of the quantised weights, in bits of a signed integer.
    order : int, optional
        k of the exp-Golomb code, 0 to 7; the best one for each tensor when absent.
    include, exclude : sequence of str
        Patterns over names; see `select_tensors`. Tensors not chosen are stored as they are.
    progress : Callable, optional
        Called with the name of each tensor before it is coded, and the number of those.

    Raises
    ------
    QuantizationError
        A weight is not finite or out of range; the message names the tensor and the weight.
    FormatError
        An entry is no tensor, or of a dtype that safetensors does not have.
    EgretError
        A pattern matches nothing, or the file cannot be written.
    """
    ready = {name: value for name, value in state.items() if isinstance(value, QuantizedTensor)}
    others = {
        name: as_raw_tensor(value, name) for name, value in state.items() if name not in ready
    }
    chosen = set(select_tensors(others, include, exclude))
    waiting = {name: tensor for name, tensor in others.items() if name in chosen}
    raw = {name: tensor for name, tensor in others.items() if name not in chosen}
    if not ready and not waiting:
        raise QuantizationError(
            f"none of the {len(others)} tensors is to be coded: expected a floating one with "
            "two or more dimensions, or one that an include pattern names"
        )
    coded = _LazilyQuantized(ready, waiting, step_log2, bits, progress)
    write_container(path, coded, raw, order=order)


def load(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read a packed file's weights.

    Parameters
    ----------
    path : str or Path
        A `.egret` file.

    Returns
    -------
    dict of str to ndarray
        Arrays by name in their original dtypes, BF16 as float32.

    Raises
    ------
    FormatError
        Not a packed file, truncated or damaged.
    EgretError
        The file does not exist or cannot be read.
    """
    return read_container(path).state()
