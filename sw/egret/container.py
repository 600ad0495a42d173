"""The container (`.egret`): packed weights inside a safetensors file.

Its layout is chapter 1 of docs/format.md; a test decodes files by a program written from that
chapter alone.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret import codec, safetensors_file
from egret.crc import crc32c
from egret.errors import EgretError, FormatError
from egret.params import MAX_ORDER
from egret.quantize import FLOAT_DTYPES, STEP_LOG2_RANGE, QuantizedTensor
from egret.safetensors_file import DTYPE_BYTES, RawTensor, check_shape, is_text
from egret.value_map import count_values, from_indices, to_indices

__all__ = [
    "CONTAINER_MAGIC",
    "CONTAINER_VERSION",
    "DTYPE_CODES",
    "INDEX_NAME",
    "CodedRecord",
    "Container",
    "RawRecord",
    "RawTensor",
    "read_container",
    "write_container",
]

CONTAINER_MAGIC = b"EGRT"
CONTAINER_VERSION = 1

RESERVED_PREFIX = "egret:"
"""Names of the container's own tensors start so; no user's tensor may."""
INDEX_NAME = RESERVED_PREFIX + "index"
CODE_NAME = RESERVED_PREFIX + "code"
MAPS_NAME = RESERVED_PREFIX + "maps"
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
_DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}

_KIND_RAW = 0
_KIND_CODED = 1
_FLAG_NETWORK = 1

# magic, version, flags, tensors, network bytes, network CRC
_HEAD = struct.Struct("<4sHHIII")
# kind, dtype, dimensions, name bytes
_RECORD = struct.Struct("<BBBH")
_SIZE = struct.Struct("<Q")
_CRC = struct.Struct("<I")
# step exponent, order, map width, map entries, code bits, map CRC
_CODED = struct.Struct("<bBBIQI")
_MAX_NAME_BYTES = 0xFFFF
_MAX_MAP_WIDTH = 32


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
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.size * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class CodedRecord:
    """What the index says of a coded tensor.

    Parameters
    ----------
    name : str
        Name of the tensor.
    dtype : str
        Dtype of the original tensor.
    shape : tuple of int
        Shape.
    crc : int
        CRC-32C of its codewords' bytes.
    step_log2 : int
        n of the step 2^-n.
    order : int
        k of the exp-Golomb code.
    map_width : int
        Bits of an entry of the value map, two's complement.
    map_entries : int
        Entries of the value map: the number of distinct values.
    code_bits : int
        Bits of the codewords alone.
    map_crc : int
        CRC-32C of the value map's bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    crc: int
    step_log2: int
    order: int
    map_width: int
    map_entries: int
    code_bits: int
    map_crc: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def code_bytes(self) -> int:
        """Bytes of the codewords, the last one filled up."""
        return (self.code_bits + 7) // 8

    @property
    def map_bytes(self) -> int:
        """Bytes of the value map, the last one filled up."""
        return (self.map_entries * self.map_width + 7) // 8


def _pack_map(table: NDArray[np.int32]) -> tuple[bytes, int]:
    """Write a value map with as few bits for each entry as hold them all."""
    ends = (int(table.min()), int(table.max())) if table.size else (0, 0)
    width = 1 + max((value if value >= 0 else ~value).bit_length() for value in ends)
    bits = np.unpackbits(table.astype(">i4").view(np.uint8)).reshape(-1, 32)
    return np.packbits(bits[:, 32 - width :]).tobytes(), width


def _unpack_map(data: memoryview, entries: int, width: int) -> NDArray[np.int32]:
    stored = np.unpackbits(np.frombuffer(data, np.uint8))
    if stored[entries * width :].any():
        raise FormatError("the value map is not filled up with zero bits")
    bits = stored[: entries * width].reshape(entries, width)
    signs = np.repeat(bits[:, :1], 32 - width, axis=1)
    table = np.packbits(np.concatenate((signs, bits), axis=1)).view(">i4").astype(np.int32)
    if np.unique(table).size != entries:
        raise FormatError("a value occurs twice in the value map")
    return table


def _check_name(name: str, path: str | Path) -> bytes:
    if not is_text(name) or len(name.encode()) > _MAX_NAME_BYTES or name == "__metadata__":
        raise EgretError(f"{path}: tensor {name[:80]!r}: a container cannot hold this name")
    if name.startswith(RESERVED_PREFIX):
        raise EgretError(
            f"{path}: tensor {name!r}: names that start with {RESERVED_PREFIX!r} are reserved"
        )
    return name.encode()


