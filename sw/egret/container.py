"""The container (`.egret`): packed weights inside a safetensors file.

Its layout is chapter 1 of docs/format.md; a test reads files by a program written from that
chapter alone.
"""

import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from egret import codec, container_v1, safetensors_file
from egret.codebook import Codebook
from egret.container_index import (
    BOOKS_NAME,
    CODE_NAME,
    CONTAINER_MAGIC,
    CONTAINER_VERSION,
    DTYPE_CODES,
    INDEX_NAME,
    NETWORK_NAME,
    RESERVED_PREFIX,
    AliasRecord,
    CodedRecord,
    RawRecord,
    build_index,
    index_version,
    parse_index,
)
from egret.crc import crc32c
from egret.errors import EgretError, FormatError
from egret.quantize import INTEGER_DTYPES, QuantizedTensor, value_limits
from egret.safetensors_file import Bytes, RawTensor, StreamedTensor

__all__ = [
    "CONTAINER_MAGIC",
    "CONTAINER_VERSION",
    "DTYPE_CODES",
    "INDEX_NAME",
    "RESERVED_PREFIX",
    "AliasRecord",
    "CodedRecord",
    "Container",
    "RawEntry",
    "RawRecord",
    "RawTensor",
    "read_container",
    "write_container",
]

# Chunks that `verify` holds decoded at a time.
_VERIFY_CHUNKS = 128
# Codebooks kept after their use; each may have a map of megabytes.
_KEPT_BOOKS = 16


@dataclass(frozen=True)
class RawEntry:
    """A tensor to be stored as it is.

    Parameters
    ----------
    name : str
        Name of the tensor.
    dtype : str
        Dtype, as safetensors names it.
    shape : tuple of int
        Shape; empty for a scalar.
    blocks : Callable
        Called once, when the tensor is written; gives its bytes in order, as many blocks as it
        likes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Bytes]] = field(repr=False)


def write_container(
    path: str | Path,
    records: Sequence[CodedRecord | RawEntry | AliasRecord],
    books: Sequence[bytes],
    code: Iterable[Bytes],
    *,
    network: bytes | None = None,
) -> None:
    """Write a container; equal arguments give equal bytes.

    Code and raw tensors go to the file as they come, so that memory holds a block of them and the
    index.

    Parameters
    ----------
    path : str or Path
        File to write.
    records : sequence of CodedRecord, RawEntry or AliasRecord
        One for each tensor, ascending by the names' UTF-8 bytes.
    books : sequence of bytes
        The codebooks, by number: `egret.codebook.Codebook.data`.
    code : iterable of bytes-like
        The chunks of the coded tensors in the order of their records, in blocks of any size. It
        is asked for them after the raw tensors have been written.
    network : bytes, optional
        Description of the network that the tensors belong to, stored as it is.

    Raises
    ------
    EgretError
        The file cannot be written; names are reserved, too long, given twice or not ascending;
        a field of a record is out of its range; blocks do not have the bytes that the records
        say.
    """
    crcs: dict[str, int] = {}

    def summed(entry: RawEntry) -> Iterator[Bytes]:
        crc = 0
        for block in entry.blocks():
            crc = crc32c(block, crc)
            yield block
        crcs[entry.name] = crc

    packed_books = b"".join(books)

    def index() -> bytes:
        return build_index(
            [
                RawRecord(entry.name, entry.dtype, entry.shape, crcs.get(entry.name, 0))
                if isinstance(entry, RawEntry)
                else entry
                for entry in records
            ],
            [len(book) for book in books],
            crc32c(packed_books),
            None if network is None else crc32c(network),
            path,
        )

    code_bytes = sum(record.code_bytes for record in records if isinstance(record, CodedRecord))
    # The index stands last, since it holds the CRCs of what is written before it.
    own: dict[str, RawTensor | StreamedTensor] = {
        CODE_NAME: StreamedTensor("U8", (code_bytes,), lambda: code),
        BOOKS_NAME: RawTensor("U8", (len(packed_books),), packed_books),
    }
    if network is not None:
        own[NETWORK_NAME] = RawTensor("U8", (len(network),), network)
    own[INDEX_NAME] = StreamedTensor("U8", (len(index()),), lambda: (index(),))
    raw = {
        entry.name: StreamedTensor(entry.dtype, entry.shape, partial(summed, entry))
        for entry in records
        if isinstance(entry, RawEntry)
    }
    safetensors_file.write(path, {**raw, **own}, last=tuple(own))


class _Layout(Protocol):
    """What a version's index says, and how its coded tensors are decoded.

    Errors come without the names of file and tensor.
    """

    records: list[RawRecord | CodedRecord | AliasRecord]
    own: dict[str, int | None]
    """Bytes of each of the container's own tensors; None where the index does not say."""
    books_name: str
    books: int
    """Number of codebooks."""
    network_crc: int | None

    def attach(self, own: Mapping[str, memoryview]) -> None:
        """Take the container's own tensors and check what has to be right at opening."""

    def book(self, number: int) -> Codebook | container_v1.Book:
        """Return a codebook."""

    def values(self, record: CodedRecord, first: int, last: int, threads: int) -> NDArray[np.int32]:
        """Decode the chunks `first` to `last` - 1."""


