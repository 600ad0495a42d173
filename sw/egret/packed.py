"""The weights of a packed file, decoded when they are asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egret.container import CodedRecord, Container, RawRecord, read_container
from egret.errors import EgretError, FormatError
from egret.quantize import QuantizedTensor
from egret.safetensors_file import RawTensor, StreamedTensor, data_bytes, write

if TYPE_CHECKING:
    import torch

__all__ = ["PackedWeights", "load", "unpack"]


# Weights that unpacking decodes at a time.
_BLOCK_WEIGHTS = 1 << 22


class PackedWeights(Mapping[str, NDArray[Any]]):
    """The tensors of a packed file by name, as arrays; made by `load`.

    A tensor is read and decoded each time it is asked for. Arrays have the original dtypes,
    except that BF16, which NumPy does not have, comes as float32.

    Parameters
    ----------
    container : Container
        The open file.
    threads : int
        Threads that share the decoding of a tensor.

    Attributes
    ----------
    container : Container
        The open file.
    """

    def __init__(self, container: Container, threads: int = 1) -> None:
        self.container = container
        self._threads = threads
        self._names = frozenset(container.names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Decode a tensor.

        Returns
        -------
        ndarray
            Its weights in a new array.

        Raises
        ------
        KeyError
            There is no tensor of this name.
        FormatError
            It is damaged, or NumPy has no type for its dtype.
        """
        if name not in self._names:
            raise KeyError(name)
        tensor = self.container.restored(name, threads=self._threads)
        try:
            array = tensor.array()
        except FormatError as error:
            raise FormatError(f"{self.container.path}: tensor {name!r}: {error}") from error
        # A raw tensor's bytes lie in the file, which cannot be written to.
        return array if array.flags.writeable else array.copy()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self.container.names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<PackedWeights of {str(self.container.path)!r}: {len(self)} tensors>"

    def __enter__(self) -> "PackedWeights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()

    def quantized(self, name: str, rows: tuple[int, int] | None = None) -> QuantizedTensor:
        """Decode the integers of a coded tensor, or some of its rows.

        Parameters
        ----------
        name : str
            Name of the tensor.
        rows : tuple of two int, optional
            First row, along the first axis, and the one after the last; all when absent. Only the
            chunks that hold them are read.

        Raises
        ------
        FormatError
            It is damaged.
        EgretError
            There is no coded tensor of this name, or it has no such rows.
        """
        return self.container.quantized(name, rows=rows, threads=self._threads)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Decode everything into tensors for `torch.nn.Module.load_state_dict`.

        Returns
        -------
        dict of str to torch.Tensor
            Tensors on the CPU in their original dtypes. Names that were stored once, such as those
            of tied weights, share one tensor.

        Raises
        ------
        FormatError
            A tensor is damaged.
        EgretError
            PyTorch is not installed.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name in self:
            target = self.container.target(name)
            if target not in tensors:
                restored = self.container.restored(target, threads=self._threads)
                tensors[target] = _torch_tensor(restored)
            tensors[name] = tensors[target]
        return {name: tensors[name] for name in self}


def _row_blocks(record: CodedRecord | RawRecord) -> Iterator[tuple[int, int] | None]:
    """Give the rows that are decoded at a time; None for a whole tensor."""
    # What is one chunk has to be decoded whole.
    if isinstance(record, RawRecord) or record.size <= max(_BLOCK_WEIGHTS, record.chunk):
        yield None
        return
    rows = record.shape[0]
    step = max(1, _BLOCK_WEIGHTS * rows // record.size)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _torch_tensor(tensor: RawTensor) -> "torch.Tensor":
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EgretError("state_dict() needs PyTorch: pip install 'egret[train]'") from error
    from egret.checkpoint import TORCH_DTYPES

    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    dtype: torch.dtype = getattr(torch, names[tensor.dtype])
    if len(tensor.data) == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    # A copy, which may be written to.
    data = np.frombuffer(tensor.data, np.uint8).copy()
    return torch.from_numpy(data).view(dtype).reshape(tensor.shape)


def load(path: str | Path, *, threads: int = 1) -> PackedWeights:
    """Open a packed file.

    Parameters
    ----------
    path : str or Path
        A `.egret` file.
    threads : int
        Threads that share the decoding of a tensor.

    Returns
    -------
    PackedWeights
        A mapping from names to arrays. Nothing is decoded before it is asked for; `state_dict()`
        gives all as PyTorch tensors.

    Raises
    ------
    FormatError
        Not a packed file, truncated or damaged.
    EgretError
        The file does not exist or cannot be read.
    """
    return PackedWeights(read_container(path), threads)


def unpack(
    source: str | Path,
    target: str | Path,
    *,
    include: Sequence[str] = (),
    threads: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[int, int]:
    """Turn a packed file back into a safetensors file, one tensor at a time.

    Parameters
    ----------
    source : str or Path
        A `.egret` file.
    target : str or Path
        The safetensors file to write.
    include : sequence of str
        Patterns (`*`, `?`, `[…]`) over names of the tensors to write; all when empty.
    threads : int
        Threads that share the decoding of a tensor.
    progress : Callable, optional
        As in `egret.packing.pack`.

    Returns
    -------
    tuple of two int
        Number of tensors, and bytes of their data.

    Raises
    ------
    FormatError
        Not a packed file, truncated or damaged.
    EgretError
        A pattern matches nothing, `threads` is less than 1, or a file cannot be read or written.
    """
    if threads < 1:
        raise EgretError(f"threads: found {threads}, expected 1 or more")
    with read_container(source) as container:
        names = container.names
        for pattern in include:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise EgretError(
                    f"{source}: pattern {pattern!r} matches none of the {len(names)} tensors"
                )
        if include:
            names = tuple(n for n in names if any(fnmatchcase(n, p) for p in include))
        records = {name: container.record(name) for name in names}
        sizes = {n: data_bytes(record.dtype, record.shape) for n, record in records.items()}
        total = sum(sizes.values())
        done = 0

        def restored(name: str) -> Iterator[bytes | memoryview]:
            nonlocal done
            if progress is not None:
                progress(name, done, total)
            for rows in _row_blocks(records[name]):
                data = container.restored(name, rows=rows, threads=threads).data
                yield data
                done += len(data)

        tensors = {
            name: StreamedTensor(record.dtype, record.shape, partial(restored, name))
            for name, record in records.items()
        }
        write(target, tensors)
    return len(names), total
