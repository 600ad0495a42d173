"""The index of a container, version 2: what the file holds, as a compact binary table.

Its layout is "Index" in chapter 1 of docs/format.md.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.codec import MAX_CHUNK
from egret.crc import crc32c
from egret.errors import EgretError, FormatError
from egret.quantize import CODED_DTYPES, INTEGER_DTYPES, STEP_LOG2_RANGE
from egret.safetensors_file import METADATA_NAME, check_shape, data_bytes, is_text

__all__ = [
    "BOOKS_NAME",
    "CODE_NAME",
    "CONTAINER_MAGIC",
    "CONTAINER_VERSION",
    "DTYPE_CODES",
    "DTYPE_NAMES",
    "INDEX_NAME",
    "NETWORK_NAME",
    "RESERVED_PREFIX",
    "AliasRecord",
    "CodedRecord",
    "Cursor",
    "Index",
    "RawRecord",
    "build_index",
    "check_name",
    "index_version",
    "parse_index",
    "sealed_part",
]

CONTAINER_MAGIC = b"EGRT"
CONTAINER_VERSION = 2

RESERVED_PREFIX = "egret:"
"""Names of the container's own tensors start so; no user's tensor may."""
INDEX_NAME = RESERVED_PREFIX + "index"
CODE_NAME = RESERVED_PREFIX + "code"
BOOKS_NAME = RESERVED_PREFIX + "books"
NETWORK_NAME = RESERVED_PREFIX + "network"

DTYPE_CODES = {
    "F32": 0,
    "F16": 1,
    "BF16": 2,
    "F64": 3,
    "I8": 4,
    "U8": 5,
    "I16": 6,
    "U16": 7,
    "I32": 8,
    "U32": 9,
    "I64": 10,
    "U64": 11,
    "BOOL": 12,
    "F8_E4M3": 13,
    "F8_E5M2": 14,
    "C64": 15,
}
"""Number of each dtype in a record of the index."""
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}
_KIND_RAW = 0
_KIND_CODED = 1
_KIND_ALIAS = 2
_FLAG_NETWORK = 1

# magic, version: at the same place in every version
_PREAMBLE = struct.Struct("<4sH")
# flags, tensors, books, books CRC, network CRC
_HEAD = struct.Struct("<HIIII")
_CRC = struct.Struct("<I")
# step exponent
_STEP = struct.Struct("<b")
_WORD = np.dtype("<u4")
_MAX_NAME_BYTES = 0xFFFF
# Front coding lets seven bytes stand for a name of 65,535, so that names need a limit of
# their own for memory.
_MAX_NAMES_BYTES = 1 << 26
# Nine groups of seven bits: numbers below 2^63.
_MAX_VARINT_BYTES = 9


@dataclass(frozen=True)
class RawRecord:
    """What the index says of a tensor that is stored as it was.

    Parameters
    ----------
    name : str
        Name of the tensor.
    dtype : str
        Dtype, as safetensors names it.
    shape : tuple of int
        Shape.
    crc : int
        CRC-32C of its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    crc: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensor."""
        return data_bytes(self.dtype, self.shape)


@dataclass(frozen=True, eq=False)
class CodedRecord:
    """What the index says of a coded tensor.

    Parameters
    ----------
    name : str
        Name of the tensor.
    dtype : str
        Dtype of the original tensor, one of `egret.quantize.CODED_DTYPES`.
    shape : tuple of int
        Shape.
    step_log2 : int
        n of the step 2^-n; 0 for the integer dtypes.
    book : int
        Number of its codebook.
    chunk : int
        Weights in a chunk; the last one may have fewer.
    bits : ndarray of uint32, shape (chunks,)
        Bits of the codewords of each chunk.
    crcs : ndarray of uint32, shape (chunks,)
        CRC-32C of the bytes of each chunk.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    step_log2: int
    book: int
    chunk: int
    bits: NDArray[np.unsignedinteger] = field(repr=False)
    crcs: NDArray[np.uint32] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self.bits.size

    @property
    def chunk_bytes(self) -> NDArray[np.int64]:
        """Bytes of each chunk, the last one of each filled up: shape (chunks,)."""
        return (self.bits.astype(np.int64) + 7) >> 3

    @property
    def code_bits(self) -> int:
        """Bits of the codewords alone."""
        return int(self.bits.sum(dtype=np.int64))

    @property
    def code_bytes(self) -> int:
        """Bytes of the chunks."""
        return int(self.chunk_bytes.sum())