class _Version2:
    """The present version."""

    books_name = BOOKS_NAME

    def __init__(self, index: memoryview, where: str) -> None:
        parsed = parse_index(index, where)
        self.records = list(parsed.records)
        self.network_crc = parsed.network_crc
        self._books_crc = parsed.books_crc
        self.books = len(parsed.book_bytes)
        self._book_ends = list(itertools.accumulate(parsed.book_bytes, initial=0))
        self._code_starts = {}
        end = 0
        for record in self.records:
            if isinstance(record, CodedRecord):
                self._code_starts[record.name] = end
                end += record.code_bytes
        self.own: dict[str, int | None] = {
            INDEX_NAME: len(index),
            BOOKS_NAME: self._book_ends[-1],
            CODE_NAME: end,
        }
        if self.network_crc is not None:
            self.own[NETWORK_NAME] = None
        self._kept: dict[int, Codebook] = {}
        self._lock = Lock()

    def attach(self, own: Mapping[str, memoryview]) -> None:
        self._books = own[BOOKS_NAME]
        self._code = own[CODE_NAME]
        if crc32c(self._books) != self._books_crc:
            raise FormatError("codebooks: damaged: their CRC does not match")

    def book(self, number: int) -> Codebook:
        if not 0 <= number < self.books:
            raise EgretError(f"there is no codebook {number}")
        with self._lock:
            if number not in self._kept:
                data = self._books[self._book_ends[number] : self._book_ends[number + 1]]
                try:
                    book = Codebook.from_bytes(bytes(data))
                except FormatError as error:
                    raise FormatError(f"codebook {number}: {error}") from error
                if len(self._kept) == _KEPT_BOOKS:
                    del self._kept[next(iter(self._kept))]
                self._kept[number] = book
            return self._kept[number]

    def values(self, record: CodedRecord, first: int, last: int, threads: int) -> NDArray[np.int32]:
        book = self.book(record.book)
        lengths = record.chunk_bytes
        start = self._code_starts[record.name] + int(lengths[:first].sum())
        ends = [start, *(start + np.cumsum(lengths[first:last])).tolist()]
        _check_chunks(self._code, ends, record.crcs[first:last].tolist(), first, threads)
        values = np.empty(min(last * record.chunk, record.size) - first * record.chunk, np.int32)
        codec.decode(
            self._code[start : ends[-1]],
            record.bits[first:last],
            book,
            record.chunk,
            values,
            threads=threads,
            first=first,
        )
        return values


def _check_chunks(
    code: memoryview, ends: Sequence[int], crcs: Sequence[int], first: int, threads: int
) -> None:
    """Check the CRCs of chunks, number i from byte ends[i] to ends[i + 1]."""

    def check(numbers: range) -> None:
        for number in numbers:
            if crc32c(code[ends[number] : ends[number + 1]]) != crcs[number]:
                raise FormatError(f"chunk {first + number}: damaged: its CRC does not match")

    if threads <= 1 or len(crcs) <= 1:
        check(range(len(crcs)))
        return
    step = -(-len(crcs) // threads)
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(check, range(at, min(at + step, len(crcs))))
            for at in range(0, len(crcs), step)
        ]:
            done.result()