def write_container(
    path: str | Path,
    coded: Mapping[str, QuantizedTensor],
    raw: Mapping[str, RawTensor],
    *,
    network: bytes | None = None,
    order: int | None = None,
) -> None:
    """Write a container; equal arguments give equal bytes.

    Parameters
    ----------
    path : str or Path
        File to write.
    coded : Mapping of str to QuantizedTensor
        Tensors to code. Each is asked for once, so that the mapping may make them as needed.
    raw : Mapping of str to RawTensor
        Tensors to store as they are.
    network : bytes, optional
        Description of the network that the tensors belong to, stored as it is.
    order : int, optional
        k of the exp-Golomb code, 0 to `egret.params.MAX_ORDER`; the one with the fewest bits
        for each tensor when absent.

    Raises
    ------
    EgretError
        The file cannot be written; a name is reserved, too long or given twice; the order is
        out of range; a tensor's shape is too large.
    """
    both = sorted(set(coded) & set(raw))
    if both:
        raise EgretError(f"{path}: tensor {both[0]!r} is given both coded and raw")
    names = sorted((_check_name(name, path), name) for name in (*coded, *raw))
    blob = network or b""
    index = bytearray(
        _HEAD.pack(
            CONTAINER_MAGIC,
            CONTAINER_VERSION,
            _FLAG_NETWORK if network is not None else 0,
            len(names),
            len(blob),
            crc32c(blob),
        )
    )
    codes = []
    maps = []
    for text, name in names:
        tensor = coded[name] if name in coded else raw[name]
        check_shape(tensor.shape, f"{path}: tensor {name!r}")
        index += _RECORD.pack(
            _KIND_CODED if name in coded else _KIND_RAW,
            DTYPE_CODES[tensor.dtype],
            len(tensor.shape),
            len(text),
        )
        index += text
        for size in tensor.shape:
            index += _SIZE.pack(size)
        if isinstance(tensor, RawTensor):
            index += _CRC.pack(crc32c(tensor.data))
            continue
        table, counts = count_values(tensor.values)
        chosen = codec.best_order(counts)[0] if order is None else order
        code, bits = codec.encode(to_indices(tensor.values, table), chosen)
        packed, width = _pack_map(table)
        index += _CRC.pack(crc32c(code))
        index += _CODED.pack(tensor.step_log2, chosen, width, table.size, bits, crc32c(packed))
        codes.append(code.tobytes())
        maps.append(packed)
    index += _CRC.pack(crc32c(index))
    own = {INDEX_NAME: bytes(index), CODE_NAME: b"".join(codes), MAPS_NAME: b"".join(maps)}
    if network is not None:
        own[NETWORK_NAME] = blob
    tensors = {name: RawTensor("U8", (len(data),), data) for name, data in own.items()}
    safetensors_file.write(path, {**raw, **tensors})