@dataclass(frozen=True)
class AliasRecord:
    """What the index says of a tensor that is the same as another one.

    Parameters
    ----------
    name : str
        Name of the tensor.
    target : str
        Name of the raw or coded tensor with the same dtype, shape and elements; it comes first
        in the order of the names' UTF-8 bytes.
    """

    name: str
    target: str


@dataclass(frozen=True)
class Index:
    """What an index says.

    Parameters
    ----------
    records : tuple of RawRecord, CodedRecord or AliasRecord
        One for each tensor, ascending by the names' UTF-8 bytes.
    book_bytes : tuple of int
        Bytes of each codebook.
    books_crc : int
        CRC-32C of all codebooks together.
    network_crc : int or None
        CRC-32C of the network's description; None without one.
    """

    records: tuple[RawRecord | CodedRecord | AliasRecord, ...]
    book_bytes: tuple[int, ...]
    books_crc: int
    network_crc: int | None


class Cursor:
    """Takes fields off an index; `FormatError` where it ends too soon.

    Parameters
    ----------
    data : bytes or memoryview of bytes
        The index.
    where : str
        Beginning of error messages.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self._data = data
        self._where = where
        self._place = 0

    def take(self, count: int) -> bytes:
        """Take so many bytes; nothing is reserved for bytes that are not there."""
        start = self._place
        if count > len(self._data) - start:
            raise FormatError(f"{self._where}: ends within a record")
        self._place = start + count
        return bytes(self._data[start : self._place])

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Take fields of fixed sizes."""
        return layout.unpack(self.take(layout.size))

    def varint(self) -> int:
        """Take a number in groups of seven bits."""
        number = 0
        for group in range(_MAX_VARINT_BYTES):
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << 7 * group
            if byte < 0x80:
                if byte == 0 and group:
                    raise FormatError(f"{self._where}: a varint ends with a group that is zero")
                return number
        raise FormatError(f"{self._where}: found a varint of 2^63 or more")

    def words(self, count: int) -> NDArray[np.uint32]:
        """Take numbers of 32 bits."""
        return np.frombuffer(self.take(count * _WORD.itemsize), _WORD).astype(np.uint32)

    def at_end(self) -> bool:
        """Tell whether everything has been taken."""
        return self._place == len(self._data)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _shared(first: bytes, second: bytes) -> int:
    """Count the leading bytes that are equal."""
    size = min(len(first), len(second))
    return next((i for i in range(size) if first[i] != second[i]), size)


def check_name(name: str, path: str | Path) -> bytes:
    """Return a tensor's name as UTF-8.

    Raises
    ------
    EgretError
        A container cannot hold a tensor of this name.
    """
    if not is_text(name) or len(name.encode()) > _MAX_NAME_BYTES or name == METADATA_NAME:
        raise EgretError(f"{path}: tensor {name[:80]!r}: a container cannot hold this name")
    if name.startswith(RESERVED_PREFIX):
        raise EgretError(
            f"{path}: tensor {name!r}: names that start with {RESERVED_PREFIX!r} are reserved"
        )
    return name.encode()


def index_version(data: bytes | memoryview, where: str) -> int:
    """Return the version of an index of any version.

    Raises
    ------
    FormatError
        It is too short, or its magic is another one.
    """
    magic, version = Cursor(data, where).fields(_PREAMBLE)
    if magic != CONTAINER_MAGIC:
        raise FormatError(f"{where}: found magic {magic!r}, expected {CONTAINER_MAGIC!r}")
    return int(version)


def sealed_part(data: bytes | memoryview, where: str) -> Cursor:
    """Check the CRC that ends an index of any version; return what stands between it and version.

    Raises
    ------
    FormatError
        The index is too short, or its CRC does not match.
    """
    size = len(data) - _CRC.size
    if size < _PREAMBLE.size:
        raise FormatError(f"{where}: found {len(data)} bytes, too few")
    if crc32c(data[:size]) != _CRC.unpack(data[size:])[0]:
        raise FormatError(f"{where}: damaged: its CRC does not match")
    return Cursor(data[_PREAMBLE.size : size], where)


