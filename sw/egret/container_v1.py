"""Reading containers of version 1: one exp-Golomb code, and a table of values for each tensor.

Their layout is docs/format-v1.md. Nothing writes them any more.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from egret import golomb
from egret.container_index import (
    CODE_NAME,
    DTYPE_NAMES,
    INDEX_NAME,
    NETWORK_NAME,
    RESERVED_PREFIX,
    AliasRecord,
    CodedRecord,
    Cursor,
    RawRecord,
    sealed_part,
)
from egret.crc import crc32c
from egret.errors import EgretError, FormatError
from egret.params import MAX_ORDER
from egret.prefix_code import PrefixCode
from egret.quantize import FLOAT_DTYPES, STEP_LOG2_RANGE
from egret.safetensors_file import METADATA_NAME, check_shape
from egret.value_map import from_indices

__all__ = ["VERSION", "Book", "Layout"]

VERSION = 1

_MAPS_NAME = RESERVED_PREFIX + "maps"

_KIND_RAW = 0
_KIND_CODED = 1
_FLAG_NETWORK = 1

# flags, tensors, network bytes, network CRC
_HEAD = struct.Struct("<HIII")
# kind, dtype, dimensions, name bytes
_RECORD = struct.Struct("<BBBH")
_SIZE = struct.Struct("<Q")
_CRC = struct.Struct("<I")
# step exponent, order, map width, map entries, code bits, map CRC
_CODED = struct.Struct("<bBBIQI")
_MAX_MAP_WIDTH = 32


@dataclass(frozen=True)
class Book:
    """Code and value map of one tensor, with the attributes of `egret.codebook.Codebook`.

    Parameters
    ----------
    level : PrefixCode
        Its exp-Golomb code.
    values : ndarray of int32, shape (entries,)
        Value of each index, in any order.
    data : bytes
        The map as it is stored.
    map_bits : int
        Bits of the map's entries.
    """

    level: PrefixCode
    values: NDArray[np.int32] = field(repr=False)
    data: bytes = field(repr=False)
    map_bits: int

    run = None
    is_run = False
    map_kind = "table"

    @property
    def name(self) -> str:
        """Name of the code: eg-0 … eg-7."""
        return f"eg-{self.level.order}"

    @property
    def table_bits(self) -> int:
        """Bits that fill up the map's last byte."""
        return 8 * len(self.data) - self.map_bits


@dataclass(frozen=True)
class _Stored:
    """What a record says of a coded tensor beside its `CodedRecord`, and where its parts begin."""

    order: int
    map_width: int
    map_entries: int
    code_bits: int
    code_crc: int
    map_crc: int
    code_start: int
    map_start: int

    @property
    def code_bytes(self) -> int:
        return (self.code_bits + 7) // 8

    @property
    def map_bytes(self) -> int:
        return (self.map_entries * self.map_width + 7) // 8


def _unpack_map(data: bytes, entries: int, width: int) -> NDArray[np.int32]:
    stored = np.unpackbits(np.frombuffer(data, np.uint8))
    if stored[entries * width :].any():
        raise FormatError("the value map is not filled up with zero bits")
    bits = stored[: entries * width].reshape(entries, width)
    signs = np.repeat(bits[:, :1], 32 - width, axis=1)
    table = np.packbits(np.concatenate((signs, bits), axis=1)).view(">i4").astype(np.int32)
    if np.unique(table).size != entries:
        raise FormatError("a value occurs twice in the value map")
    return table