class _Reader:
    """Takes fields off the index; `FormatError` where it ends too soon."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._place = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._place : self._place + count]
        if len(taken) != count:
            raise FormatError(f"{self._where}: ends within a record")
        self._place += count
        return taken

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def at_end(self) -> bool:
        return self._place == len(self._data)


def _parse_index(
    data: bytes, path: str | Path
) -> tuple[list[RawRecord | CodedRecord], tuple[int, int] | None]:
    """Return the records, and bytes and CRC of the network when there is one."""
    where = f"{path}: index"
    reader = _Reader(data[: -_CRC.size], where)
    magic, version, flags, count, network_bytes, network_crc = reader.fields(_HEAD)
    if magic != CONTAINER_MAGIC:
        raise FormatError(f"{where}: found magic {magic!r}, expected {CONTAINER_MAGIC!r}")
    if version != CONTAINER_VERSION:
        raise FormatError(
            f"{where}: found format version {version}, this Egret reads version {CONTAINER_VERSION}"
        )
    if crc32c(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise FormatError(f"{where}: damaged: its CRC does not match")
    if flags & ~_FLAG_NETWORK or (not flags and (network_bytes or network_crc)):
        raise FormatError(f"{where}: found flags {flags:#06x} that this Egret does not know")
    records: list[RawRecord | CodedRecord] = []
    previous = b""
    for number in range(count):
        kind, code, dimensions, length = reader.fields(_RECORD)
        text = reader.take(length)
        if records and text <= previous:
            raise FormatError(f"{where}: record {number}: names are not in ascending order")
        previous = text
        try:
            name = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{where}: record {number}: the name is not UTF-8") from error
        place = f"{where}: tensor {name!r}"
        if name.startswith(RESERVED_PREFIX):
            raise FormatError(f"{place}: the name is reserved")
        if code not in _DTYPE_NAMES:
            raise FormatError(f"{place}: found dtype number {code}")
        dtype = _DTYPE_NAMES[code]
        shape = tuple(reader.fields(_SIZE)[0] for _ in range(dimensions))
        check_shape(shape, place)
        (crc,) = reader.fields(_CRC)
        if kind == _KIND_RAW:
            records.append(RawRecord(name, dtype, shape, crc))
        elif kind == _KIND_CODED:
            record = CodedRecord(name, dtype, shape, crc, *reader.fields(_CODED))
            _check_coded(record, place)
            records.append(record)
        else:
            raise FormatError(f"{place}: found kind {kind}, expected {_KIND_RAW} or {_KIND_CODED}")
    if not reader.at_end():
        raise FormatError(f"{where}: goes on after its last record")
    return records, (network_bytes, network_crc) if flags else None


def _check_coded(record: CodedRecord, where: str) -> None:
    low, high = STEP_LOG2_RANGE
    checks = (
        ("dtype", record.dtype, record.dtype in FLOAT_DTYPES, "a floating type"),
        ("step exponent", record.step_log2, low <= record.step_log2 <= high, f"{low} to {high}"),
        ("order", record.order, record.order <= MAX_ORDER, f"0 to {MAX_ORDER}"),
        (
            "map width",
            record.map_width,
            1 <= record.map_width <= _MAX_MAP_WIDTH,
            f"1 to {_MAX_MAP_WIDTH}",
        ),
        (
            "map entries",
            record.map_entries,
            min(1, record.size) <= record.map_entries <= record.size,
            f"at most the {record.size} weights",
        ),
        (
            "code bits",
            record.code_bits,
            record.size * (record.order + 1) <= record.code_bits
            and (record.size > 0 or record.code_bits == 0),
            f"at least {record.order + 1} for each of {record.size} weights",
        ),
    )
    for field, found, ok, expected in checks:
        if not ok:
            raise FormatError(f"{where}: found {field} {found}, expected {expected}")


class Container:
    """A container that has been read and whose CRCs were right; made by `read_container`.

    Coded tensors are decoded when they are asked for.

    Parameters
    ----------
    path : str or Path
        Name of the file, for error messages.
    data : bytes
        The whole file.

    Raises
    ------
    FormatError
        Not a container, truncated, damaged, or of a version that this Egret does not read.
    """

    def __init__(self, path: str | Path, data: bytes) -> None:
        self.path = Path(path)
        self.file_bytes = len(data)
        tensors = safetensors_file.parse(data, path)
        if INDEX_NAME not in tensors:
            raise FormatError(
                f"{path}: a safetensors file, but not an Egret container (`egret pack` makes one)"
            )
        self.index_bytes = len(tensors[INDEX_NAME].data)
        if self.index_bytes < _HEAD.size + _CRC.size:
            raise FormatError(f"{path}: index: found {self.index_bytes} bytes, too few")
        records, network = _parse_index(bytes(tensors[INDEX_NAME].data), path)
        self._records = {record.name: record for record in records}
        coded = [record for record in records if isinstance(record, CodedRecord)]
        own = {
            INDEX_NAME: self.index_bytes,
            CODE_NAME: sum(record.code_bytes for record in coded),
            MAPS_NAME: sum(record.map_bytes for record in coded),
        }
        if network is not None:
            own[NETWORK_NAME] = network[0]
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            name: ("U8", (count,)) for name, count in own.items()
        }
        for record in records:
            if isinstance(record, RawRecord):
                expected[record.name] = (record.dtype, record.shape)
        for name in sorted(set(expected) ^ set(tensors)):
            state = "is missing" if name in expected else "is not in the index"
            raise FormatError(f"{path}: tensor {name!r} {state}")
        for name, entry in expected.items():
            found = (tensors[name].dtype, tensors[name].shape)
            if found != entry:
                raise FormatError(
                    f"{path}: tensor {name!r}: found {found[0]} of shape {list(found[1])}, "
                    f"expected {entry[0]} of shape {list(entry[1])}"
                )

        self.network: bytes | None = None
        if network is not None:
            self.network = bytes(tensors[NETWORK_NAME].data)
            self._check_crc(self.network, network[1], "network")
        self._codes: dict[str, memoryview] = {}
        self._maps: dict[str, memoryview] = {}
        codes, maps = memoryview(tensors[CODE_NAME].data), memoryview(tensors[MAPS_NAME].data)
        for record in coded:
            where = f"tensor {record.name!r}"
            self._codes[record.name] = codes[: record.code_bytes]
            self._maps[record.name] = maps[: record.map_bytes]
            codes, maps = codes[record.code_bytes :], maps[record.map_bytes :]
            self._check_crc(self._codes[record.name], record.crc, f"{where}: code")
            self._check_crc(self._maps[record.name], record.map_crc, f"{where}: value map")
        self._raw = {}
        for record in records:
            if isinstance(record, RawRecord):
                self._check_crc(tensors[record.name].data, record.crc, f"tensor {record.name!r}")
                self._raw[record.name] = tensors[record.name]

    def _check_crc(self, data: bytes | memoryview, crc: int, what: str) -> None:
        if crc32c(data) != crc:
            raise FormatError(f"{self.path}: {what}: damaged: its CRC does not match")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, ascending by their UTF-8 bytes."""
        return tuple(self._records)

    @property
    def coded_names(self) -> tuple[str, ...]:
        """Names of the coded tensors, ascending."""
        return tuple(self._codes)

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors stored as they were, ascending."""
        return tuple(self._raw)

    @property
    def coded_records(self) -> tuple[CodedRecord, ...]:
        """Records of the coded tensors, ascending by name."""
        return tuple(self.record(name) for name in self._codes)

    def record(self, name: str) -> CodedRecord:
        """Return what the index says of a coded tensor.

        Raises
        ------
        EgretError
            There is no coded tensor of this name.
        """
        record = self._records.get(name)
        if not isinstance(record, CodedRecord):
            raise EgretError(f"{self.path}: there is no coded tensor {name!r}")
        return record

    def quantized(self, name: str) -> QuantizedTensor:
        """Decode a coded tensor.

        Parameters
        ----------
        name : str
            Name of the tensor.

        Returns
        -------
        QuantizedTensor
            Equal to the one that was written.

        Raises
        ------
        FormatError
            The codewords or the map do not fit the record, although their CRCs are right.
        EgretError
            There is no coded tensor of this name.
        """
        record = self.record(name)
        code = self._codes[name]
        try:
            table = _unpack_map(self._maps[name], record.map_entries, record.map_width)
            if record.code_bits % 8 and code[-1] & (0xFF >> record.code_bits % 8):
                raise FormatError("the code is not filled up with zero bits")
            largest = max(0, record.map_entries - 1) + (1 << record.order)
            indices = codec.decode(
                code,
                record.size,
                record.order,
                suffix_limit=min(largest.bit_length() - 1, codec.MAX_SUFFIX_BITS),
                bits=record.code_bits,
            )
            values = from_indices(indices, table).reshape(record.shape)
        except FormatError as error:
            raise FormatError(f"{self.path}: tensor {name!r}: {error}") from error
        return QuantizedTensor(values, record.step_log2, record.dtype)

    def raw(self, name: str) -> RawTensor:
        """Return a tensor that was stored as it was.

        Raises
        ------
        EgretError
            There is no such tensor of this name.
        """
        if name not in self._raw:
            raise EgretError(f"{self.path}: there is no raw tensor {name!r}")
        return self._raw[name]

    def restored(self, name: str) -> RawTensor:
        """Return any tensor in its original dtype and shape.

        Raises
        ------
        FormatError
            As from `quantized`.
        EgretError
            There is no tensor of this name.
        """
        if name not in self._codes:
            return self.raw(name)
        tensor = self.quantized(name)
        weights = np.ldexp(tensor.values.astype(np.float64), -tensor.step_log2)
        return RawTensor.from_array(weights, tensor.dtype)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return every tensor as an array in its original dtype, BF16 as float32.

        Returns
        -------
        dict of str to ndarray
            Arrays by name, in the order of `names`.

        Raises
        ------
        FormatError
            As from `quantized`, or NumPy has no type for the dtype of a raw tensor.
        """
        return dict(self._arrays())

    def _arrays(self) -> Iterable[tuple[str, NDArray[Any]]]:
        for name in self.names:
            try:
                array = self.restored(name).array()
            except FormatError as error:
                if name in self._codes:
                    raise
                raise FormatError(f"{self.path}: tensor {name!r}: {error}") from error
            # A copy: views of the file's bytes cannot be written to.
            yield name, array.copy()


def read_container(path: str | Path) -> Container:
    """Read a container and check every CRC in it.

    Parameters
    ----------
    path : str or Path
        A `.egret` file.

    Returns
    -------
    Container
        Its tensors.

    Raises
    ------
    FormatError
        Not a container, truncated, damaged, or of a version that this Egret does not read.
    EgretError
        The file does not exist or cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EgretError(f"{path}: cannot read this file: {error.strerror}") from error
    return Container(path, data)
