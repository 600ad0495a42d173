"""Containers made by hand from chapter 1 of docs/format.md, bit by bit.

They hold what Egret's writer would never make, valid or not, and share no code with it. Bits are
strings of "0" and "1"; spaces in them are ignored.
"""

import itertools
import json
import random
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import crc32c
from tests.independent_decoder import CODED_DTYPES, DTYPES, ELEMENT_BYTES, INTEGER_RANGES, Tensor

MAX_VALUE = 2**23 - 1


def pack_bits(text: str) -> bytes:
    """Bits to bytes, filled up with zeros."""
    text = text.replace(" ", "")
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def listed_bytes(document: str) -> bytes:
    """The bytes of a document's hexadecimal listing: offsets of four digits, two spaces, bytes."""
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)$", document, re.MULTILINE)
    data = b""
    for offset, text in lines:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(text)
    return data


def binary(number: int, count: int) -> str:
    """A number in so many bits."""
    assert 0 <= number < 2**count
    return f"{number:0{count}b}" if count else ""


def golomb(number: int, k: int = 0) -> str:
    """Codeword of EG-k."""
    digits = f"{number + 2**k:b}"
    return "0" * (len(digits) - 1 - k) + digits


def zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(number: int) -> int:
    return number // 2 if number % 2 == 0 else -(number // 2) - 1


def varint(number: int) -> bytes:
    groups = []
    while number >= 128:
        groups.append(number % 128 + 128)
        number //= 128
    return bytes([*groups, number])


def table(*suffix_bits: int) -> str:
    """A table as a codebook holds it."""
    steps = [zigzag(b - a) for a, b in itertools.pairwise(suffix_bits)]
    return "".join(map(golomb, [len(suffix_bits) - 1, suffix_bits[0], *steps]))


def word(suffix_bits: Sequence[int], symbol: int, is_table: bool = True) -> str:
    """Codeword of a symbol, by the definition of classes."""
    base = 0
    for number, bits in enumerate(suffix_bits):
        if symbol < base + 2**bits:
            one = "" if is_table and number == len(suffix_bits) - 1 else "1"
            return "0" * number + one + binary(symbol - base, bits)
        base += 2**bits
    raise AssertionError(f"symbol {symbol} of {base}")


