"""A complete reader of the container, version 2, written from chapter 1 of docs/format.md alone.

It is slow and plain, shares no code with Egret, and refuses everything that the chapter refuses.
Tests hold Egret's reader and writer against it.
"""

import json
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "U8",
    "I16",
    "U16",
    "I32",
    "U32",
    "I64",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
]
ELEMENT_BYTES = dict(zip(DTYPES, (4, 2, 2, 8, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 1, 8), strict=True))
INTEGER_RANGES = {
    "I8": (-(2**7), 2**7 - 1),
    "U8": (0, 2**8 - 1),
    "I16": (-(2**15), 2**15 - 1),
    "U16": (0, 2**16 - 1),
    "I32": (-(2**31), 2**31 - 1),
}
CODED_DTYPES = DTYPES[:9]
RAW, CODED, ALIAS = 0, 1, 2
ZIGZAG_MAP, SET_MAP, RANKED_MAP = 0, 1, 2


class BadFile(Exception):
    """The file is one that a reader refuses."""


class TooLarge(Exception):
    """The file has more elements than the caller wants to wait for."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: `data` when it is raw, else `values` and `step`."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | None = None
    values: list[int] | None = None
    step: int | None = None

    def restored(self) -> bytes:
        """Return the elements in the original dtype, little-endian."""
        if self.values is None:
            assert self.data is not None
            return self.data
        assert self.step is not None
        if self.dtype in INTEGER_RANGES:
            size = ELEMENT_BYTES[self.dtype]
            signed = INTEGER_RANGES[self.dtype][0] < 0
            return b"".join(v.to_bytes(size, "little", signed=signed) for v in self.values)
        return b"".join(
            _nearest_float(Fraction(v) / Fraction(2) ** self.step, self.dtype) for v in self.values
        )


# Stored fraction bits, least exponent of a normal number, largest exponent.
_FLOATS = {
    "F16": (10, -14, 15),
    "BF16": (7, -126, 127),
    "F32": (23, -126, 127),
    "F64": (52, -1022, 1023),
}


def _nearest_float(number: Fraction, dtype: str) -> bytes:
    """Round to the nearest, ties to even, beyond the largest to infinity."""
    fraction_bits, least, largest = _FLOATS[dtype]
    sign, magnitude = number < 0, abs(number)
    exponent = least
    if magnitude:
        # Not above the number's own exponent, and at most one below it.
        bits = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        exponent = max(least, bits - 1)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    # Units of the last place; Python rounds a Fraction to the nearest, ties to even. A carry
    # into the next exponent comes out right, because the fields follow each other.
    units = round(magnitude / Fraction(2) ** (exponent - fraction_bits))
    field = units + ((exponent - least) << fraction_bits)
    infinity = (largest - least + 2) << fraction_bits
    word = min(field, infinity) | sign << (8 * ELEMENT_BYTES[dtype] - 1)
    return word.to_bytes(ELEMENT_BYTES[dtype], "little")


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            # 0x1EDC6F41 with its bits in the other order.
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


# ---------------------------------------------------------------------------- safetensors


@dataclass(frozen=True)
class Stored:
    """A tensor of the safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise BadFile("the safetensors header has a key twice")
    return dict(pairs)


def _no_constant(text: str) -> None:
    raise BadFile(f"the safetensors header has {text}")


