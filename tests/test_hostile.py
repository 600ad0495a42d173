"""What an enemy may do to a container: it is refused by name, or changes nothing.

Truncation at every byte and a flip of every bit are in test_container.py. `make fuzz` looks for
more; what it found interesting is kept in tests/corpus, and is replayed here.
"""

import json
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import handmade
from tests.fuzz.mutator import mutated, places, rebuilt, repaired
from tests.handmade import (
    alias,
    coded,
    golomb,
    number_set,
    pack_bits,
    random_book,
    random_container,
    raw,
    safetensors,
    shape_bytes,
    varint,
)
from tests.handmade_cases import EG0, VALID
from tests.judge import is_version_1, judge, judge_book

from egret.codebook import Codebook
from egret.codec import decode
from egret.container import Container
from egret.errors import EgretError, FormatError
from egret.prefix_code import PrefixCode

NOWHERE = Path("hostile.egret")
CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
# Opening and verifying may take this much, and so much for each byte of the file.
MEMORY = 64 << 20
MEMORY_PER_BYTE = 64
NO_BITS = "10 1 1 01 000 000 010 00111 1"


@contextmanager
def bounded_memory(file_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY + MEMORY_PER_BYTE * file_bytes, f"{peak} bytes for {file_bytes}"


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 100
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


@pytest.mark.parametrize("part", range(8))
def test_corpus(part: int) -> None:
    for path in CORPUS[part::8]:
        data = path.read_bytes()
        if is_version_1(data):
            continue
        try:
            judge(NOWHERE, data)
            judge_book(data)
        except Exception as error:
            error.add_note(f"tests/corpus/{path.name}")
            raise


@pytest.mark.parametrize("part", range(8))
def test_damage_that_checksums_do_not_show(part: int) -> None:
    refused = 0
    for seed in range(200 * part, 200 * part + 200):
        rng = random.Random(seed)
        data = random_container(rng)[0].file()
        for _ in range(rng.randrange(1, 4)):
            data = mutated(data, rng)
        try:
            refused += judge(NOWHERE, data, max_elements=20_000) is None
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    # Both kinds occur, or the test would show nothing.
    assert 50 < refused < 195


@pytest.mark.parametrize("part", range(4))
def test_damaged_codebooks(part: int) -> None:
    for seed in range(500 * part, 500 * part + 500):
        rng = random.Random(seed)
        data = bytearray(random_book(rng).data)
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            judge_book(bytes(data))
            judge_book(rng.randbytes(rng.randrange(12)))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_repairing_makes_right_checksums() -> None:
    """The damage above would otherwise stop at the first CRC."""
    for seed in range(50):
        data = random_container(random.Random(seed))[0].file()
        assert repaired(data) == data, f"seed {seed}"
        start, end = places(data)["egret:index"]
        wrong = bytearray(data)
        wrong[end - 4 : end] = bytes(4)
        wrong[start + 16 : start + 20] = b"\xff" * 4
        assert repaired(bytes(wrong)) == data, f"seed {seed}"


# ---------------------------------------------------------------------------- changed places


def two_tensors() -> handmade.Container:
    books = [pack_bits(EG0), pack_bits("00 001 00")]
    records = [
        coded("a", [6], ["1 010 011", "010 010 1"], chunk=3),
        coded("b", [6], ["10 11 0100", "11 10 0101"], chunk=3, book=1),
    ]
    return handmade.Container(records, books)


def test_chunks_change_places() -> None:
    container = two_tensors()
    expected = judge(NOWHERE, container.file())
    assert expected is not None
    code = b"".join(record.code for record in container.records)
    for first in range(4):
        for second in range(first):
            # Every chunk has one byte.
            swapped = bytearray(code)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            data = rebuilt(container.file(), {"egret:code": bytes(swapped)})
            same = swapped == code
            assert (judge(NOWHERE, data) is not None) == same
            # With right CRCs it is another file, or one whose codewords do not fit.
            found = judge(NOWHERE, repaired(data))
            assert found != expected or same


def test_codebooks_change_places() -> None:
    container = two_tensors()
    first, second = container.books
    swapped = replace(container, books=[second, first])
    data = rebuilt(container.file(), {"egret:books": second + first})
    assert judge(NOWHERE, data) is None
    assert repaired(data) == swapped.file()
    assert judge(NOWHERE, swapped.file()) is None


def test_index_code_and_books_of_other_files() -> None:
    one = two_tensors()
    other = two_tensors()
    other.records[0] = coded("a", [6], ["1 011 010", "010 010 1"], chunk=3)
    other.books[1] = pack_bits("00 010 00")
    for name in ("index", "books", "code"):
        content = {key: part for key, _, _, part in other.tensors()}["egret:" + name]
        data = rebuilt(one.file(), {"egret:" + name: content})
        assert data != one.file()
        assert judge(NOWHERE, data) is None, name


# ---------------------------------------------------------------------------- claims


def claims() -> Iterator[tuple[str, bytes]]:
    """Small files that speak of much."""
    eg0 = pack_bits(EG0)
    whole = coded("w", [2], ["1 010"])
    for axis in (2**31, 2**32, 2**40, 2**59, 2**60, 2**62, 2**63 - 1):
        for chunk in (1, 65536):
            body = bytes([0, 1]) + varint(axis) + b"\0\0" + varint(chunk) + bytes(64)
            record = handmade.Record(b"w", 1, body, code=b"\xa0")
            yield f"{axis} weights in chunks of {chunk}", handmade.Container([record], [eg0]).file()
            record = handmade.Record(b"w", 0, bytes([0, 1]) + varint(axis) + bytes(4))
            yield f"a raw tensor of {axis}", handmade.Container([record]).file()
            body = shape_bytes("F64", [axis, 0]) + b"\0\0" + varint(chunk)
            record = handmade.Record(b"w", 1, body)
            yield f"no weights in {axis} rows", handmade.Container([record], [eg0]).file()
            yield (
                f"no elements in {axis} rows",
                handmade.Container([raw("w", "F64", (axis, 0), b"")]).file(),
            )
    for count in (10**6, 2**31, 2**32 - 1):
        yield f"{count} records", handmade.Container([whole], [eg0], record_count=count).file()
        yield f"{count} books", handmade.Container([whole], [eg0], book_count=count).file()
        yield (
            f"{count} bits",
            handmade.Container(
                [
                    handmade.Record(
                        b"w", 1, whole.body[:-8] + struct.pack("<II", count, 0), code=whole.code
                    )
                ],
                [eg0],
            ).file(),
        )
        pairs = pack_bits("00 000 01 000 000" + golomb(min(count, 2**29 - 2)))
        yield f"a set of {count} pairs", handmade.Container([coded("w", [0], [])], [pairs]).file()
    for members in (2**20, 2**20 + 1, 2**24):
        book = pack_bits("00 111 01" + number_set(range(members), 0, 7))
        yield (
            f"a set of {members} in a run",
            handmade.Container([coded("w", [0], [])], [book]).file(),
        )
    for size in (2**20, 2**40, 2**63 - 1):
        yield (
            f"a book of {size} bytes",
            handmade.Container([whole], [eg0], book_sizes=[varint(size)]).file(),
        )
        yield (
            f"a name of {size} bytes",
            handmade.Container(
                [handmade.Record(b"", 1, b"")], index_end=b"\0\0" + varint(size)
            ).file(),
        )
    yield "a header of 99,999,999 bytes", struct.pack("<Q", 99_999_999) + b"{"
    yield "a header of 2^64 - 1 bytes", b"\xff" * 8 + b"{}"


CLAIMS = dict(claims())


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_cost_no_memory(name: str) -> None:
    data = CLAIMS[name]
    with bounded_memory(len(data)), suppress(FormatError), Container(NOWHERE, data) as container:
        container.verify()
    judge(NOWHERE, data)


def test_weights_without_bits_are_bounded_by_the_index() -> None:
    """Eight bytes of the index for 65,536 weights are the least that a weight can cost."""
    chunks = 1500
    size = 65_536 * chunks
    data = handmade.Container([coded("w", [size], [""] * chunks)], [pack_bits(NO_BITS)]).file()
    assert len(data) < 8 * chunks + 400
    with bounded_memory(len(data)), Container(NOWHERE, data) as container:
        container.verify()
        assert container.record("w").shape == (size,)
        some = container.quantized("w", rows=(size - 3, size)).values
        assert some.tolist() == [3, 3, 3]


def test_many_tensors() -> None:
    names = [f"{number:06d}" for number in range(20_000)]
    records = [raw(names[0], "U8", (1,), b"x"), *(alias(name, 0) for name in names[1:])]
    data = handmade.Container(records).file()
    with bounded_memory(len(data)), Container(NOWHERE, data) as container:
        container.verify()
        assert len(container.names) == len(names)
        assert bytes(container.raw(names[-1]).data) == b"x"


def test_front_coded_names_are_bounded() -> None:
    """Seven bytes could otherwise stand for a name of 65,535."""
    first = raw("n" * 65_000, "U8", (0,), b"")
    records = [first]
    for number in range(1100):
        name = first.name + f"{number:04d}".encode()
        records.append(handmade.Record(name, 2, varint(0), shared=65_000))
    data = handmade.Container(records).file()
    with bounded_memory(len(data)), pytest.raises(FormatError, match="names"):
        Container(NOWHERE, data)
    assert judge(NOWHERE, data) is None
    assert judge(NOWHERE, handmade.Container(records[:900]).file()) is not None


# ---------------------------------------------------------------------------- names and headers

NAMES = [
    "a\nb",
    "a\r\0\x1b[31mred",
    "../../etc/passwd",
    "/dev/null",
    "w" * 65_535,
    "\u202egnp.exe",
    "\ufeff",
    " ",
    "egret",
    "EGRET:index",
    "egret;index",
    "__metadata",
    '"},"x":{"',
    "\uffff",
    "\U0010ffff",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names(name: str) -> None:
    good = coded(name, [2], ["1 010"])
    for container in (
        handmade.Container([good], [pack_bits(EG0)]),
        handmade.Container([raw(name, "U8", (2,), b"xy")]),
    ):
        found = judge(NOWHERE, container.file())
        assert found is not None
        assert list(found) == [name]
    # Errors that quote the name still take one line.
    bad = coded(name, [2], ["1 01"])
    assert judge(NOWHERE, handmade.Container([bad], [pack_bits(EG0)]).file()) is None
    other = replace(raw(name, "U8", (2,), b"xy"), raw=("U8", (2,), b"xz"))
    assert judge(NOWHERE, handmade.Container([other]).file()) is None
    other = replace(raw(name, "U8", (2,), b"xy"), raw=("I8", (2,), b"xy"))
    assert judge(NOWHERE, handmade.Container([other]).file()) is None


def entry(**fields: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], **fields}


HEADERS: dict[str, Callable[[], object]] = {
    "a dtype of a megabyte": lambda: entry(dtype="U" * 10**6),
    "a shape of 10^5 axes": lambda: entry(shape=[1] * 10**5),
    "a shape of large numbers": lambda: entry(shape=[10**300] * 3),
    "offsets of 10^5 numbers": lambda: entry(data_offsets=[0] * 10**5),
    "offsets of large numbers": lambda: entry(data_offsets=[10**4000, 10**4000]),
    "10^4 keys": lambda: entry(**{f"k{number}": number for number in range(10**4)}),
    "an object for the shape": lambda: entry(shape={"0": 1}),
    "a text for the offsets": lambda: entry(data_offsets="00"),
    "nothing for the dtype": lambda: entry(dtype=None),
    "a list": list,
    "a large number": lambda: 10**4000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers(name: str) -> None:
    tensors = handmade.Container([]).tensors()
    file = safetensors(tensors)
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    for key in ("x", "x" * 100_000, "egret:code"):
        text = json.dumps({**header, key: HEADERS[name]()}).encode()
        assert judge(NOWHERE, safetensors(tensors, text)) is None


def test_header_of_many_entries_and_blanks() -> None:
    tensors = handmade.Container([]).tensors()
    blanks = safetensors(tensors)
    header = blanks[8 : 8 + int.from_bytes(blanks[:8], "little")] + b" " * 10**6
    assert judge(NOWHERE, safetensors(tensors, header)) == {}
    extra = [(f"t{number}", "U8", [0], b"") for number in range(30_000)]
    assert judge(NOWHERE, safetensors([*tensors, *extra])) is None
    deep = b'{"__metadata__":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"," + header[1:]
    assert judge(NOWHERE, safetensors(tensors, deep)) == {}


# ---------------------------------------------------------------------------- the codec alone


def some_books() -> Iterator[Codebook]:
    for name in VALID:
        for data in VALID[name][0].books:
            yield Codebook.from_bytes(data)


def test_decoder_writes_nothing_beyond_its_array() -> None:
    books = list(some_books())
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        book = books[seed % len(books)]
        chunk = int(rng.choice([1, 2, 7, 64, 300]))
        count = int(rng.integers(1, 12))
        bits = rng.integers(0, rng.choice([9, 70, 700]), count).astype(np.uint32)
        used = int(((bits.astype(np.int64) + 7) // 8).sum())
        # Mostly zeros and mostly ones make long prefixes and short codewords.
        data = rng.integers(0, 256, used) & rng.choice([0, 1, 0x11, 0xFF])
        data |= rng.choice([0, 0, 0xEE])
        size = count * chunk - int(rng.integers(0, chunk))
        room = np.full(size + 2000, 77, np.int32)
        with suppress(FormatError):
            decode(
                data.astype(np.uint8),
                bits,
                book,
                chunk,
                room[1000 : 1000 + size],
                threads=int(rng.integers(1, 3)),
            )
        assert (room[:1000] == 77).all(), f"seed {seed}"
        assert (room[1000 + size :] == 77).all(), f"seed {seed}"


@pytest.mark.parametrize("beyond", [0, 1, 2])
@pytest.mark.parametrize("chunks", range(1, 7))
def test_runs_that_reach_the_end_of_a_chunk_with_bits_left(chunks: int, beyond: int) -> None:
    """The next level would lie in the next chunk, or behind the array."""
    book = Codebook(PrefixCode.golomb(0), PrefixCode.golomb(0))
    elements = 40
    for pairs in (0, 1, 30, 37):
        text = "1 1" * pairs + golomb(elements - pairs + beyond) + "1" * 60
        piece = pack_bits(text)
        bits = np.full(chunks, len(text.replace(" ", "")), np.uint32)
        room = np.full((chunks + 2) * elements, 77, np.int32)
        out = room[elements:-elements]
        with pytest.raises(FormatError, match="chunk 0"):
            decode(piece * chunks, bits, book, elements, out)
        assert (room[:elements] == 77).all()
        assert (room[-elements:] == 77).all()


@pytest.mark.parametrize(
    ("data", "bits", "chunk", "size"),
    [
        (b"\xff", [8], 8, 9),
        (b"\xff", [8, 1], 8, 8),
        (b"\xff", [], 8, 8),
        (b"", [8], 8, 8),
        (b"\xff\xff", [8], 8, 8),
        (b"\xff", [8], 0, 8),
        (b"\xff", [8], 65537, 8),
        (b"\xff", [2**32 - 1], 8, 8),
        (b"\xff", [0], 8, 8),
        (b"\xff", [9], 8, 8),
        (b"\xff", [7], 8, 8),
        (b"\xff", [8], 7, 7),
    ],
)
def test_decoder_refuses_arguments_that_do_not_fit(
    data: bytes, bits: list[int], chunk: int, size: int
) -> None:
    book = Codebook(PrefixCode.golomb(0))
    out = np.zeros(size, np.int32)
    with pytest.raises(FormatError):
        decode(data, np.array(bits, np.uint32), book, chunk, out)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/null"), tmp_path / "a" / "b"):
        with pytest.raises(EgretError, match=str(path)):
            Container(path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(EgretError, match="loop"):
        Container(loop)
