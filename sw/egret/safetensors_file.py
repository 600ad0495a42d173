"""Reading and writing safetensors files as bytes, whatever their dtypes.

The layout is that of https://huggingface.co/docs/safetensors: the header's length as a 64-bit
little-endian number, the header as JSON, the tensors' bytes without gaps. The safetensors
package hands out arrays of one framework (NumPy has no bfloat16) and its call for raw bytes
changed between versions; here the same tensors give the same file always, and every fault is a
`FormatError`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from egret.errors import EgretError, FormatError
from egret.files import atomic_path

__all__ = [
    "DTYPE_BYTES",
    "Bytes",
    "HeaderEntry",
    "RawTensor",
    "StreamedTensor",
    "data_bytes",
    "looks_like_safetensors",
    "parse",
    "parse_header",
    "write",
]

Bytes = bytes | bytearray | memoryview | NDArray[Any]
"""Contiguous memory; of an array, its elements' bytes."""

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of an element of each dtype, by its name in safetensors."""

_NUMPY_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_NAMES = {np.dtype(code): name for name, code in _NUMPY_DTYPES.items()}
METADATA_NAME = "__metadata__"
"""Key of the header that is no tensor's name."""
_LENGTH_BYTES = 8
_HEADER_LIMIT = 100_000_000
_MAX_DIMENSIONS = 32
# Larger arrays cannot be addressed: of eight bytes an element, they overflow in NumPy.
_MAX_ELEMENTS = 1 << 59


def check_shape(shape: tuple[int, ...], where: str) -> int:
    """Return the number of elements of a shape that NumPy can hold; `FormatError` otherwise."""
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise FormatError(f"{where}: shape {list(shape)} is too large")
    return math.prod(shape)


def data_bytes(dtype: str, shape: tuple[int, ...], where: str = "") -> int:
    """Return the bytes of a tensor.

    Parameters
    ----------
    dtype : str
        Name of the dtype in safetensors.
    shape : tuple of int
        Shape.
    where : str
        Beginning of error messages.

    Raises
    ------
    FormatError
        The dtype is not one of `DTYPE_BYTES`, or the shape too large.
    """
    if dtype not in DTYPE_BYTES:
        raise FormatError(f"{where}found dtype {dtype!r}, expected one of {', '.join(DTYPE_BYTES)}")
    return check_shape(shape, f"{where}tensor") * DTYPE_BYTES[dtype]


def _check_size(dtype: str, shape: tuple[int, ...], found: int, where: str = "") -> None:
    expected = data_bytes(dtype, shape, where)
    if found != expected:
        raise FormatError(
            f"{where}found {found} bytes for {dtype} of shape {list(shape)}, expected {expected}"
        )


@dataclass(frozen=True)
class RawTensor:
    """A tensor as bytes.

    Parameters
    ----------
    dtype : str
        Name of the dtype in safetensors, one of `DTYPE_BYTES`.
    shape : tuple of int
        Shape; empty for a scalar.
    data : bytes or memoryview of bytes
        Elements in C order, little-endian.

    Raises
    ------
    FormatError
        The dtype is not known, or the number of bytes does not fit dtype and shape.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview = field(repr=False)

    def __post_init__(self) -> None:
        _check_size(self.dtype, self.shape, len(self.data))

    @classmethod
    def from_array(
        cls, array: NDArray[Any], dtype: str | None = None, *, copy: bool = True
    ) -> "RawTensor":
        """Make one of an array.

        Parameters
        ----------
        array : ndarray
            Elements, any shape.
        dtype : str, optional
            Floating dtype to convert to, "BF16" among them, rounding to nearest even; that of
            the array when absent.
        copy : bool
            Whether the tensor has memory of its own in any case; else it may be the array's.

        Raises
        ------
        FormatError
            The array's dtype has no counterpart in safetensors.
        """
        if dtype == "BF16":
            words = np.ascontiguousarray(array, "<f4").view("<u4")
            # Half of the last bit kept, less one when that bit is even: nearest, ties to even.
            rounded = (words + (0x7FFF + ((words >> 16) & 1))) >> 16
            return cls("BF16", array.shape, _memory(rounded.astype("<u2")))
        name = dtype or _NAMES.get(array.dtype.newbyteorder("<"))
        if name is None:
            raise FormatError(f"found dtype {array.dtype}, which safetensors does not have")
        # Of the values of `copy`, None lets NumPy copy where it must.
        stored = np.array(array, _NUMPY_DTYPES[name], order="C", copy=copy or None)
        return cls(name, array.shape, _memory(stored))

    def array(self) -> NDArray[Any]:
        """Return the elements as an array of the same shape; BF16 as float32, exactly.

        Raises
        ------
        FormatError
            NumPy has no type for the dtype.
        """
        if self.dtype == "BF16":
            words = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            return words.view("<f4").reshape(self.shape)
        if self.dtype not in _NUMPY_DTYPES:
            raise FormatError(f"NumPy has no type for dtype {self.dtype}")
        return np.frombuffer(self.data, _NUMPY_DTYPES[self.dtype]).reshape(self.shape)


def _memory(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array without a copy."""
    return array.reshape(-1).view(np.uint8).data