def _sizes(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise BadFile(f"the safetensors header has {value!r} for sizes")
    return value


def read_safetensors(file: bytes) -> dict[str, Stored]:
    """Take a safetensors file apart."""
    if len(file) < 8:
        raise BadFile("no header length")
    (length,) = struct.unpack("<Q", file[:8])
    if length > 100_000_000 or 8 + length > len(file):
        raise BadFile(f"a header of {length} bytes")
    header_bytes, data = file[8 : 8 + length], file[8 + length :]
    if not header_bytes.startswith(b"{"):
        raise BadFile("the header is no JSON object")
    try:
        header = json.loads(
            header_bytes.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise BadFile(f"the header is no JSON: {error}") from None
    header.pop("__metadata__", None)
    places = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BadFile(f"header entry of {name!r}")
        dtype, shape, offsets = entry["dtype"], _sizes(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPES:
            raise BadFile(f"dtype {dtype!r} of {name!r}")
        if len(_sizes(offsets)) != 2 or offsets[0] > offsets[1]:
            raise BadFile(f"offsets {offsets} of {name!r}")
        if offsets[1] - offsets[0] != _elements(shape) * ELEMENT_BYTES[dtype]:
            raise BadFile(f"{name!r} has another size than its dtype and shape")
        places.append((offsets[0], offsets[1], name))
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            raise BadFile(f"{name!r} does not start where another ends")
        end = stop
    if end != len(data):
        raise BadFile("the tensors do not end where the file does")
    return {
        name: Stored(header[name]["dtype"], tuple(header[name]["shape"]), data[start:stop])
        for start, stop, name in places
    }


def _elements(shape: list[int] | tuple[int, ...]) -> int:
    """Return the number of elements of a shape within the limits."""
    if len(shape) > 32:
        raise BadFile(f"{len(shape)} axes")
    size = bounded = 1
    for axis in shape:
        size *= axis
        bounded *= max(axis, 1)
        if bounded > 2**59:
            raise BadFile(f"shape {shape} is too large")
    return size


# ---------------------------------------------------------------------------- codewords


class Bits:
    """A string of bits, read from its start."""

    def __init__(self, data: bytes, count: int | None = None) -> None:
        text = "".join(f"{byte:08b}" for byte in data)
        self.text = text if count is None else text[:count]
        self.filling = "" if count is None else text[count:]
        self.at = 0

    def number(self, count: int) -> int:
        """Take a number of so many bits."""
        if self.at + count > len(self.text):
            raise BadFile("the bits end too early")
        piece = self.text[self.at : self.at + count]
        self.at += count
        return int(piece, 2) if piece else 0


@dataclass(frozen=True)
class Code:
    """Suffix bits of each class. In a table the last class has no one bit."""

    suffix_bits: tuple[int, ...]
    is_table: bool

    @property
    def symbols(self) -> int:
        """Number of symbols."""
        return sum(2**bits for bits in self.suffix_bits)


def exp_golomb(k: int) -> Code:
    """Return the exp-Golomb code of order k."""
    return Code(tuple(range(k, 29)), False)


def read_symbol(bits: Bits, code: Code) -> int:
    """Take one codeword; return its symbol."""
    base = 0
    last = len(code.suffix_bits) - 1
    for number, suffix_bits in enumerate(code.suffix_bits):
        if (code.is_table and number == last) or bits.number(1):
            return base + bits.number(suffix_bits)
        base += 2**suffix_bits
    raise BadFile("more zeros than the code has classes")


def unzigzag(number: int) -> int:
    """Return the value whose zigzag this is."""
    return -(number + 1) // 2 if number % 2 else number // 2


def read_table(bits: Bits) -> Code:
    """Take a table."""
    classes = read_symbol(bits, exp_golomb(0)) + 1
    if classes > 16:
        raise BadFile(f"a table of {classes} classes")
    suffix_bits = [read_symbol(bits, exp_golomb(0))]
    for _ in range(classes - 1):
        suffix_bits.append(suffix_bits[-1] + unzigzag(read_symbol(bits, exp_golomb(0))))
    if not all(0 <= count <= 24 for count in suffix_bits):
        raise BadFile(f"a table with suffix bits {suffix_bits}")
    return Code(tuple(suffix_bits), True)


# ---------------------------------------------------------------------------- codebooks


@dataclass(frozen=True)
class Book:
    """A codebook. `numbers` are those of the indices, None for the zigzag map."""

    run: Code | None
    level: Code
    map_kind: int
    numbers: list[int] | None

    def value(self, index: int) -> int:
        """Return the value of an index."""
        if self.numbers is None:
            number = index
        elif index < len(self.numbers):
            number = self.numbers[index]
        else:
            raise BadFile(f"index {index} of {len(self.numbers)}")
        value = unzigzag(number if self.run is None else number + 1)
        if not -(2**23) <= value < 2**23:
            raise BadFile(f"index {index} stands for no value")
        return value


def read_book(data: bytes) -> Book:
    """Read a codebook that takes exactly these bytes."""
    bits = Bits(data)
    code = bits.number(2)

    def read_code() -> Code:
        return exp_golomb(bits.number(3)) if code < 2 else read_table(bits)

    level = read_code()
    run = read_code() if code in (1, 3) else None
    map_kind = bits.number(2)
    numbers = None
    if map_kind in (SET_MAP, RANKED_MAP):
        # The zigzags of the values, less one where 0 has none.
        numbers = _read_set(bits, 2**24 if run is None else 2**24 - 1)
        if len(numbers) > level.symbols:
            raise BadFile("the set has more members than the level code has symbols")
        if map_kind == RANKED_MAP:
            numbers = _deal(bits, numbers, level)
    elif map_kind != ZIGZAG_MAP:
        raise BadFile(f"map {map_kind}")
    rest = bits.text[bits.at :]
    if len(rest) >= 8 or "1" in rest:
        raise BadFile("the codebook does not end with its bytes")
    return Book(run, level, map_kind, numbers)


def _read_pair(bits: Bits, skip: Code, take: Code, first: bool) -> tuple[int, int]:
    skipped = read_symbol(bits, skip) + (0 if first else 1)
    return skipped, read_symbol(bits, take) + 1


def _read_set(bits: Bits, numbers: int) -> list[int]:
    skip, take = exp_golomb(bits.number(3)), exp_golomb(bits.number(3))
    members: list[int] = []
    at = 0
    for pair in range(read_symbol(bits, exp_golomb(0))):
        skipped, taken = _read_pair(bits, skip, take, pair == 0)
        at += skipped
        if at + taken > numbers or len(members) + taken > 2**20:
            raise BadFile("the set is too large")
        members.extend(range(at, at + taken))
        at += taken
    return members


def _deal(bits: Bits, left: list[int], level: Code) -> list[int]:
    """Order the members of a set by the classes that they are dealt to."""
    skip, take = exp_golomb(bits.number(3)), exp_golomb(bits.number(3))
    dealt: list[int] = []
    for suffix_bits in level.suffix_bits:
        if 2**suffix_bits >= len(left):
            return dealt + left
        chosen: list[int] = []
        others: list[int] = []
        at = 0
        while len(chosen) < 2**suffix_bits:
            skipped, taken = _read_pair(bits, skip, take, at == 0)
            if at + skipped + taken > len(left) or len(chosen) + taken > 2**suffix_bits:
                raise BadFile("a class takes more members than there are")
            others += left[at : at + skipped]
            chosen += left[at + skipped : at + skipped + taken]
            at += skipped + taken
        left = others + left[at:]
        dealt += chosen
    raise BadFile("the set has more members than the level code has symbols")


def read_chunk(data: bytes, count: int, book: Book, elements: int) -> list[int]:
    """Decode a chunk of so many elements from so many bits."""
    bits = Bits(data, count)
    if "1" in bits.filling:
        raise BadFile("filling bits of a chunk are not zero")
    values: list[int] = []
    while len(values) < elements:
        if book.run is not None:
            zeros = read_symbol(bits, book.run)
            if zeros > elements - len(values):
                raise BadFile("a run goes beyond its chunk")
            values += [0] * zeros
            if len(values) == elements:
                break
        values.append(book.value(read_symbol(bits, book.level)))
    if bits.at != len(bits.text):
        raise BadFile("a chunk has more bits than its codewords")
    return values


# ---------------------------------------------------------------------------- the file


class Fields:
    """The fields of the index, read from its start."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """Take so many bytes."""
        if self.at + count > len(self.data):
            raise BadFile("the index ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int, signed: bool = False) -> int:
        """Take a number of so many bytes."""
        return int.from_bytes(self.take(count), "little", signed=signed)

    def varint(self) -> int:
        """Take a varint."""
        value = 0
        for group in range(9):
            byte = self.number(1)
            value |= (byte & 0x7F) << (7 * group)
            if byte < 0x80:
                if byte == 0 and group > 0:
                    raise BadFile("a varint is longer than it needs to be")
                return value
        raise BadFile("a varint of 2^63 or more")


@dataclass(frozen=True)
class Coded:
    """The fields of a coded record."""

    dtype: str
    shape: tuple[int, ...]
    step: int
    book: int
    chunk: int
    bits: list[int]
    crcs: list[int]


Record = Stored | Coded | str
"""Of a tensor's name: a raw tensor, a coded one, or the name of the one it is tied to."""


def read(file: bytes, max_elements: int = 10**7) -> dict[str, Tensor]:
    """Read a whole container.

    Raises `BadFile` when a reader refuses it, `TooLarge` when its coded tensors have more than
    `max_elements` elements.
    """
    stored = read_safetensors(file)
    own = {name: tensor for name, tensor in stored.items() if name.startswith("egret:")}
    for name, tensor in own.items():
        if tensor.dtype != "U8" or len(tensor.shape) != 1:
            raise BadFile(f"{name} is {tensor.dtype} of shape {tensor.shape}")
    if not {"egret:index", "egret:books", "egret:code"} <= set(own):
        raise BadFile("a tensor of the container is missing")
    index = own["egret:index"].data
    if index[:4] != b"EGRT" or index[4:6] != b"\2\0":
        raise BadFile(f"magic and version {index[:6]!r}")
    if len(index) < 28 or crc32c(index[:-4]) != int.from_bytes(index[-4:], "little"):
        raise BadFile("CRC of the index")
    fields = Fields(index[:-4])
    fields.take(6)
    flags = fields.number(2)
    tensors, book_count = fields.number(4), fields.number(4)
    books_crc, network_crc = fields.number(4), fields.number(4)
    if flags > 1:
        raise BadFile(f"flags {flags:#x}")
    expected = {"egret:index", "egret:books", "egret:code"}
    if flags:
        expected.add("egret:network")
    if set(own) != expected:
        raise BadFile(f"found {sorted(own)}, expected {sorted(expected)}")
    network = own["egret:network"].data if flags else b""
    if crc32c(network) != network_crc:
        raise BadFile("CRC of the network")
    books = _read_books(fields, book_count, own["egret:books"].data, books_crc)
    records = _read_records(fields, tensors, book_count, stored, max_elements)
    if fields.at != len(fields.data):
        raise BadFile("the index goes on after its records")
    raw = {name for name, record in records.items() if isinstance(record, Stored)}
    if raw != set(stored) - set(own):
        raise BadFile("the safetensors header has other tensors than the index")
    code = own["egret:code"].data
    result: dict[str, Tensor] = {}
    at = 0
    for name, record in records.items():
        if isinstance(record, str):
            result[name] = result[record]
        elif isinstance(record, Stored):
            result[name] = Tensor(record.dtype, record.shape, data=record.data)
        else:
            result[name], at = _read_code(record, books[record.book], code, at)
    if at != len(code):
        raise BadFile("the code goes on after the last chunk")
    return result


def _read_books(fields: Fields, count: int, data: bytes, crc: int) -> list[Book]:
    sizes = [fields.varint() for _ in _counted(count, fields)]
    if sum(sizes) != len(data):
        raise BadFile("the codebooks take another number of bytes than they have")
    if crc32c(data) != crc:
        raise BadFile("CRC of the codebooks")
    books = []
    at = 0
    for size in sizes:
        books.append(read_book(data[at : at + size]))
        at += size
    return books


def _counted(count: int, fields: Fields) -> range:
    """Return a range of a number of things, each of which takes a byte or more of the index."""
    if count > len(fields.data) - fields.at:
        raise BadFile("the index ends early")
    return range(count)


def _read_records(
    fields: Fields, count: int, books: int, stored: dict[str, Stored], max_elements: int
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    names: list[str] = []
    previous = b""
    elements = name_bytes = 0
    for number in _counted(count, fields):
        kind = fields.number(1)
        shared = fields.varint()
        more = fields.varint()
        if shared > len(previous) or shared + more > 65535:
            raise BadFile("the lengths of a name")
        encoded = previous[:shared] + fields.take(more)
        if number > 0 and encoded <= previous:
            raise BadFile("the names do not ascend")
        previous = encoded
        name_bytes += len(encoded)
        if name_bytes > 2**26:
            raise BadFile("the names are too long together")
        try:
            name = encoded.decode("utf-8")
        except UnicodeDecodeError:
            raise BadFile(f"the name {encoded!r} is no UTF-8") from None
        if name.startswith("egret:") or name == "__metadata__":
            raise BadFile(f"a tensor has the name {name!r}")
        if kind == ALIAS:
            target = fields.varint()
            if target >= number or isinstance(records[names[target]], str):
                raise BadFile(f"{name!r} is tied to record {target}")
            records[name] = names[target]
        elif kind in (RAW, CODED):
            dtype_number = fields.number(1)
            if dtype_number >= len(DTYPES):
                raise BadFile(f"dtype {dtype_number}")
            dtype = DTYPES[dtype_number]
            axes = fields.number(1)
            if axes > 32:
                raise BadFile(f"{axes} axes")
            shape = tuple(fields.varint() for _ in range(axes))
            size = _elements(shape)
            if kind == RAW:
                records[name] = _check_raw(stored, name, dtype, shape, fields.number(4))
            else:
                records[name] = _read_coded(fields, dtype, shape, size, books)
                elements += size
        else:
            raise BadFile(f"kind {kind}")
        names.append(name)
    if elements > max_elements:
        raise TooLarge(f"{elements} elements")
    return records


def _check_raw(
    stored: dict[str, Stored], name: str, dtype: str, shape: tuple[int, ...], crc: int
) -> Stored:
    tensor = stored.get(name)
    if tensor is None or (tensor.dtype, tensor.shape) != (dtype, shape):
        raise BadFile(f"the safetensors header differs from the index in {name!r}")
    if crc32c(tensor.data) != crc:
        raise BadFile(f"CRC of {name!r}")
    return tensor


def _read_coded(fields: Fields, dtype: str, shape: tuple[int, ...], size: int, books: int) -> Coded:
    step = fields.number(1, signed=True)
    book = fields.varint()
    chunk = fields.varint()
    if dtype not in CODED_DTYPES:
        raise BadFile(f"coded {dtype}")
    if abs(step) > 64 or (dtype in INTEGER_RANGES and step != 0):
        raise BadFile(f"step {step} of {dtype}")
    if book >= books:
        raise BadFile(f"codebook {book} of {books}")
    if not 1 <= chunk <= 65536:
        raise BadFile(f"chunks of {chunk}")
    chunks = -(-size // chunk)
    if 8 * chunks > len(fields.data) - fields.at:
        raise BadFile("the index ends early")
    bits = [fields.number(4) for _ in range(chunks)]
    crcs = [fields.number(4) for _ in range(chunks)]
    return Coded(dtype, shape, step, book, chunk, bits, crcs)


def _read_code(record: Coded, book: Book, code: bytes, at: int) -> tuple[Tensor, int]:
    """Decode a tensor whose code starts at a byte; return it and where the code ends."""
    values: list[int] = []
    left = _elements(record.shape)
    for bits, crc in zip(record.bits, record.crcs, strict=True):
        data = code[at : at + -(-bits // 8)]
        if len(data) != -(-bits // 8):
            raise BadFile("the code ends early")
        if crc32c(data) != crc:
            raise BadFile("CRC of a chunk")
        values += read_chunk(data, bits, book, min(record.chunk, left))
        left -= min(record.chunk, left)
        at += len(data)
    low, high = INTEGER_RANGES.get(record.dtype, (-(2**23), 2**23 - 1))
    if not all(low <= value <= high for value in values):
        raise BadFile(f"a value that {record.dtype} does not hold")
    return Tensor(record.dtype, record.shape, values=values, step=record.step), at
