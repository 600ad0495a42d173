"""Egret and the second reader, written from the specification alone, agree on every file."""

import random
from functools import partial
from pathlib import Path

import crc32c
import numpy as np
import pytest
from numpy.typing import NDArray
from tests import independent_decoder
from tests.handmade import Container, coded, pack_bits, random_container
from tests.handmade_cases import EG0, INVALID, VALID
from tests.independent_decoder import ELEMENT_BYTES, INTEGER_RANGES, BadFile, Tensor
from tests.judge import egret_reads, judge
from tests.test_codec_properties import ALPHABETS, FORCED, make_values

from egret.code_search import Statistics, parse_codes, plan, plan_shared
from egret.codec import encode
from egret.container import AliasRecord, CodedRecord, RawEntry, write_container
from egret.errors import FormatError
from egret.quantize import CODED_DTYPES

NOWHERE = Path("made in memory.egret")


@pytest.mark.parametrize("name", VALID)
def test_valid_files_made_by_hand(name: str) -> None:
    container, expected = VALID[name]
    assert independent_decoder.read(container.file()) == expected
    assert judge(NOWHERE, container.file()) == expected


@pytest.mark.parametrize("name", INVALID)
def test_invalid_files_made_by_hand(name: str) -> None:
    with pytest.raises(BadFile):
        independent_decoder.read(INVALID[name])
    with pytest.raises(FormatError, match=NOWHERE.name):
        egret_reads(NOWHERE, INVALID[name])
    assert judge(NOWHERE, INVALID[name]) is None


@pytest.mark.parametrize("part", range(8))
def test_random_files_made_by_hand(part: int) -> None:
    for seed in range(100 * part, 100 * part + 100):
        container, expected = random_container(random.Random(seed))
        assert judge(NOWHERE, container.file()) == expected, f"seed {seed}"


def test_crc_of_the_second_reader() -> None:
    # RFC 3720, B.4.
    assert independent_decoder.crc32c(bytes(32)) == 0x8A9136AA
    assert independent_decoder.crc32c(bytes(range(32))) == 0x46DD794E
    data = random.Random(3).randbytes(999)
    assert independent_decoder.crc32c(data) == crc32c.crc32c(data)


def test_rounding_of_the_second_reader() -> None:
    rng = np.random.default_rng(8)
    values = [0, 1, -1, 2**23 - 1, -(2**23), *rng.integers(-(2**23), 2**23, 300).tolist()]
    for step in (-64, -9, 0, 7, 24, 26, 33, 64):
        numbers = np.ldexp(np.array(values, np.float64), -step)
        for dtype, kind in (("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8")):
            tensor = Tensor(dtype, (len(values),), values=values, step=step)
            with np.errstate(over="ignore"):
                assert tensor.restored() == numbers.astype(kind).tobytes(), (dtype, step)