def looks_like_safetensors(data: bytes | memoryview) -> bool:
    """Tell from the first nine bytes whether this can be a safetensors file."""
    head = bytes(data[: _LENGTH_BYTES + 1])
    return head[_LENGTH_BYTES:] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


@dataclass(frozen=True)
class HeaderEntry:
    """What the header of a safetensors file says of one tensor.

    Parameters
    ----------
    dtype : str
        Name of the dtype, one of `DTYPE_BYTES`.
    shape : tuple of int
        Shape; empty for a scalar.
    start, stop : int
        First byte of its data, and the one after its last, from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_header(
    data: bytes | memoryview, source: str | Path, file_bytes: int
) -> dict[str, HeaderEntry]:
    """Read the header of a safetensors file; of the tensors' bytes nothing is read.

    Parameters
    ----------
    data : bytes or memoryview of bytes
        The file's beginning, with at least the whole header unless the file itself is shorter.
    source : str or Path
        Name of the file, for error messages.
    file_bytes : int
        Bytes of the whole file.

    Returns
    -------
    dict of str to HeaderEntry
        The entries, in the header's order. Their bytes fill the file after the header, without
        gaps or overlap.

    Raises
    ------
    FormatError
        Not a safetensors file, truncated or damaged.
    """
    view = memoryview(data)
    if file_bytes == 0:
        raise FormatError(f"{source}: the file is empty")
    if not looks_like_safetensors(view):
        raise FormatError(f"{source}: not a safetensors file")
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if start > file_bytes:
        raise FormatError(
            f"{source}: truncated: the header ends at byte {start}, the file has {file_bytes}"
        )
    try:
        # `parse_constant` refuses NaN and Infinity, which are no JSON.
        header = json.loads(
            bytes(view[_LENGTH_BYTES:start]).decode("utf-8"),
            object_pairs_hook=_unique_object,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: the header is damaged: {error}") from error
    header.pop(METADATA_NAME, None)
    entries = {
        name: _check_entry(entry, start, f"{source}: {name!r}") for name, entry in header.items()
    }
    end = start
    for name in sorted(entries, key=lambda name: (entries[name].start, entries[name].stop)):
        entry = entries[name]
        if entry.start != end:
            raise FormatError(
                f"{source}: {name!r}: the tensor starts at byte {entry.start - start}, "
                f"expected {end - start}"
            )
        end = entry.stop
    if end != file_bytes:
        state = "truncated" if end > file_bytes else "damaged"
        raise FormatError(
            f"{source}: {state}: the tensors end at byte {end}, the file has {file_bytes}"
        )
    return entries


def parse(data: bytes | memoryview, source: str | Path) -> dict[str, RawTensor]:
    """Read a safetensors file that lies in memory.

    Parameters
    ----------
    data : bytes or memoryview of bytes
        The whole file. The tensors are views of it.
    source : str or Path
        Name of the file, for error messages.

    Returns
    -------
    dict of str to RawTensor
        The tensors, in the header's order.

    Raises
    ------
    FormatError
        Not a safetensors file, truncated or damaged.
    """
    view = memoryview(data)
    return {
        name: RawTensor(entry.dtype, entry.shape, view[entry.start : entry.stop])
        for name, entry in parse_header(view, source, len(view)).items()
    }


def _refuse_constant(text: str) -> None:
    raise ValueError(f"found {text}")


def _check_entry(entry: Any, origin: int, where: str) -> HeaderEntry:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise FormatError(f"{where}: damaged header entry, expected {', '.join(sorted(keys))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]

    def are_sizes(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)

    if not isinstance(dtype, str) or not are_sizes(shape):
        raise FormatError(f"{where}: damaged header entry: dtype {dtype!r}, shape {shape!r}")
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: damaged header entry: data_offsets {offsets!r}")
    _check_size(dtype, tuple(shape), offsets[1] - offsets[0], f"{where}: ")
    return HeaderEntry(dtype, tuple(shape), origin + offsets[0], origin + offsets[1])


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor whose bytes are made while it is written.

    Parameters
    ----------
    dtype : str
        Name of the dtype, one of `DTYPE_BYTES`.
    shape : tuple of int
        Shape; empty for a scalar.
    blocks : Callable
        Called once, when the tensor's turn has come; gives its bytes in order, as many blocks
        as it likes.

    Raises
    ------
    FormatError
        The dtype is not known, or the shape too large.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Bytes]] = field(repr=False)

    def __post_init__(self) -> None:
        data_bytes(self.dtype, self.shape)


def write(
    path: str | Path,
    tensors: Mapping[str, RawTensor | StreamedTensor],
    *,
    last: Sequence[str] = (),
) -> None:
    """Write a safetensors file; equal tensors give equal bytes.

    Parameters
    ----------
    path : str or Path
        File to write.
    tensors : Mapping of str to RawTensor or StreamedTensor
        The tensors, in any order: wide dtypes come first in the file, then names decide. A
        streamed one is asked for its blocks when everything before it has been written.
    last : sequence of str
        Names of tensors to put behind all others, in this order.

    Raises
    ------
    EgretError
        The file cannot be written, a name is not Unicode text or reserved by safetensors, or the
        blocks of a streamed tensor do not have the bytes of its dtype and shape.
    """
    order = {name: number for number, name in enumerate(last, 1)}
    names = sorted(
        tensors,
        key=lambda name: (
            (order[name], 0, "") if name in order else (0, -DTYPE_BYTES[tensors[name].dtype], name)
        ),
    )
    header = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if name == METADATA_NAME or not is_text(name):
            raise EgretError(f"{path}: tensor {name!r}: safetensors cannot hold this name")
        size = data_bytes(tensor.dtype, tensor.shape)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    # Spaces, so that the tensors start at a multiple of eight.
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_block(file, len(text).to_bytes(_LENGTH_BYTES, "little") + text, path)
        for name in names:
            tensor = tensors[name]
            blocks = (tensor.data,) if isinstance(tensor, RawTensor) else tensor.blocks()
            written = sum(_write_block(file, block, path) for block in blocks)
            expected = data_bytes(tensor.dtype, tensor.shape)
            if written != expected:
                raise EgretError(
                    f"{path}: tensor {name!r}: found {written} bytes, expected {expected}"
                )


def _write_block(file: BinaryIO, block: Bytes, path: str | Path) -> int:
    data = np.frombuffer(block, np.uint8)
    try:
        file.write(data.data)
    except OSError as error:
        raise EgretError(f"{path}: cannot write this file: {error.strerror}") from error
    return data.size


def is_text(name: str) -> bool:
    """Tell whether a name can be written as UTF-8: JSON's escapes can make lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