def parse_index(data: bytes | memoryview, where: str) -> Index:
    """Read an index of version 2.

    Parameters
    ----------
    data : bytes or memoryview of bytes
        Content of `egret:index`.
    where : str
        Beginning of error messages.

    Returns
    -------
    Index
        Every field within the range that the format gives it.

    Raises
    ------
    FormatError
        It is damaged, or breaks a rule of the format. No memory is reserved for counts that the
        index has no room for.
    """
    cursor = sealed_part(data, where)
    flags, count, books, books_crc, network_crc = cursor.fields(_HEAD)
    if flags & ~_FLAG_NETWORK:
        raise FormatError(f"{where}: found flags {flags:#06x} that this Egret does not know")
    if not flags & _FLAG_NETWORK and network_crc:
        raise FormatError(f"{where}: found a network CRC, expected none without a network")
    book_bytes = []
    for _ in range(books):
        book_bytes.append(cursor.varint())
    records: list[RawRecord | CodedRecord | AliasRecord] = []
    text = b""
    names_bytes = 0
    for number in range(count):
        kind = cursor.take(1)[0]
        shared, more = cursor.varint(), cursor.varint()
        if shared > len(text):
            raise FormatError(
                f"{where}: record {number}: shares {shared} bytes with a name of {len(text)}"
            )
        names_bytes += shared + more
        if shared + more > _MAX_NAME_BYTES or names_bytes > _MAX_NAMES_BYTES:
            raise FormatError(
                f"{where}: record {number}: found a name of {shared + more} bytes, expected at "
                f"most {_MAX_NAME_BYTES}, and {_MAX_NAMES_BYTES} for all names"
            )
        previous, text = text, text[:shared] + cursor.take(more)
        if records and text <= previous:
            raise FormatError(f"{where}: record {number}: names are not in ascending order")
        try:
            name = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{where}: record {number}: the name is not UTF-8") from error
        place = f"{where}: tensor {name!r}"
        if name.startswith(RESERVED_PREFIX) or name == METADATA_NAME:
            raise FormatError(f"{place}: the name is reserved")
        if kind == _KIND_ALIAS:
            records.append(_parse_alias(cursor, name, records, place))
        elif kind in (_KIND_RAW, _KIND_CODED):
            records.append(_parse_tensor(cursor, kind, name, books, place))
        else:
            raise FormatError(f"{place}: found kind {kind}, expected {_KIND_RAW} to {_KIND_ALIAS}")
    if not cursor.at_end():
        raise FormatError(f"{where}: goes on after its last record")
    return Index(
        tuple(records),
        tuple(book_bytes),
        books_crc,
        network_crc if flags & _FLAG_NETWORK else None,
    )


def _parse_alias(
    cursor: Cursor,
    name: str,
    earlier: Sequence[RawRecord | CodedRecord | AliasRecord],
    where: str,
) -> AliasRecord:
    number = cursor.varint()
    if number >= len(earlier) or isinstance(earlier[number], AliasRecord):
        raise FormatError(
            f"{where}: is the same as tensor number {number}, expected an earlier raw or coded one"
        )
    return AliasRecord(name, earlier[number].name)