class Layout:
    """What an index of version 1 says, and how its tensors are decoded: each is one chunk.

    Parameters
    ----------
    index : memoryview of bytes
        Content of `egret:index`.
    where : str
        Beginning of error messages.

    Raises
    ------
    FormatError
        The index is damaged, or breaks a rule of the format.
    """

    books_name = _MAPS_NAME

    def __init__(self, index: memoryview, where: str) -> None:
        cursor = sealed_part(index, where)
        flags, count, network_bytes, network_crc = cursor.fields(_HEAD)
        if flags & ~_FLAG_NETWORK or (not flags and (network_bytes or network_crc)):
            raise FormatError(f"{where}: found flags {flags:#06x} that this Egret does not know")
        self.network_crc: int | None = network_crc if flags else None
        self.records: list[RawRecord | CodedRecord | AliasRecord] = []
        self._stored: list[_Stored] = []
        self._ends = (0, 0)
        previous = b""
        for number in range(count):
            kind, code, dimensions, length = cursor.fields(_RECORD)
            text = cursor.take(length)
            if number and text <= previous:
                raise FormatError(f"{where}: record {number}: names are not in ascending order")
            previous = text
            try:
                name = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"{where}: record {number}: the name is not UTF-8") from error
            place = f"{where}: tensor {name!r}"
            if name.startswith(RESERVED_PREFIX) or name == METADATA_NAME:
                raise FormatError(f"{place}: the name is reserved")
            if code not in DTYPE_NAMES:
                raise FormatError(f"{place}: found dtype number {code}")
            shape = tuple(cursor.fields(_SIZE)[0] for _ in range(dimensions))
            size = check_shape(shape, place)
            (crc,) = cursor.fields(_CRC)
            if kind == _KIND_RAW:
                self.records.append(RawRecord(name, DTYPE_NAMES[code], shape, crc))
            elif kind == _KIND_CODED:
                self._take_coded(cursor, name, DTYPE_NAMES[code], shape, size, crc, place)
            else:
                raise FormatError(
                    f"{place}: found kind {kind}, expected {_KIND_RAW} or {_KIND_CODED}"
                )
        if not cursor.at_end():
            raise FormatError(f"{where}: goes on after its last record")
        self.books = len(self._stored)
        self.own: dict[str, int | None] = {
            INDEX_NAME: len(index),
            CODE_NAME: self._ends[0],
            _MAPS_NAME: self._ends[1],
        }
        if flags:
            self.own[NETWORK_NAME] = network_bytes

    def _take_coded(
        self,
        cursor: Cursor,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        size: int,
        crc: int,
        where: str,
    ) -> None:
        step_log2, order, width, entries, bits, map_crc = cursor.fields(_CODED)
        low, high = STEP_LOG2_RANGE
        checks = (
            ("dtype", dtype, dtype in FLOAT_DTYPES, "a floating type"),
            ("step exponent", step_log2, low <= step_log2 <= high, f"{low} to {high}"),
            ("order", order, order <= MAX_ORDER, f"0 to {MAX_ORDER}"),
            ("map width", width, 1 <= width <= _MAX_MAP_WIDTH, f"1 to {_MAX_MAP_WIDTH}"),
            (
                "map entries",
                entries,
                min(1, size) <= entries <= size,
                f"at most the {size} weights",
            ),
            (
                "code bits",
                bits,
                size * (order + 1) <= bits and (size > 0 or bits == 0),
                f"at least {order + 1} for each of {size} weights",
            ),
        )
        for field_name, found, ok, expected in checks:
            if not ok:
                raise FormatError(f"{where}: found {field_name} {found}, expected {expected}")
        stored = _Stored(order, width, entries, bits, crc, map_crc, *self._ends)
        self._ends = (self._ends[0] + stored.code_bytes, self._ends[1] + stored.map_bytes)
        chunks = min(1, size)
        self.records.append(
            CodedRecord(
                name,
                dtype,
                shape,
                step_log2,
                book=len(self._stored),
                chunk=max(1, size),
                bits=np.array([bits][:chunks], np.uint64),
                crcs=np.array([crc][:chunks], np.uint32),
            )
        )
        self._stored.append(stored)

    def attach(self, own: Mapping[str, memoryview]) -> None:
        """Take the container's own tensors."""
        self._code = own[CODE_NAME]
        self._maps = own[_MAPS_NAME]

    def book(self, number: int) -> Book:
        """Return the code and the value map of a coded tensor.

        Raises
        ------
        FormatError
            The map is damaged.
        EgretError
            There is no coded tensor of this number.
        """
        if not 0 <= number < self.books:
            raise EgretError(f"there is no codebook {number}")
        stored = self._stored[number]
        data = bytes(self._maps[stored.map_start : stored.map_start + stored.map_bytes])
        if crc32c(data) != stored.map_crc:
            raise FormatError("value map: damaged: its CRC does not match")
        values = _unpack_map(data, stored.map_entries, stored.map_width)
        bits = stored.map_entries * stored.map_width
        return Book(PrefixCode.golomb(stored.order), values, data, bits)

    def values(self, record: CodedRecord, first: int, last: int, threads: int) -> NDArray[np.int32]:
        """Decode a tensor's only chunk, or none.

        Raises
        ------
        FormatError
            Code or map are damaged or do not fit the record.
        """
        stored = self._stored[record.book]
        code = self._code[stored.code_start : stored.code_start + stored.code_bytes]
        if crc32c(code) != stored.code_crc:
            raise FormatError("code: damaged: its CRC does not match")
        book = self.book(record.book)
        if stored.code_bits % 8 and code[-1] & (0xFF >> stored.code_bits % 8):
            raise FormatError("the code is not filled up with zero bits")
        largest = max(0, stored.map_entries - 1) + (1 << stored.order)
        indices = golomb.decode_golomb(
            code,
            record.size,
            stored.order,
            suffix_limit=min(largest.bit_length() - 1, golomb.MAX_SUFFIX_BITS),
            bits=stored.code_bits,
        )
        values = from_indices(indices, book.values)
        return values[first * record.chunk : last * record.chunk]
