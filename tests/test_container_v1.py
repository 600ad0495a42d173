"""Containers of version 1 go on being read; nothing writes them but this file."""

import json
import re
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import crc32c as crc_reference
import numpy as np
import pytest
from tests.handmade import listed_bytes

from egret.container import CodedRecord, Container, RawRecord, read_container
from egret.errors import EgretError, FormatError

DOCUMENT = (Path(__file__).parents[1] / "docs" / "format-v1.md").read_text(encoding="utf-8")

Tensors = dict[str, tuple[str, list[int], bytes]]


# --- A decoder written from docs/format-v1.md alone, in plain Python ---


def search(pattern: str) -> tuple[str, ...]:
    found = re.search(pattern, DOCUMENT)
    assert found is not None, pattern
    return found.groups()


def split_safetensors(data: bytes) -> Tensors:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def decode_by_the_document(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes | None]:
    """Return the coded tensors (dtype, shape, exact weights), the raw ones, and the network."""
    dtype_names = dict(enumerate(search(r"\| name \| (F32.*) \|")[0].split(" | ")))
    tensors = split_safetensors(data)
    index, code, maps = (tensors.pop(f"egret:{name}")[2] for name in ("index", "code", "maps"))
    assert crc_reference.crc32c(index[:-4]) == int.from_bytes(index[-4:], "little")
    place = 0

    def number(size: int, signed: bool = False) -> int:
        nonlocal place
        place += size
        return int.from_bytes(index[place - size : place], "little", signed=signed)

    assert index[:4] == b"EGRT"
    place = 4
    assert number(2) == 1
    flags, count, network_bytes, network_crc = number(2), number(4), number(4), number(4)
    network = None
    if flags & 1:
        network = tensors.pop("egret:network")[2]
        assert len(network) == network_bytes
        assert crc_reference.crc32c(network) == network_crc
    coded: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for _ in range(count):
        kind, dtype, axes, length = number(1), dtype_names[number(1)], number(1), number(2)
        name = index[place : place + length].decode()
        place += length
        shape = [number(8) for _ in range(axes)]
        crc = number(4)
        if kind == 0:
            raw[name] = tensors.pop(name)
            assert raw[name][:2] == (dtype, shape)
            assert crc_reference.crc32c(raw[name][2]) == crc
            continue
        step, order, width = number(1, signed=True), number(1), number(1)
        entries, bits, map_crc = number(4), number(8), number(4)
        own_code, code = code[: -(-bits // 8)], code[-(-bits // 8) :]
        map_size = -(-entries * width // 8)
        own_map, maps = maps[:map_size], maps[map_size:]
        assert crc_reference.crc32c(own_code) == crc
        assert crc_reference.crc32c(own_map) == map_crc
        map_text = "".join(f"{byte:08b}" for byte in own_map)
        table = []
        for entry in range(entries):
            unsigned = int(map_text[entry * width : (entry + 1) * width], 2)
            table.append(unsigned - (unsigned >> (width - 1) << width))
        text = "".join(f"{byte:08b}" for byte in own_code)
        weights = []
        position = 0
        while position < bits:
            zeros = text.index("1", position) - position
            end = position + 2 * zeros + 1 + order
            rank = int(text[position + zeros : end], 2) - 2**order
            weights.append(Fraction(table[rank]) / Fraction(2) ** step)
            position = end
        assert position == bits
        coded[name] = (dtype, shape, weights)
    assert place == len(index) - 4
    assert not tensors
    assert (code, maps) == (b"", b"")
    return coded, raw, network


# --- A writer, of files that the writer of version 1 never made too ---


def join_safetensors(tensors: Tensors) -> bytes:
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def pack_bits(text: str) -> bytes:
    text += "0" * (-len(text) % 8)
    return bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))


def golomb(index: int, order: int) -> str:
    digits = f"{index + 2**order:b}"
    return "0" * (len(digits) - 1 - order) + digits


def coded_record(
    name: str, values: list[int], shape: list[int], step: int, order: int, dtype: int = 0
) -> tuple[bytes, bytes, bytes]:
    """Return the record, the code and the map of a coded tensor."""
    table = list(dict.fromkeys(values))
    width = 1 + max((max(v, ~v).bit_length() for v in table), default=0)
    text = "".join(golomb(table.index(value), order) for value in values)
    code = pack_bits(text)
    packed = pack_bits("".join(f"{value % 2**width:0{width}b}" for value in table))
    record = struct.pack("<BBBH", 1, dtype, len(shape), len(name.encode())) + name.encode()
    record += b"".join(struct.pack("<Q", size) for size in shape)
    record += struct.pack("<I", crc_reference.crc32c(code))
    crc = crc_reference.crc32c(packed)
    record += struct.pack("<bBBIQI", step, order, width, len(table), len(text), crc)
    return record, code, packed


def raw_record(name: str, dtype: int, shape: list[int], data: bytes) -> bytes:
    record = struct.pack("<BBBH", 0, dtype, len(shape), len(name.encode())) + name.encode()
    record += b"".join(struct.pack("<Q", size) for size in shape)
    return record + struct.pack("<I", crc_reference.crc32c(data))


def sealed(index: bytes) -> bytes:
    return index + struct.pack("<I", crc_reference.crc32c(index))


def with_own(tensors: Tensors, own: Mapping[str, bytes]) -> bytes:
    return join_safetensors(
        {**tensors, **{f"egret:{k}": ("U8", [len(v)], v) for k, v in own.items()}}
    )


def small_file() -> bytes:
    network = b'{"name":"n"}'
    v, v_code, v_map = coded_record("v", [7, 0, 0], [3], 3, 0, dtype=2)
    w, w_code, w_map = coded_record("w", [0, -3, 0, 5, 0, -3], [2, 3], 8, 1)
    e, e_code, e_map = coded_record("é", [], [0, 4], -2, 7)
    index = struct.pack("<4sHHIII", b"EGRT", 1, 1, 5, len(network), crc_reference.crc32c(network))
    index += raw_record("b", 2, [2], b"abcd") + raw_record("n", 10, [], bytes(range(8)))
    own = {
        "index": sealed(index + v + w + e),
        "code": v_code + w_code + e_code,
        "maps": v_map + w_map + e_map,
        "network": network,
    }
    return with_own({"b": ("BF16", [2], b"abcd"), "n": ("I64", [], bytes(range(8)))}, own)


def forge(**changes: Any) -> bytes:
    """Write one coded tensor (values 0, 5, 0, -3 at order 0) with fields changed, CRCs right."""
    f: dict[str, Any] = {
        "magic": b"EGRT",
        "version": 1,
        "flags": 0,
        "count": 1,
        "network_bytes": 0,
        "network_crc": 0,
        "kind": 1,
        "dtype": 0,
        "name": b"w",
        "shape": [4],
        "step": 8,
        "order": 0,
        "width": 4,
        "entries": 3,
        "bits": 8,
        "code": bytes([0b10101011]),
        "maps": bytes([0b00000101, 0b11010000]),
        "tail": b"",
        "cut": 0,
        **changes,
    }
    index = struct.pack(
        "<4sHHIII",
        *(f[k] for k in ("magic", "version", "flags", "count", "network_bytes", "network_crc")),
    )
    index += struct.pack("<BBBH", f["kind"], f["dtype"], len(f["shape"]), len(f["name"]))
    index += f["name"] + b"".join(struct.pack("<Q", size) for size in f["shape"])
    index += struct.pack("<I", crc_reference.crc32c(f["code"]))
    index += struct.pack(
        "<bBBIQI",
        *(f[k] for k in ("step", "order", "width", "entries", "bits")),
        crc_reference.crc32c(f["maps"]),
    )
    index = index[: len(index) - f["cut"]] + f["tail"]
    return with_own({}, {"index": sealed(index), "code": f["code"], "maps": f["maps"]})


def contents(container: Container) -> tuple[Any, ...]:
    container.verify()
    return (
        container.network,
        {
            name: (q.values.tolist(), q.step_log2, q.dtype)
            for name in container.coded_names
            for q in [container.quantized(name)]
        },
        {
            name: (r.dtype, r.shape, bytes(r.data))
            for name in container.raw_names
            for r in [container.raw(name)]
        },
    )


SMALL = (
    b'{"name":"n"}',
    {
        "v": ([7, 0, 0], 3, "BF16"),
        "w": ([[0, -3, 0], [5, 0, -3]], 8, "F32"),
        "é": ([], -2, "F32"),
    },
    {"b": ("BF16", (2,), b"abcd"), "n": ("I64", (), bytes(range(8)))},
)


def test_example_of_the_document(tmp_path: Path) -> None:
    data = listed_bytes(DOCUMENT)
    assert len(data) == 355
    path = tmp_path / "old.egret"
    path.write_bytes(data)
    with read_container(path) as container:
        assert container.names == ("b", "w")
        assert container.raw("b").array().tolist() == [1.5, -0.25]
        assert container.quantized("w").values.tolist() == [[0, -3, 0], [5, 0, -3]]
        assert container.restored("w").array().tolist() == [
            [value / 256 for value in row] for row in [[0, -3, 0], [5, 0, -3]]
        ]
        assert container.network is None
    coded, raw, network = decode_by_the_document(data)
    expected = [Fraction(value, 256) for value in [0, -3, 0, 5, 0, -3]]
    assert coded == {"w": ("F32", [2, 3], expected)}
    assert raw == {"b": ("F32", [2], np.array([1.5, -0.25], "<f4").tobytes())}
    assert network is None


def test_reads_what_the_document_says() -> None:
    data = small_file()
    container = Container("f.egret", data)
    assert contents(container) == SMALL
    coded, raw, network = decode_by_the_document(data)
    assert network == container.network
    assert set(raw) == set(container.raw_names)
    for name, (dtype, shape, weights) in coded.items():
        tensor = container.quantized(name)
        assert (tensor.dtype, list(tensor.shape)) == (dtype, shape)
        assert weights == [
            Fraction(int(v)) / Fraction(2) ** tensor.step_log2 for v in tensor.values.reshape(-1)
        ]


@pytest.mark.parametrize("order", range(8))
def test_every_order(order: int) -> None:
    random = np.random.default_rng(order)
    values = [0, 2**31 - 1, -(2**31), *np.rint(random.laplace(0, 50, 300)).astype(int).tolist()]
    record, code, packed = coded_record("w", values, [len(values)], -64, order)
    index = sealed(struct.pack("<4sHHIII", b"EGRT", 1, 0, 1, 0, 0) + record)
    data = with_own({}, {"index": index, "code": code, "maps": packed})
    container = Container("f.egret", data)
    assert container.quantized("w").values.tolist() == values
    assert container.quantized("w", rows=(1, 5)).values.tolist() == values[1:5]
    assert container.quantized("w", rows=(303, 303)).values.tolist() == []


def test_records_and_books() -> None:
    container = Container("f.egret", small_file())
    record = container.record("w")
    assert isinstance(record, CodedRecord)
    assert (record.size, record.chunk, record.chunks) == (6, 6, 1)
    # Ranks 0 1 0 2 0 1 at order 1: four of two bits, and two more.
    assert record.code_bits == sum(len(golomb(i, 1)) for i in (0, 1, 0, 2, 0, 1))
    assert record.code_bytes == -(-record.code_bits // 8)
    book = container.book(record.book)
    assert (book.name, book.is_run, book.map_bits, book.table_bits) == ("eg-1", False, 12, 4)
    empty = container.record("é")
    assert isinstance(empty, CodedRecord)
    assert (empty.chunks, empty.code_bits) == (0, 0)
    assert isinstance(container.record("b"), RawRecord)
    assert not any(map(container.is_alias, container.names))
    with pytest.raises(EgretError, match=r"^f\.egret: there is no codebook 3$"):
        container.book(3)


def test_every_truncation_is_refused() -> None:
    data = small_file()
    for size in range(len(data)):
        with pytest.raises(FormatError, match=r"^f\.egret: "):
            Container("f.egret", data[:size])
    for more in (b"\0", b"x" * 9):
        with pytest.raises(FormatError):
            Container("f.egret", data + more)


def test_every_flipped_bit_is_refused() -> None:
    data = small_file()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"^f\.egret: .+$"):
            contents(Container("f.egret", bytes(damaged)))


def test_damage_names_the_tensor() -> None:
    tensors = split_safetensors(small_file())
    for stored, message in (
        ("egret:code", "tensor 'v': code"),
        ("egret:maps", "tensor 'v': value map"),
        ("egret:network", "network"),
        ("n", "tensor 'n'"),
    ):
        dtype, shape, content = tensors[stored]
        changed = bytes([content[0] ^ 1]) + content[1:]
        data = join_safetensors({**tensors, stored: (dtype, shape, changed)})
        with pytest.raises(FormatError, match=rf"f\.egret: {message}: damaged: its CRC"):
            contents(Container("f.egret", data))


def test_the_forged_file_is_good() -> None:
    assert contents(Container("f", forge()))[1] == {"w": ([0, 5, 0, -3], 8, "F32")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"EGRU"}, "found magic"),
        ({"version": 0}, "found format version 0, this Egret reads versions 1 and 2"),
        ({"flags": 2}, "flags 0x0002"),
        ({"flags": 1}, "tensor 'egret:network' is missing"),
        ({"network_bytes": 1}, "flags"),
        ({"count": 0}, "goes on after its last record"),
        ({"count": 2}, "ends within a record"),
        ({"count": 2**32 - 1}, "ends within a record"),
        ({"cut": 1}, "ends within a record"),
        ({"tail": b"\0"}, "goes on after"),
        ({"kind": 2}, "tensor 'w': found kind 2"),
        ({"kind": 0}, "goes on after"),
        ({"dtype": 99}, "tensor 'w': found dtype number 99"),
        ({"dtype": 4}, "expected a floating type"),
        ({"name": b"\xff"}, "not UTF-8"),
        ({"name": b"egret:x"}, "reserved"),
        ({"name": b"__metadata__"}, "reserved"),
        ({"shape": [1] * 33}, "is too large"),
        ({"shape": [2**60, 2**60]}, "is too large"),
        ({"shape": [2**63, 0]}, "is too large"),
        ({"shape": [2**30, 3]}, "code bits 8, expected at least 1 for each of 3221225472"),
        ({"shape": [9]}, "found code bits 8"),
        ({"shape": [0], "entries": 0}, "found code bits 8"),
        ({"shape": [2]}, "found map entries 3"),
        ({"step": 65}, "found step exponent 65"),
        ({"step": -65}, "found step exponent -65"),
        ({"order": 8}, "found order 8"),
        ({"order": 2}, "found code bits 8, expected at least 3"),
        ({"width": 0}, "found map width 0"),
        ({"width": 33}, "found map width 33"),
        ({"width": 9}, "egret:maps"),
        ({"entries": 0}, "found map entries 0"),
        ({"entries": 2**32 - 1}, "found map entries"),
        ({"bits": 2**63}, "egret:code"),
        ({"bits": 2**64 - 1}, "egret:code"),
        ({"bits": 9}, "egret:code"),
    ],
)
def test_impossible_index(changes: dict[str, Any], message: str) -> None:
    data = forge(**changes)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"^f\.egret: .*{message}"):
            Container("f.egret", data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": bytes([0b00000101, 0b11010001])}, "not filled up with zero bits"),
        ({"maps": bytes([0b00000101, 0b01010000])}, "occurs twice"),
        ({"shape": [3]}, "take 5 bits, expected 8"),
        ({"shape": [5]}, "do not end within"),
        ({"bits": 7}, "not filled up with zero bits"),
        ({"entries": 2, "maps": b"\x05"}, "beyond the value map of 2 entries"),
        ({"code": bytes([0b10000010])}, "asks for more than"),
    ],
)
def test_code_and_map_that_do_not_fit_the_record(changes: dict[str, Any], message: str) -> None:
    container = Container("f.egret", forge(**changes))
    for read in (container.quantized, container.restored):
        with pytest.raises(FormatError, match=rf"^f\.egret: tensor 'w': .*{message}"):
            read("w")
    with pytest.raises(FormatError, match=rf"^f\.egret: .*{message}"):
        container.verify()


@pytest.mark.parametrize("name", [b"a", b"w", b""])
def test_names_out_of_order_or_twice(name: bytes) -> None:
    record = struct.pack("<BBBH", 0, 5, 1, len(name)) + name + bytes(8) + bytes(4)
    with pytest.raises(FormatError, match="record 1: names are not in ascending order"):
        Container("f.egret", forge(count=2, tail=record))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("b"),
        lambda t: t.pop("egret:maps"),
        lambda t: t.update(extra=("U8", [1], b"1")),
        lambda t: t.update(b=("F16", [2], t["b"][2])),
        lambda t: t.update(b=("BF16", [1, 2], t["b"][2])),
        lambda t: t.update({"egret:code": ("I8", *t["egret:code"][1:])}),
        lambda t: t.update({"egret:network": ("U8", [1], b"1")}),
    ],
)
def test_header_that_differs_from_the_index(change: Callable[[Tensors], object]) -> None:
    tensors = split_safetensors(small_file())
    Container("f.egret", join_safetensors(dict(reversed(tensors.items()))))
    change(tensors)
    with pytest.raises(FormatError, match=r"f\.egret: tensor '"):
        Container("f.egret", join_safetensors(tensors))