def _parse_tensor(
    cursor: Cursor, kind: int, name: str, books: int, where: str
) -> RawRecord | CodedRecord:
    code, dimensions = cursor.take(2)
    if code not in DTYPE_NAMES:
        raise FormatError(f"{where}: found dtype number {code}")
    dtype = DTYPE_NAMES[code]
    shape = tuple(cursor.varint() for _ in range(dimensions))
    size = check_shape(shape, where)
    if kind == _KIND_RAW:
        return RawRecord(name, dtype, shape, cursor.fields(_CRC)[0])
    (step_log2,) = cursor.fields(_STEP)
    book, chunk = cursor.varint(), cursor.varint()
    _check_coded(dtype, step_log2, book, books, chunk, where)
    chunks = -(-size // chunk)
    bits, crcs = cursor.words(chunks), cursor.words(chunks)
    return CodedRecord(name, dtype, shape, step_log2, book, chunk, bits, crcs)


def _check_coded(dtype: str, step_log2: int, book: int, books: int, chunk: int, where: str) -> None:
    if dtype not in CODED_DTYPES:
        raise FormatError(f"{where}: found dtype {dtype}, expected one that can be coded")
    low, high = (0, 0) if dtype in INTEGER_DTYPES else STEP_LOG2_RANGE
    for what, found, first, last in (
        ("step exponent", step_log2, low, high),
        ("codebook", book, 0, books - 1),
        ("weights in a chunk", chunk, 1, MAX_CHUNK),
    ):
        if not first <= found <= last:
            raise FormatError(f"{where}: found {what} {found}, expected {first} to {last}")


def build_index(
    records: Sequence[RawRecord | CodedRecord | AliasRecord],
    book_bytes: Sequence[int],
    books_crc: int,
    network_crc: int | None,
    path: str | Path,
) -> bytes:
    """Write an index of version 2; the inverse of `parse_index`.

    Parameters
    ----------
    records : sequence of RawRecord, CodedRecord or AliasRecord
        One for each tensor, ascending by the names' UTF-8 bytes.
    book_bytes : sequence of int
        Bytes of each codebook.
    books_crc : int
        CRC-32C of all codebooks together.
    network_crc : int or None
        CRC-32C of the network's description; None without one.
    path : str or Path
        The container, for error messages.

    Returns
    -------
    bytes
        Content of `egret:index`. Its length does not depend on the CRCs.

    Raises
    ------
    EgretError
        A name cannot be stored or is not above the one before it, or a field of a record is out
        of its range.
    """
    index = bytearray(_PREAMBLE.pack(CONTAINER_MAGIC, CONTAINER_VERSION))
    flags = 0 if network_crc is None else _FLAG_NETWORK
    index += _HEAD.pack(flags, len(records), len(book_bytes), books_crc, network_crc or 0)
    for size in book_bytes:
        index += _varint(size)
    stored: dict[str, int] = {}
    previous = b""
    names_bytes = 0
    for number, record in enumerate(records):
        text = check_name(record.name, path)
        where = f"{path}: tensor {record.name!r}"
        if number and text <= previous:
            raise EgretError(f"{where}: records are not in ascending order of their names")
        shared = _shared(previous, text)
        name = _varint(shared) + _varint(len(text) - shared) + text[shared:]
        previous = text
        names_bytes += len(text)
        if isinstance(record, AliasRecord):
            if record.target not in stored:
                raise EgretError(
                    f"{where}: is the same as {record.target!r}, expected an earlier raw or coded "
                    "tensor"
                )
            index += bytes((_KIND_ALIAS,)) + name + _varint(stored[record.target])
            continue
        stored[record.name] = number
        size = check_shape(record.shape, where)
        if record.dtype not in DTYPE_CODES:
            raise EgretError(
                f"{where}: found dtype {record.dtype!r}, expected one of {', '.join(DTYPE_CODES)}"
            )
        kind = _KIND_RAW if isinstance(record, RawRecord) else _KIND_CODED
        index += bytes((kind,)) + name
        index += bytes((DTYPE_CODES[record.dtype], len(record.shape)))
        for axis in record.shape:
            index += _varint(axis)
        if isinstance(record, RawRecord):
            index += _CRC.pack(record.crc)
            continue
        _check_coded(
            record.dtype, record.step_log2, record.book, len(book_bytes), record.chunk, where
        )
        chunks = -(-size // record.chunk)
        if not record.bits.size == record.crcs.size == chunks:
            raise EgretError(
                f"{where}: found {record.bits.size} lengths and {record.crcs.size} CRCs, expected "
                f"one of each for {chunks} chunks"
            )
        index += _STEP.pack(record.step_log2) + _varint(record.book) + _varint(record.chunk)
        index += record.bits.astype(_WORD).tobytes() + record.crcs.astype(_WORD).tobytes()
    if names_bytes > _MAX_NAMES_BYTES:
        raise EgretError(
            f"{path}: found names of {names_bytes} bytes together, expected at most "
            f"{_MAX_NAMES_BYTES}"
        )
    return bytes(index) + _CRC.pack(crc32c(index))
