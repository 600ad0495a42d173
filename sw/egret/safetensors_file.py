"""Reading and writing safetensors files as bytes, whatever their dtypes.

The layout is that of https://huggingface.co/docs/safetensors: the header's length as a 64-bit
little-endian number, the header as JSON, the tensors' bytes without gaps. The safetensors
package hands out arrays of one framework (NumPy has no bfloat16) and its call for raw bytes
changed between versions; here the same tensors give the same file always, and every fault is a
`FormatError`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.errors import EgretError, FormatError
from egret.files import atomic_path

__all__ = ["DTYPE_BYTES", "RawTensor", "looks_like_safetensors", "parse", "write"]

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
_LENGTH_BYTES = 8
_HEADER_LIMIT = 100_000_000
_MAX_DIMENSIONS = 32
# Larger arrays cannot be addressed, and products of their axes overflow in NumPy.
_MAX_ELEMENTS = 1 << 60


def check_shape(shape: tuple[int, ...], where: str) -> int:
    """Return the number of elements of a shape that NumPy can hold; `FormatError` otherwise."""
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise FormatError(f"{where}: shape {list(shape)} is too large")
    return math.prod(shape)


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
        if self.dtype not in DTYPE_BYTES:
            raise FormatError(
                f"found dtype {self.dtype!r}, expected one of {', '.join(DTYPE_BYTES)}"
            )
        expected = check_shape(self.shape, "tensor") * DTYPE_BYTES[self.dtype]
        if len(self.data) != expected:
            raise FormatError(
                f"found {len(self.data)} bytes for {self.dtype} of shape {list(self.shape)}, "
                f"expected {expected}"
            )

    @classmethod
    def from_array(cls, array: NDArray[Any], dtype: str | None = None) -> "RawTensor":
        """Make one of an array.

        Parameters
        ----------
        array : ndarray
            Elements, any shape.
        dtype : str, optional
            Floating dtype to convert to, "BF16" among them, rounding to nearest even; that of
            the array when absent.

        Raises
        ------
        FormatError
            The array's dtype has no counterpart in safetensors.
        """
        if dtype == "BF16":
            words = np.ascontiguousarray(array, "<f4").view("<u4")
            # Half of the last bit kept, less one when that bit is even: nearest, ties to even.
            rounded = (words + (0x7FFF + ((words >> 16) & 1))) >> 16
            return cls("BF16", array.shape, rounded.astype("<u2").tobytes())
        name = dtype or _NAMES.get(array.dtype.newbyteorder("<"))
        if name is None:
            raise FormatError(f"found dtype {array.dtype}, which safetensors does not have")
        return cls(name, array.shape, array.astype(_NUMPY_DTYPES[name]).tobytes())

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


def looks_like_safetensors(data: bytes | memoryview) -> bool:
    """Tell from the first nine bytes whether this can be a safetensors file."""
    head = bytes(data[: _LENGTH_BYTES + 1])
    return head[_LENGTH_BYTES:] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def parse(data: bytes | memoryview, source: str | Path) -> dict[str, RawTensor]:
    """Read a safetensors file that lies in memory.

    Parameters
    ----------
    data : bytes or memoryview
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
    if len(view) == 0:
        raise FormatError(f"{source}: the file is empty")
    if not looks_like_safetensors(view):
        raise FormatError(f"{source}: not a safetensors file")
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if start > len(view):
        raise FormatError(
            f"{source}: truncated: the header ends at byte {start}, the file has {len(view)}"
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
    header.pop("__metadata__", None)
    places = {name: _check_entry(entry, f"{source}: {name!r}") for name, entry in header.items()}
    end = 0
    for name in sorted(places, key=lambda name: places[name][2:]):
        _, _, first, last = places[name]
        if first != end:
            raise FormatError(
                f"{source}: {name!r}: the tensor starts at byte {first}, expected {end}"
            )
        end = last
    if start + end != len(view):
        state = "truncated" if start + end > len(view) else "damaged"
        raise FormatError(
            f"{source}: {state}: the tensors end at byte {start + end}, the file has {len(view)}"
        )
    tensors = {}
    for name, (dtype, shape, first, last) in places.items():
        try:
            tensors[name] = RawTensor(dtype, shape, view[start + first : start + last])
        except FormatError as error:
            raise FormatError(f"{source}: {name!r}: {error}") from error
    return tensors


def _refuse_constant(text: str) -> None:
    raise ValueError(f"found {text}")


def _check_entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
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
    return dtype, tuple(shape), offsets[0], offsets[1]


def write(path: str | Path, tensors: Mapping[str, RawTensor]) -> None:
    """Write a safetensors file; equal tensors give equal bytes.

    Parameters
    ----------
    path : str or Path
        File to write.
    tensors : Mapping of str to RawTensor
        The tensors, in any order: wide dtypes come first in the file, then names decide.

    Raises
    ------
    EgretError
        The file cannot be written, or a name is not Unicode text or reserved by safetensors.
    """
    header = {}
    end = 0
    names = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name].dtype], name))
    for name in names:
        tensor = tensors[name]
        if name == "__metadata__" or not is_text(name):
            raise EgretError(f"{path}: tensor {name!r}: safetensors cannot hold this name")
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(tensor.data)],
        }
        end += len(tensor.data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    # Spaces, so that the tensors start at a multiple of eight.
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for name in names:
            file.write(tensors[name].data)


def is_text(name: str) -> bool:
    """Tell whether a name can be written as UTF-8: JSON's escapes can make lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