def pairs(numbers: Sequence[int], a: int, p: int) -> list[str]:
    """Ascending numbers as pairs of EG-a and EG-p, a text for each pair."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    texts = []
    end = 0
    for index, (first, last) in enumerate(runs):
        texts.append(golomb(first - end - (index > 0), a) + golomb(last - first - 1, p))
        end = last
    return texts


def number_set(numbers: Sequence[int], a: int = 0, p: int = 0) -> str:
    """A set as a codebook holds it."""
    texts = pairs(numbers, a, p)
    return binary(a, 3) + binary(p, 3) + golomb(len(texts)) + "".join(texts)


def deal(classes: Sequence[Sequence[int]], members: Sequence[int], a: int = 0, p: int = 0) -> str:
    """What follows the set in a ranked map: the members of each class that is written."""
    text = binary(a, 3) + binary(p, 3)
    left = list(members)
    for chosen in classes:
        text += "".join(pairs([left.index(number) for number in chosen], a, p))
        left = [number for number in left if number not in set(chosen)]
    return text


@dataclass
class Record:
    """A record and the bytes that go with it."""

    name: bytes
    kind: int
    body: bytes
    code: bytes = b""
    raw: tuple[str, tuple[int, ...], bytes] | None = None
    shared: int = 0


def shape_bytes(dtype: str, shape: Sequence[int]) -> bytes:
    return bytes([DTYPES.index(dtype), len(shape)]) + b"".join(map(varint, shape))


def raw(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Record:
    body = shape_bytes(dtype, shape) + struct.pack("<I", crc32c.crc32c(data))
    return Record(name.encode(), 0, body, raw=(dtype, shape, data))


def coded(
    name: str,
    shape: Sequence[int],
    chunks: Sequence[str],
    *,
    book: int = 0,
    chunk: int = 65536,
    step: int = 0,
    dtype: str = "F32",
) -> Record:
    """A coded tensor whose chunks are given as bits."""
    texts = [text.replace(" ", "") for text in chunks]
    pieces = [pack_bits(text) for text in texts]
    body = shape_bytes(dtype, shape) + struct.pack("<b", step) + varint(book) + varint(chunk)
    body += b"".join(struct.pack("<I", len(text)) for text in texts)
    body += b"".join(struct.pack("<I", crc32c.crc32c(piece)) for piece in pieces)
    return Record(name.encode(), 1, body, code=b"".join(pieces))


def alias(name: str, target: int) -> Record:
    return Record(name.encode(), 2, varint(target))


def safetensors(
    tensors: Sequence[tuple[str, str, Sequence[int], bytes]], header: bytes | None = None
) -> bytes:
    """A safetensors file; `header` stands for the one that the tensors would give."""
    entries = {}
    end = 0
    for name, dtype, shape, data in tensors:
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
    text = json.dumps(entries).encode() if header is None else header
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)


@dataclass
class Container:
    """The parts of a container; whatever is changed, the CRCs are made to fit."""

    records: list[Record]
    books: list[bytes] = field(default_factory=list)
    network: bytes | None = None
    magic: bytes = b"EGRT"
    version: int = 2
    flags: int | None = None
    record_count: int | None = None
    book_count: int | None = None
    book_sizes: list[bytes] | None = None
    network_crc: int | None = None
    index_end: bytes = b""
    code_end: bytes = b""

    def index(self) -> bytes:
        flags = int(self.network is not None) if self.flags is None else self.flags
        records = len(self.records) if self.record_count is None else self.record_count
        books = len(self.books) if self.book_count is None else self.book_count
        network_crc = crc32c.crc32c(self.network or b"")
        index = self.magic + struct.pack(
            "<HHIIII",
            self.version,
            flags,
            records,
            books,
            crc32c.crc32c(b"".join(self.books)),
            network_crc if self.network_crc is None else self.network_crc,
        )
        sizes = [varint(len(book)) for book in self.books]
        index += b"".join(sizes if self.book_sizes is None else self.book_sizes)
        for record in self.records:
            name = record.name[record.shared :]
            index += bytes([record.kind]) + varint(record.shared) + varint(len(name)) + name
            index += record.body
        index += self.index_end
        return index + struct.pack("<I", crc32c.crc32c(index))

    def tensors(self) -> list[tuple[str, str, Sequence[int], bytes]]:
        code = b"".join(record.code for record in self.records) + self.code_end
        own = {"index": self.index(), "books": b"".join(self.books), "code": code}
        if self.network is not None:
            own["network"] = self.network
        found: list[tuple[str, str, Sequence[int], bytes]] = [
            (record.name.decode(), *record.raw) for record in self.records if record.raw
        ]
        return found + [("egret:" + name, "U8", [len(data)], data) for name, data in own.items()]

    def file(self) -> bytes:
        return safetensors(self.tensors())


# ---------------------------------------------------------------------------- random files


@dataclass(frozen=True)
class Book:
    """A codebook with what its symbols mean."""

    data: bytes
    run: tuple[Sequence[int], bool] | None
    level: tuple[Sequence[int], bool]
    values: Sequence[int] | None
    symbols: int

    def value(self, index: int) -> int:
        if self.values is not None:
            return self.values[index]
        return unzigzag(index + (self.run is not None))


def random_code(rng: random.Random, is_table: bool) -> tuple[str, Sequence[int]]:
    if not is_table:
        k = rng.randrange(8)
        return binary(k, 3), range(k, 29)
    suffix_bits = [rng.choice([0, 0, 1, 2, 3, 5, 24]) for _ in range(rng.choice([1, 2, 3, 5, 16]))]
    return table(*suffix_bits), suffix_bits


def random_book(rng: random.Random) -> Book:
    """Any codebook, however foolish."""
    kind = rng.randrange(4)
    text = binary(kind, 2)
    part, level = random_code(rng, kind >= 2)
    text += part
    run: Sequence[int] | None = None
    if kind in (1, 3):
        part, run = random_code(rng, kind == 3)
        text += part
    level_symbols = sum(2**bits for bits in level)
    map_kind = rng.randrange(3)
    text += binary(map_kind, 2)
    numbers = 2**24 - (run is not None)
    symbols = min(level_symbols, numbers)
    values = None
    if map_kind:
        top = rng.choice([4, 40, 400, numbers])
        count = rng.randrange(min(level_symbols, top, 60) + 1)
        members = sorted(rng.sample(range(top), count))
        if count and rng.random() < 0.2:
            members = sorted({*members[1:], numbers - 1})
        text += number_set(members, rng.randrange(8), rng.randrange(8))
        if map_kind == 2:
            members, part = random_deal(rng, members, level)
            text += part
        values = [unzigzag(number + (run is not None)) for number in members]
        symbols = len(values)
    return Book(
        pack_bits(text),
        None if run is None else (run, kind == 3),
        (level, kind >= 2),
        values,
        symbols,
    )


def random_deal(
    rng: random.Random, members: list[int], level: Sequence[int]
) -> tuple[list[int], str]:
    left, dealt = members, []
    written = []
    for bits in level:
        if 2**bits >= len(left):
            break
        chosen = sorted(rng.sample(left, 2**bits))
        left = [number for number in left if number not in chosen]
        written.append(chosen)
        dealt += chosen
    return dealt + left, deal(written, members, rng.randrange(8), rng.randrange(8))


def random_symbol(rng: random.Random, symbols: int) -> int:
    return min(int(rng.expovariate(1) * 2 ** rng.choice([0, 1, 4, 10, 23])), symbols - 1)


def random_chunk(
    rng: random.Random, book: Book, elements: int, low: int, high: int
) -> tuple[str, list[int]]:
    """Codewords drawn at random, and the values that they mean, from `low` to `high`."""
    text = ""
    values: list[int] = []
    fitting = [i for i in range(min(book.symbols, 64)) if low <= book.value(i) <= high]
    while len(values) < elements:
        if book.run is not None:
            suffix_bits, is_table = book.run
            longest = min(sum(2**bits for bits in suffix_bits) - 1, elements - len(values))
            zeros = min(random_symbol(rng, 2**24), longest)
            if not fitting:
                # Only zeros are left to write: all that fit.
                zeros = longest
            text += word(suffix_bits, zeros, is_table)
            values += [0] * zeros
            if len(values) == elements:
                break
        index = random_symbol(rng, book.symbols) if book.symbols else 0
        if not book.symbols or not low <= book.value(index) <= high:
            if not fitting:
                raise Unable
            index = rng.choice(fitting)
        text += word(book.level[0], index, book.level[1])
        values.append(book.value(index))
    return text, values


class Unable(Exception):
    """The codebook cannot write so many elements."""


def random_container(rng: random.Random) -> tuple[Container, dict[str, Tensor]]:
    """A valid container of a few small tensors, and what it holds."""
    books = [random_book(rng) for _ in range(rng.randrange(4))]
    names = sorted({rng.choice(["", "a", "layer.1", "ä€😀", "é"]) + str(i) for i in range(9)})
    names = rng.sample(names, rng.randrange(6))
    if rng.random() < 0.1:
        names.append("")
    names.sort(key=str.encode)
    records: list[Record] = []
    expected: dict[str, Tensor] = {}
    previous = b""
    for name in names:
        shape = tuple(
            rng.choice([0, 1, 1, 2, 3, 7, 20]) for _ in range(rng.choice([0, 1, 1, 2, 3]))
        )
        if rng.random() < 0.05:
            shape = (2**29, 0, 2**30)
        size = 1
        for axis in shape:
            size *= axis
        originals = [i for i, record in enumerate(records) if record.kind != 2]
        kind = rng.choice([0, 1, 1, 1, 2])
        if kind == 2 and originals:
            target = rng.choice(originals)
            record = alias(name, target)
            expected[name] = expected[records[target].name.decode()]
        elif kind == 1 and books:
            dtype = rng.choice(CODED_DTYPES)
            number = rng.randrange(len(books))
            low, high = INTEGER_RANGES.get(dtype, (-MAX_VALUE - 1, MAX_VALUE))
            chunk = rng.choice([1, 2, 5, 64, 65536])
            step = 0 if dtype in INTEGER_RANGES else rng.choice([-64, -3, 0, 8, 64])
            made = []
            try:
                for first in range(0, size, chunk):
                    elements = min(chunk, size - first)
                    made.append(random_chunk(rng, books[number], elements, low, high))
            except Unable:
                continue
            record = coded(
                name,
                shape,
                [text for text, _ in made],
                book=number,
                chunk=chunk,
                step=step,
                dtype=dtype,
            )
            values = [value for _, part in made for value in part]
            expected[name] = Tensor(dtype, shape, values=values, step=step)
        else:
            dtype = rng.choice(DTYPES)
            data = rng.randbytes(size * ELEMENT_BYTES[dtype])
            record = raw(name, dtype, shape, data)
            expected[name] = Tensor(dtype, shape, data=data)
        common = 0
        while common < min(len(previous), len(record.name)) and (
            previous[common] == record.name[common]
        ):
            common += 1
        record.shared = rng.choice([common, common, rng.randrange(common + 1)])
        previous = record.name
        records.append(record)
    network = rng.choice([None, None, b"", b"{}"])
    return Container(records, [book.data for book in books], network), expected