class Writer:
    """Containers by Egret's own writer, from values."""

    def __init__(self, codes: str = "auto") -> None:
        self.codes = parse_codes(codes)
        self.expected: dict[str, Tensor] = {}
        self.values: dict[str, tuple[NDArray[np.int32], int, str, int]] = {}
        self.raws: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        self.aliases: dict[str, str] = {}

    def add(
        self, name: str, values: NDArray[np.int32], chunk: int, dtype: str = "F32", step: int = 8
    ) -> None:
        step = 0 if dtype in INTEGER_RANGES else step
        self.values[name] = (values, chunk, dtype, step)
        flat = values.reshape(-1).tolist()
        self.expected[name] = Tensor(dtype, values.shape, values=flat, step=step)

    def add_raw(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.raws[name] = (dtype, shape, data)
        self.expected[name] = Tensor(dtype, shape, data=data)

    def add_alias(self, name: str, target: str) -> None:
        self.aliases[name] = target
        self.expected[name] = self.expected[target]

    def write(self, path: Path, *, shared: bool, network: bytes | None = None) -> bytes:
        names = sorted(self.values, key=str.encode)
        statistics = [Statistics.of(self.values[name][0], self.values[name][1]) for name in names]
        if shared:
            books, numbers, _ = plan_shared(statistics, self.codes)
        else:
            books = [plan(one, self.codes).book for one in statistics]
            numbers = list(range(len(books)))
        records: list[CodedRecord | RawEntry | AliasRecord] = []
        code = []
        for name, number in zip(names, numbers, strict=True):
            values, chunk, dtype, step = self.values[name]
            data, bits = encode(values, books[number], chunk)
            ends = np.cumsum((bits.astype(np.int64) + 7) // 8).tolist()
            pieces = [data[a:b].tobytes() for a, b in zip([0, *ends], ends, strict=False)]
            crcs = np.array([crc32c.crc32c(piece) for piece in pieces], np.uint32)
            records.append(CodedRecord(name, dtype, values.shape, step, number, chunk, bits, crcs))
            code += pieces
        for name, (dtype, shape, stored) in self.raws.items():
            records.append(RawEntry(name, dtype, shape, partial(iter, [stored])))
        records += [AliasRecord(name, target) for name, target in self.aliases.items()]
        records.sort(key=lambda record: record.name.encode())
        write_container(path, records, [book.data for book in books], code, network=network)
        found = judge(path, path.read_bytes())
        assert found == self.expected
        return path.read_bytes()


@pytest.mark.parametrize("codes", ["auto", *FORCED])
def test_files_of_egret_in_every_code(tmp_path: Path, codes: str) -> None:
    rng = np.random.default_rng(20)
    writer = Writer(codes)
    for number, kind in enumerate(ALPHABETS):
        values = make_values(kind, 1500, 256, rng)
        writer.add(f"layer.{number}.{kind}", values.reshape(50, 30), 30 * (1 + number % 9))
    # Several chunks in whole rows, and one that is not full.
    for shared in (False, True):
        writer.write(tmp_path / "a.egret", shared=shared)


@pytest.mark.parametrize("dtype", CODED_DTYPES)
def test_files_of_egret_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(21)
    low, high = INTEGER_RANGES.get(dtype, (-(2**23), 2**23 - 1))
    low, high = max(low, -(2**23)), min(high, 2**23 - 1)
    writer = Writer()
    writer.add("wide", rng.integers(low, high + 1, (7, 30)).astype(np.int32), 60, dtype, 20)
    narrow = rng.integers(max(low, -3), 4, (40, 5)).astype(np.int32)
    for step in (-64, 0, 8, 64) if dtype not in INTEGER_RANGES else (0,):
        writer.add(f"narrow.{step}", narrow, 65536, dtype, step)
    writer.write(tmp_path / "a.egret", shared=True)


def test_files_of_egret_with_odd_tensors(tmp_path: Path) -> None:
    writer = Writer()
    none = np.zeros(0, np.int32)
    writer.add("", none, 1)
    writer.add("0-d", np.array(-5, np.int32), 1)
    writer.add("empty", none.reshape(3, 0, 2), 7, "I8")
    writer.add("layer.1", np.full((300, 300), 9, np.int32), 65536, "U8")
    writer.add("layer.10", np.zeros((9, 9999), np.int32), 65536, "BF16")
    writer.add("ä", np.array([[2**23 - 1, -(2**23)]], np.int32), 1, "I32")
    for dtype, size in ELEMENT_BYTES.items():
        writer.add_raw(f"raw.{dtype}", dtype, (2, 3), bytes(range(6 * size)))
    writer.add_raw("raw.empty", "C64", (0, 4), b"")
    writer.add_raw("😀", "U8", (), b"\xff")
    writer.add_alias("z.tied", "layer.1")
    writer.add_alias("z.tied again", "layer.1")
    writer.add_alias("z.tied raw", "raw.F8_E4M3")
    first = writer.write(tmp_path / "a.egret", shared=True, network=b'{"layers": []}')
    assert writer.write(tmp_path / "b.egret", shared=True, network=b'{"layers": []}') == first
    writer.write(tmp_path / "c.egret", shared=False, network=b"")


def test_files_of_egret_in_threads(tmp_path: Path) -> None:
    writer = Writer()
    rng = np.random.default_rng(22)
    for number, kind in enumerate(ALPHABETS):
        writer.add(f"{number}", make_values(kind, 2500, 130, rng), 130)
    path = tmp_path / "a.egret"
    data = writer.write(path, shared=True)
    for threads in (1, 2, 5):
        assert egret_reads(path, threads=threads) == writer.expected
        assert egret_reads(path, data, threads=threads) == writer.expected


def test_an_error_names_what_is_wrong() -> None:
    good = coded("good", [2], ["1 010"])
    bad = coded("bad", [2], ["1 01"])
    data = Container([bad, good], [pack_bits(EG0)]).file()
    with pytest.raises(FormatError, match=r"'bad'.*chunk 0"):
        egret_reads(NOWHERE, data)