_LAYOUTS: dict[int, Callable[[memoryview, str], _Layout]] = {
    container_v1.VERSION: container_v1.Layout,
    CONTAINER_VERSION: _Version2,
}


class Container:
    """A container, open for reading.

    Opening it reads the header, the index and the codebooks. The tensors stay in the file until
    they are asked for; then their CRCs are checked, those of the chunks that are decoded. Several
    threads may read from one container.

    Parameters
    ----------
    path : str or Path
        A `.egret` file, of this version or an earlier one.
    data : bytes or memoryview of bytes, optional
        The file's bytes. Without them the file is mapped into memory.

    Attributes
    ----------
    path : Path
        The file.
    file_bytes, index_bytes, books_bytes : int
        Bytes of the whole file, of the index, and of the codebooks (in version 1 the value maps).

    Raises
    ------
    FormatError
        Not a container, truncated, of a version that this Egret does not read, or its index or
        codebooks are damaged.
    EgretError
        The file does not exist or cannot be read.
    """

    def __init__(self, path: str | Path, data: bytes | memoryview | None = None) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self._layout: _Layout | None = None
        if data is None:
            self._map = _map_file(path)
        self._data = memoryview((self._map or b"") if data is None else data)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        path = self.path
        self.file_bytes = len(self._data)
        self._entries = safetensors_file.parse_header(self._data, path, self.file_bytes)
        index = self._entries.get(INDEX_NAME)
        if index is None:
            raise FormatError(
                f"{path}: a safetensors file, but not an Egret container (`egret pack` makes one)"
            )
        content = self._data[index.start : index.stop]
        self.index_bytes = len(content)
        where = f"{path}: index"
        version = index_version(content, where)
        if version not in _LAYOUTS:
            raise FormatError(
                f"{where}: found format version {version}, this Egret reads versions "
                f"{' and '.join(map(str, _LAYOUTS))}"
            )
        layout = _LAYOUTS[version](content, where)
        self._records: dict[str, RawRecord | CodedRecord] = {}
        self._targets: dict[str, str] = {}
        for record in layout.records:
            if isinstance(record, AliasRecord):
                self._targets[record.name] = record.target
            else:
                self._targets[record.name] = record.name
                self._records[record.name] = record
        self._check_header(layout)
        own = {
            name: self._data[self._entries[name].start : self._entries[name].stop]
            for name in layout.own
        }
        self.books_bytes = len(own[layout.books_name])
        try:
            layout.attach(own)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
        self._layout = layout

    def _check_header(self, layout: _Layout) -> None:
        """Hold names, dtypes and shapes of the safetensors header against the index."""
        raw = {n: record for n, record in self._records.items() if isinstance(record, RawRecord)}
        for name in sorted({*raw, *layout.own} ^ set(self._entries)):
            state = "is not in the index" if name in self._entries else "is missing"
            raise FormatError(f"{self.path}: tensor {name!r} {state}")
        for name, entry in self._entries.items():
            if name in raw:
                expected = (raw[name].dtype, raw[name].shape)
            else:
                size = layout.own[name]
                expected = ("U8", (entry.stop - entry.start if size is None else size,))
            if (entry.dtype, entry.shape) != expected:
                raise FormatError(
                    f"{self.path}: tensor {name!r}: found {entry.dtype} of shape "
                    f"{list(entry.shape)}, expected {expected[0]} of shape {list(expected[1])}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What `raw` returned before stays valid."""
        self._layout = None
        self._data = memoryview(b"")
        if self._map is not None:
            # A raw tensor that is still in use keeps the file mapped until it is dropped.
            with suppress(BufferError):
                self._map.close()

    def _opened(self) -> _Layout:
        if self._layout is None:
            raise EgretError(f"{self.path}: this container has been closed")
        return self._layout

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, aliases too, ascending by their UTF-8 bytes."""
        return tuple(self._targets)

    @property
    def coded_names(self) -> tuple[str, ...]:
        """Names of the coded tensors without aliases, ascending."""
        return tuple(n for n, record in self._records.items() if isinstance(record, CodedRecord))

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors stored as they were, without aliases, ascending."""
        return tuple(n for n, record in self._records.items() if isinstance(record, RawRecord))

    @property
    def network(self) -> bytes | None:
        """Description of the network, None without one; `FormatError` when it is damaged."""
        return self._read_network()

    def _read_network(self) -> bytes | None:
        crc = self._opened().network_crc
        return None if crc is None else bytes(self._checked(NETWORK_NAME, crc, "network"))

    def _checked(self, name: str, crc: int, what: str) -> memoryview:
        """Return the bytes of a tensor of the safetensors file after a look at their CRC."""
        data = self._data[self._entries[name].start : self._entries[name].stop]
        if crc32c(data) != crc:
            raise FormatError(f"{self.path}: {what}: damaged: its CRC does not match")
        return data

    def target(self, name: str) -> str:
        """Return the name under which a tensor is stored, another one when it is an alias.

        Raises
        ------
        EgretError
            There is no tensor of this name.
        """
        if name not in self._targets:
            raise EgretError(f"{self.path}: there is no tensor {name!r}")
        return self._targets[name]

    def is_alias(self, name: str) -> bool:
        """Tell whether a tensor is stored under another name.

        Raises
        ------
        EgretError
            There is no tensor of this name.
        """
        return self.target(name) != name

    def record(self, name: str) -> CodedRecord | RawRecord:
        """Return what the index says of a tensor; of an alias what it says of the target.

        Raises
        ------
        EgretError
            There is no tensor of this name.
        """
        record = self._records[self.target(name)]
        return record if record.name == name else replace(record, name=name)

    def book(self, number: int) -> Codebook | container_v1.Book:
        """Return a codebook.

        Raises
        ------
        FormatError
            It breaks a rule of the format.
        EgretError
            There is no codebook of this number.
        """
        try:
            return self._opened().book(number)
        except EgretError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def quantized(
        self, name: str, *, rows: tuple[int, int] | None = None, threads: int = 1
    ) -> QuantizedTensor:
        """Decode a coded tensor, or some rows of it.

        Parameters
        ----------
        name : str
            Name of the tensor.
        rows : tuple of two int, optional
            First row, along the first axis, and the one after the last. Only the chunks that
            hold these are read and checked. All when absent.
        threads : int
            Threads that share the chunks.

        Returns
        -------
        QuantizedTensor
            What was written.

        Raises
        ------
        FormatError
            The chunks or the codebook are damaged, or do not fit the record; or a value is not
            one of the original dtype, an integer one.
        EgretError
            There is no coded tensor of this name, the rows are not in it, or it does not fit the
            memory.
        """
        self._opened()
        record = self._records[self.target(name)]
        where = f"{self.path}: tensor {name!r}"
        if not isinstance(record, CodedRecord):
            raise EgretError(f"{self.path}: there is no coded tensor {name!r}")
        shape, first, last = record.shape, 0, record.size
        if rows is not None:
            begin, end = rows
            if not shape or not 0 <= begin <= end <= shape[0]:
                raise EgretError(
                    f"{where}: found rows {begin} to {end}, expected some of a tensor of shape "
                    f"{list(shape)}"
                )
            row = math.prod(shape[1:])
            shape, first, last = (end - begin, *shape[1:]), begin * row, end * row
        values = self._elements(record, first, last, where, threads).reshape(shape)
        return QuantizedTensor(values, record.step_log2, record.dtype)

    def _elements(
        self, record: CodedRecord, first: int, last: int, where: str, threads: int
    ) -> NDArray[np.int32]:
        """Decode elements `first` to `last` - 1, in C order."""
        begin, end = first // record.chunk, -(-last // record.chunk)
        try:
            values = self._opened().values(record, begin, max(begin, end), threads)
            values = values[first - begin * record.chunk : last - begin * record.chunk]
            if record.dtype in INTEGER_DTYPES:
                _check_range(values, record.dtype)
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from error
        except MemoryError as error:
            raise EgretError(f"{where}: does not fit the memory: {error}") from error
        return values

    def raw(self, name: str) -> RawTensor:
        """Return a tensor that was stored as it was; its bytes lie in the file.

        Raises
        ------
        FormatError
            It is damaged.
        EgretError
            There is no such tensor of this name.
        """
        self._opened()
        record = self._records[self.target(name)]
        if not isinstance(record, RawRecord):
            raise EgretError(f"{self.path}: there is no raw tensor {name!r}")
        data = self._checked(record.name, record.crc, f"tensor {name!r}")
        return RawTensor(record.dtype, record.shape, data)

    def restored(
        self, name: str, *, rows: tuple[int, int] | None = None, threads: int = 1
    ) -> RawTensor:
        """Return any tensor, or some rows of a coded one, in its original dtype and shape.

        Parameters
        ----------
        name : str
            Name of the tensor.
        rows : tuple of two int, optional
            As in `quantized`; of a raw tensor all are returned.
        threads : int
            Threads that share the chunks of a coded one.

        Raises
        ------
        FormatError
            As from `quantized` and `raw`.
        EgretError
            There is no tensor of this name.
        """
        if isinstance(self._records[self.target(name)], RawRecord):
            return self.raw(name)
        tensor = self.quantized(name, rows=rows, threads=threads)
        if tensor.dtype in INTEGER_DTYPES:
            return RawTensor.from_array(tensor.values, tensor.dtype, copy=False)
        # A value of 24 bits times a power of two is exact in float32.
        kind = np.float64 if tensor.dtype == "F64" else np.float32
        weights = np.multiply(tensor.values, kind(math.ldexp(1.0, -tensor.step_log2)), dtype=kind)
        # Beyond the largest F16 number lies infinity.
        with np.errstate(over="ignore"):
            return RawTensor.from_array(weights, tensor.dtype, copy=False)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return every tensor as an array in its original dtype, BF16 as float32.

        Returns
        -------
        dict of str to ndarray
            Arrays by name, in the order of `names`. An alias and its target are one array.

        Raises
        ------
        FormatError
            As from `quantized` and `raw`, or NumPy has no type for the dtype of a raw tensor.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for name, target in self._targets.items():
            # Targets come before their aliases.
            arrays[name] = self._array(name) if name == target else arrays[target]
        return arrays

    def _array(self, name: str) -> NDArray[Any]:
        tensor = self.restored(name)
        try:
            array = tensor.array()
        except FormatError as error:
            raise FormatError(f"{self.path}: tensor {name!r}: {error}") from error
        # A view of the file cannot be written to.
        return array if array.flags.writeable else array.copy()

    def verify(self, *, threads: int = 1) -> None:
        """Read everything once, in memory for a few chunks: every CRC, codebook and codeword.

        Parameters
        ----------
        threads : int
            Threads that share the chunks of a tensor.

        Raises
        ------
        FormatError
            Something is damaged or breaks a rule of the format; the first such thing is named.
        """
        self._read_network()
        for record in self._records.values():
            if isinstance(record, RawRecord):
                self.raw(record.name)
                continue
            where = f"{self.path}: tensor {record.name!r}"
            step = _VERIFY_CHUNKS * record.chunk
            for first in range(0, max(1, record.size), step):
                self._elements(record, first, min(record.size, first + step), where, threads)
        # Some may serve no tensor.
        for number in range(self._opened().books):
            self.book(number)


def _check_range(values: NDArray[np.int32], dtype: str) -> None:
    if values.size == 0:
        return
    low, high = value_limits(dtype, 0, 32)
    for found in (int(values.min()), int(values.max())):
        if not low <= found <= high:
            raise FormatError(f"found value {found}, expected {low} to {high} in {dtype}")


def _map_file(path: str | Path) -> mmap.mmap | None:
    """Map a file into memory; None for an empty one, which cannot be mapped."""
    try:
        with Path(path).open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return None
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise EgretError(f"{path}: cannot read this file: {error.strerror}") from error
    except ValueError as error:
        raise EgretError(f"{path}: cannot read this file: {error}") from error


def read_container(path: str | Path) -> Container:
    """Open a container of any version that this Egret reads.

    Parameters
    ----------
    path : str or Path
        A `.egret` file.

    Returns
    -------
    Container
        Its tensors, to be read as they are asked for.

    Raises
    ------
    FormatError
        Not a container, truncated, of a version that this Egret does not read, or its index or
        codebooks are damaged.
    EgretError
        The file does not exist or cannot be read.
    """
    return Container(path)
