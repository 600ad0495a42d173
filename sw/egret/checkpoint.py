"""Reading the weights that users have: safetensors files and PyTorch state dicts.

Opening reads no weights. They are read in blocks when they are asked for, so that a checkpoint may
be larger than memory.
"""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.container_index import INDEX_NAME
from egret.errors import EgretError, FormatError
from egret.safetensors_file import (
    DTYPE_BYTES,
    HeaderEntry,
    RawTensor,
    data_bytes,
    looks_like_safetensors,
    parse_header,
)

__all__ = [
    "TORCH_DTYPES",
    "Checkpoint",
    "InputFile",
    "TensorSource",
    "as_source",
    "header_entries",
    "read_checkpoint",
]

_ZIP_MAGIC = b"PK\x03\x04"
# torch.save's older format: a pickle of protocol 2 or later.
_PICKLE_MAGICS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_NESTING_KEYS = ("state_dict", "model_state_dict")
TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""Name in safetensors of each dtype of PyTorch that it has."""
_NUMBERS = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}
# The JSON index of the largest known models takes a few hundred kilobytes.
_JSON_LIMIT = 100_000_000
_LENGTH_BYTES = 8


class InputFile:
    """A file that is read by place, and that must not change meanwhile.

    It is opened for each reading, so that a checkpoint may have more shards than a process may
    have open files. What is read is a copy: mapped files would count as memory in use.

    Parameters
    ----------
    path : str or Path
        The file.

    Attributes
    ----------
    path : Path
        As given.
    size : int
        Bytes of the file.
    modified : int
        Time of its last change, in nanoseconds.

    Raises
    ------
    EgretError
        The file does not exist or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size, self.modified = self._reading(self._state)

    def _reading(self, use: Callable[[int], Any]) -> Any:
        try:
            with self.path.open("rb", buffering=0) as file:
                return use(file.fileno())
        except OSError as error:
            raise EgretError(f"{self.path}: cannot read this file: {error.strerror}") from error
        except ValueError as error:
            raise EgretError(f"{self.path}: cannot read this file: {error}") from error

    @staticmethod
    def _state(descriptor: int) -> tuple[int, int]:
        state = os.fstat(descriptor)
        return state.st_size, state.st_mtime_ns

    def read(
        self, start: int, stop: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read the bytes from `start` up to `stop`, at most to the end of the file.

        Parameters
        ----------
        start, stop : int
            First byte, and the one after the last.
        out : ndarray of uint8, shape (stop - start or more,), optional
            Where to put them, instead of in a new array.

        Returns
        -------
        ndarray of uint8, shape (min(stop, size) - start,)
            The bytes.

        Raises
        ------
        EgretError
            The file cannot be read, or has changed since it was opened first.
        """
        count = max(0, min(stop, self.size) - start)
        data = np.empty(count, np.uint8) if out is None else out[:count]

        def fill(descriptor: int) -> bool:
            if self._state(descriptor) != (self.size, self.modified):
                return False
            done = 0
            while done < data.size:
                count = os.preadv(descriptor, [data[done:].data], start + done)
                if count == 0:
                    return False
                done += count
            return True

        if not self._reading(fill):
            raise EgretError(f"{self.path}: has changed while it was being read")
        return data


@dataclass(frozen=True)
class TensorSource:
    """A tensor whose elements are read when they are asked for.

    Parameters
    ----------
    dtype : str
        Name of the dtype in safetensors.
    shape : tuple of int
        Shape; empty for a scalar.
    read_bytes : Callable
        Takes two places within the tensor's bytes (elements in C order, little-endian) and
        returns those from the first up to the second, as an array of uint8. A third argument,
        None or an array of uint8 of that size or more, is memory that it may use.
    """

    dtype: str
    shape: tuple[int, ...]
    read_bytes: Callable[[int, int, NDArray[np.uint8] | None], NDArray[np.uint8]] = field(
        repr=False
    )

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        """Bytes of all elements."""
        return data_bytes(self.dtype, self.shape)

    def read(self, start: int, count: int, out: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Read elements.

        Parameters
        ----------
        start : int
            Number of elements before those, in C order.
        count : int
            How many, within the tensor.
        out : ndarray of uint8, optional
            Memory that may be used for them, of their bytes or more.

        Returns
        -------
        ndarray, shape (count,)
            The elements. Those of a dtype that NumPy does not have, BF16 among them, as unsigned
            integers of the same width.

        Raises
        ------
        EgretError
            The file that they lie in cannot be read.
        """
        width = DTYPE_BYTES[self.dtype]
        data = self.read_bytes(start * width, (start + count) * width, out)
        return data.view(_NUMBERS.get(self.dtype, f"<u{width}"))

    def blocks(self, block_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Read all bytes in order, at most `block_bytes` at a time."""
        for start in range(0, self.data_bytes, block_bytes):
            yield self.read_bytes(start, min(start + block_bytes, self.data_bytes), None)

    def raw(self) -> RawTensor:
        """Read the whole tensor."""
        return RawTensor(self.dtype, self.shape, self.read_bytes(0, self.data_bytes, None).data)


class Checkpoint(Mapping[str, TensorSource]):
    """The tensors of a checkpoint by name.

    Parameters
    ----------
    path : Path
        What the user named.
    tensors : Mapping of str to TensorSource
        The tensors.
    files : tuple of InputFile
        Every file that was, or will be, read.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, TensorSource], files: tuple[InputFile, ...]
    ) -> None:
        self.path = path
        self.files = files
        self._tensors = tensors

    def __getitem__(self, name: str) -> TensorSource:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.data_bytes for tensor in self.values())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, its sharded form, or a PyTorch state dict.

    The kind is told by the content, not by the name.

    Parameters
    ----------
    path : str or Path
        A safetensors file; the JSON index of a sharded one (`model.safetensors.index.json`),
        whose shards lie beside it; or what `torch.save(model.state_dict(), path)` wrote, also
        inside a dict under "state_dict" or "model_state_dict".

    Returns
    -------
    Checkpoint
        Tensors by name.

    Raises
    ------
    FormatError
        Empty, truncated, damaged or of another kind; an entry of the state dict is no tensor;
        it holds objects that PyTorch refuses to load safely.
    EgretError
        The file does not exist or cannot be read, or PyTorch is needed and not installed.
    """
    file = InputFile(path)
    if file.size == 0:
        raise FormatError(f"{path}: the file is empty")
    head = file.read(0, _LENGTH_BYTES + 1).tobytes()
    # This first: a header's length may have the bytes that a pickle begins with.
    if not looks_like_safetensors(head):
        zipped = head[:4] == _ZIP_MAGIC
        if zipped or head[:2] in _PICKLE_MAGICS:
            return Checkpoint(file.path, _read_torch(file.path, zipped), (file,))
        if head[:1] == b"{":
            return _read_sharded(file)
        raise FormatError(
            f"{path}: found another kind of file, expected safetensors or a PyTorch state dict"
        )
    tensors = _read_safetensors(file)
    if INDEX_NAME in tensors:
        raise FormatError(f"{path}: is packed already, expected unpacked weights")
    return Checkpoint(file.path, tensors, (file,))


def header_entries(file: InputFile) -> dict[str, HeaderEntry]:
    """Read the header of a safetensors file.

    Raises
    ------
    FormatError
        Not a safetensors file, truncated or damaged.
    EgretError
        The file cannot be read.
    """
    head = file.read(0, _LENGTH_BYTES + 1).tobytes()
    # Its length field is believed only where the file looks like one.
    length = int.from_bytes(head[:_LENGTH_BYTES], "little") if looks_like_safetensors(head) else 0
    return parse_header(file.read(0, _LENGTH_BYTES + length + 1).data, file.path, file.size)


def _read_safetensors(file: InputFile) -> dict[str, TensorSource]:
    def source(dtype: str, shape: tuple[int, ...], origin: int) -> TensorSource:
        return TensorSource(
            dtype, shape, lambda start, stop, out: file.read(origin + start, origin + stop, out)
        )

    return {
        name: source(entry.dtype, entry.shape, entry.start)
        for name, entry in header_entries(file).items()
    }


def _read_sharded(index: InputFile) -> Checkpoint:
    try:
        if index.size > _JSON_LIMIT:
            raise ValueError
        text = index.read(0, index.size).tobytes().decode("utf-8")
        places = json.loads(text)["weight_map"]
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise TypeError
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise FormatError(
            f"{index.path}: found another kind of file, expected safetensors, the index of a "
            "sharded one, or a PyTorch state dict"
        ) from error
    tensors: dict[str, TensorSource] = {}
    files = [index]
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise FormatError(f"{index.path}: shard {shard!r} does not lie beside the index")
        file = InputFile(index.path.parent / shard)
        files.append(file)
        found = _read_safetensors(file)
        for name in (name for name, place in places.items() if place == shard):
            if name not in found:
                raise FormatError(
                    f"{file.path}: tensor {name!r} is missing, {index.path} places it here"
                )
            tensors[name] = found[name]
    return Checkpoint(index.path, tensors, tuple(files))


def _read_torch(path: Path, zipped: bool) -> dict[str, TensorSource]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EgretError(
            f"{path}: reading a PyTorch file needs PyTorch: pip install 'egret[train]'"
        ) from error
    from pickle import UnpicklingError

    # torch.load maps a file only when it is given its name, and then goes by the suffix too.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(
                str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except UnpicklingError as error:
        raise FormatError(
            f"{path}: holds objects other than tensors, which are not loaded because they "
            "could run code; save model.state_dict() instead"
        ) from error
    except Exception as error:
        # Its reader raises many types for a damaged file, RuntimeError and EOFError among them.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{path}: truncated or damaged PyTorch file: {reason}") from error
    if isinstance(loaded, Mapping):
        for key in _NESTING_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise FormatError(
            f"{path}: found {type(loaded).__name__}, expected a state dict (names to tensors)"
        )
    tensors = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise FormatError(f"{path}: found key {name!r}, expected the name of a tensor")
        try:
            tensors[name] = as_source(value, name)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
    return tensors


def _in_memory(dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> TensorSource:
    return TensorSource(dtype, shape, lambda start, stop, out: data[start:stop])


def as_source(value: Any, name: str) -> TensorSource:
    """Take a tensor of any library that Egret knows.

    Parameters
    ----------
    value : TensorSource, RawTensor, ndarray or torch.Tensor
        The tensor. Its memory is read later, and copied now only where it does not lie in order
        on the CPU.
    name : str
        Its name, for error messages.

    Returns
    -------
    TensorSource
        Same dtype, shape and elements.

    Raises
    ------
    FormatError
        No tensor, or one whose dtype or layout safetensors does not have.
    """
    if isinstance(value, TensorSource):
        return value
    if isinstance(value, RawTensor):
        return _in_memory(value.dtype, value.shape, np.frombuffer(value.data, np.uint8))
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        try:
            # For its check of the dtype and for the dtype's name.
            dtype = RawTensor.from_array(array[:0] if array.ndim else array).dtype
        except FormatError as error:
            raise FormatError(f"entry {name!r}: {error}") from error
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
        return _in_memory(dtype, array.shape, plain.view(np.uint8))
    # A caller that holds a torch tensor has imported torch.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        raise FormatError(f"entry {name!r}: found {type(value).__name__}, expected a tensor")
    kind = TORCH_DTYPES.get(str(value.dtype).removeprefix("torch."))
    if value.layout != torch.strided or kind is None or value.is_meta:
        raise FormatError(
            f"entry {name!r}: found a tensor of {value.dtype}, {value.layout}, on {value.device}; "
            "expected a dense one of a plain dtype"
        )
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return _in_memory(kind, tuple(value.shape), flat.view(torch.uint8).numpy())
