import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import crc32c as crc_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from egret.container import DTYPE_CODES, Container, RawTensor, read_container, write_container
from egret.errors import EgretError, FormatError
from egret.quantize import QuantizedTensor

DOCUMENT = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
CHAPTER = DOCUMENT.split("## Chapter 1")[1].split("## Chapter 2")[0]


# --- A decoder written from chapter 1 of docs/format.md alone, in plain Python ---


def search(pattern: str) -> tuple[str, ...]:
    found = re.search(pattern, CHAPTER)
    assert found is not None, pattern
    return found.groups()


def split_safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
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


# --- A writer of single coded tensors, to make files that the real writer never makes ---


def join_safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
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


def with_own(tensors: dict[str, Any], index: bytes, code: bytes, maps: bytes) -> bytes:
    own = {"index": index, "code": code, "maps": maps}
    return join_safetensors(
        {**tensors, **{f"egret:{k}": ("U8", [len(v)], v) for k, v in own.items()}}
    )


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
    index += struct.pack("<I", crc_reference.crc32c(index))
    return with_own({}, index, f["code"], f["maps"])


def contents(container: Container) -> tuple[Any, ...]:
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


def small_file(folder: Path) -> bytes:
    path = folder / "small.egret"
    write_container(
        path,
        {
            "w": QuantizedTensor(np.array([[0, -3, 0], [5, 0, -3]], np.int32), 8),
            "v": QuantizedTensor(np.array([7, 0, 0], np.int32), 3, "BF16"),
        },
        {"b": RawTensor("BF16", (2,), b"abcd"), "n": RawTensor("I64", (), bytes(range(8)))},
        network=b'{"name":"n"}',
    )
    return path.read_bytes()


def documented_bytes() -> bytes:
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)$", CHAPTER, re.MULTILINE)
    data = b""
    for offset, text in lines:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(text)
    return data


def test_example_of_the_document(tmp_path: Path) -> None:
    values = np.array([[0, -3, 0], [5, 0, -3]], np.int32)
    bias = np.array([1.5, -0.25], "<f4").tobytes()
    path = tmp_path / "example.egret"
    write_container(
        path, {"w": QuantizedTensor(values, 8)}, {"b": RawTensor("F32", (2,), bias)}, order=0
    )
    assert path.read_bytes() == documented_bytes()
    assert len(documented_bytes()) == 355
    coded, raw, network = decode_by_the_document(documented_bytes())
    expected = [Fraction(int(value), 256) for value in values.reshape(-1)]
    assert coded == {"w": ("F32", [2, 3], expected)}
    assert raw == {"b": ("F32", [2], bias)}
    assert network is None


def test_dtype_numbers_are_those_of_the_document() -> None:
    numbers, names = search(r"\| dtype \| (0 .*) \|\n.*\n\| name \| (.*) \|")
    table = zip(names.split(" | "), map(int, numbers.split(" | ")), strict=True)
    assert dict(table) == DTYPE_CODES


SHAPES = st.lists(st.integers(0, 5), max_size=3)
TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda n: n != "__metadata__"),
    st.tuples(
        SHAPES,
        st.sampled_from(["F32", "F16", "BF16", "F64"]),
        st.integers(-64, 64),
        st.sampled_from([1, 100, 2**25]),
    ),
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(TENSORS, st.one_of(st.none(), st.binary(max_size=9)), st.sampled_from([None, 0, 3, 7]))
def test_round_trip_and_the_independent_decoder(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, Any],
    network: bytes | None,
    order: int | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.egret"
    random = np.random.default_rng(5)
    coded = {
        name: QuantizedTensor(
            np.rint(random.laplace(0, spread, shape)).astype(np.int32), step, dtype
        )
        for name, (shape, dtype, step, spread) in tensors.items()
    }
    raw = {f"{name}!": RawTensor("U8", (len(name),), bytes(len(name))) for name in tensors}
    raw = {name: tensor for name, tensor in raw.items() if name not in coded}
    write_container(path, coded, raw, network=network, order=order)
    container = read_container(path)
    assert container.names == tuple(sorted((*coded, *raw), key=str.encode))
    assert container.network == network
    for name, tensor in coded.items():
        found = container.quantized(name)
        np.testing.assert_array_equal(found.values, tensor.values)
        assert found.values.shape == tensor.values.shape
        assert (found.step_log2, found.dtype) == (tensor.step_log2, tensor.dtype)
    independent, independent_raw, independent_network = decode_by_the_document(path.read_bytes())
    assert independent_network == network
    assert set(independent_raw) == set(raw)
    for name, tensor in coded.items():
        dtype, shape, weights = independent[name]
        assert (dtype, shape) == (tensor.dtype, list(tensor.shape))
        assert weights == [
            Fraction(int(value)) / Fraction(2) ** tensor.step_log2
            for value in tensor.values.reshape(-1)
        ]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = QuantizedTensor(np.arange(6, dtype=np.int32), 8)
    second = QuantizedTensor(np.arange(4, dtype=np.int32), 8)
    raw = {"x": RawTensor("U8", (1,), b"1"), "y": RawTensor("F64", (1,), bytes(8))}
    write_container(tmp_path / "1", {"a": first, "b": second}, raw)
    write_container(tmp_path / "2", {"b": second, "a": first}, dict(reversed(raw.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_safetensors_library_opens_it(tmp_path: Path) -> None:
    bias = np.array([1.5, 2.5], np.float32)
    write_container(
        tmp_path / "c.egret",
        {"w": QuantizedTensor(np.zeros((2, 2), np.int32), 8)},
        {"b": RawTensor.from_array(bias)},
    )
    with safe_open(tmp_path / "c.egret", framework="numpy") as file:
        assert set(file.keys()) == {"b", "egret:code", "egret:index", "egret:maps"}
        assert file.get_tensor("b").tolist() == bias.tolist()


def test_the_order_with_the_fewest_bits_is_chosen(tmp_path: Path) -> None:
    values = np.random.default_rng(6).integers(-500, 500, 3000).astype(np.int32)
    bits = {}
    for order in range(8):
        write_container(tmp_path / "c", {"w": QuantizedTensor(values, 8)}, {}, order=order)
        record = read_container(tmp_path / "c").record("w")
        assert record.order == order
        bits[order] = record.code_bits
    write_container(tmp_path / "c", {"w": QuantizedTensor(values, 8)}, {})
    assert read_container(tmp_path / "c").record("w").code_bits == min(bits.values())


def test_restores_every_dtype(tmp_path: Path) -> None:
    values = np.array([-300, -1, 0, 1, 255, 4096], np.int32)
    coded = {
        dtype: QuantizedTensor(values if dtype != "BF16" else values[1:], 8, dtype)
        for dtype in ("F32", "F16", "BF16", "F64")
    }
    write_container(tmp_path / "c", coded, {})
    container = read_container(tmp_path / "c")
    state = container.state()
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.float32, "F64": np.float64}
    for dtype, kind in kinds.items():
        assert container.restored(dtype).dtype == dtype
        assert state[dtype].dtype == kind
        assert state[dtype].tolist() == [v / 256 for v in coded[dtype].values.tolist()]
        state[dtype][0] = 1


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    for size in range(len(data)):
        with pytest.raises(FormatError, match=r"^f\.egret: "):
            Container("f.egret", data[:size])
    for more in (b"\0", b"x" * 9):
        with pytest.raises(FormatError):
            Container("f.egret", data + more)


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    expected = contents(Container("f.egret", data))
    messages = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = contents(Container("f.egret", bytes(damaged)))
        except FormatError as error:
            messages.append(str(error))
        else:
            assert found == expected, f"bit {bit} changed the content unnoticed"
    assert len(messages) >= 8 * len(data) - 16
    assert all(re.fullmatch(r"f\.egret: .+", message) for message in messages)


def test_damage_names_the_tensor(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    tensors = split_safetensors(data)
    for stored, message in (
        ("egret:code", "tensor 'v': code"),
        ("egret:maps", "tensor 'v': value map"),
        ("egret:network", "network"),
        ("egret:index", "index"),
        ("n", "tensor 'n'"),
    ):
        dtype, shape, content = tensors[stored]
        changed = content[:-1] if stored == "egret:index" else content[1:]
        extra = b"\xff" if stored == "egret:index" else bytes([content[0] ^ 1])
        changed = changed + extra if stored == "egret:index" else extra + changed
        with pytest.raises(FormatError, match=rf"f\.egret: {message}: damaged: its CRC"):
            Container("f.egret", join_safetensors({**tensors, stored: (dtype, shape, changed)}))


def test_the_forged_file_is_good() -> None:
    assert contents(Container("f", forge()))[1] == {"w": ([0, 5, 0, -3], 8, "F32")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"EGRU"}, "found magic"),
        ({"version": 2}, "found format version 2, this Egret reads version 1"),
        ({"flags": 2}, "flags 0x0002"),
        ({"flags": 1}, "tensor 'egret:network' is missing"),
        ({"network_bytes": 1}, "flags"),
        ({"count": 0}, "goes on after its last record"),
        ({"count": 2}, "ends within a record"),
        ({"count": 2**32 - 1}, "ends within a record"),
        ({"cut": 1}, "ends within a record"),
        ({"tail": b"\0"}, "goes on after"),
        ({"kind": 2}, "found kind 2"),
        ({"kind": 0}, "goes on after"),
        ({"dtype": 99}, "dtype number 99"),
        ({"dtype": 4}, "expected a floating type"),
        ({"name": b"\xff"}, "not UTF-8"),
        ({"name": b"egret:x"}, "reserved"),
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
        ({"bits": 9}, "egret:code"),
    ],
)
def test_impossible_index(changes: dict[str, Any], message: str) -> None:
    data = forge(**changes)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
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
    with pytest.raises(FormatError, match=rf"^f\.egret: tensor 'w': .*{message}"):
        container.quantized("w")


@pytest.mark.parametrize("name", [b"a", b"w", b""])
def test_names_out_of_order_or_twice(name: bytes) -> None:
    record = struct.pack("<BBBH", 0, 5, 1, len(name)) + name + bytes(8) + bytes(4)
    with pytest.raises(FormatError, match="record 1: names are not in ascending order"):
        Container("f.egret", forge(count=2, tail=record))


def test_a_header_key_that_occurs_twice() -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    with pytest.raises(FormatError, match="a key occurs twice"):
        Container("f.egret", len(header).to_bytes(8, "little") + header + b"x")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a":1}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}',
        b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"Q8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
        b'{"a":' + b"[" * 100_000,
        b'{"\xff":1}',
        b'{"a":NaN}',
    ],
)
def test_hostile_safetensors_header(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + b"\0"
    with pytest.raises(FormatError, match=r"^f\.egret: "):
        Container("f.egret", data)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("b"),
        lambda t: t.pop("egret:maps"),
        lambda t: t.update(extra=("U8", [1], b"1")),
        lambda t: t.update(b=("F16", [2], t["b"][2])),
        lambda t: t.update(b=("BF16", [1, 2], t["b"][2])),
        lambda t: t.update({"egret:code": ("I8", *t["egret:code"][1:])}),
        lambda t: t.update({"egret:code": ("U8", [1], b"1")}),
    ],
)
def test_header_that_differs_from_the_index(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    tensors = split_safetensors(small_file(tmp_path))
    Container("f.egret", join_safetensors(dict(reversed(tensors.items()))))
    change(tensors)
    with pytest.raises(FormatError, match=r"f\.egret: tensor '"):
        Container("f.egret", join_safetensors(tensors))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the file is empty"):
        Container("f.egret", b"")
    with pytest.raises(FormatError, match="not a safetensors file"):
        Container("f.egret", b"\x89PNG\r\n\x1a\n and more")
    with pytest.raises(FormatError, match="not an Egret container"):
        Container("f.egret", join_safetensors({"a": ("U8", [1], b"1")}))
    with pytest.raises(EgretError, match=r"none\.egret: cannot read this file: No such file"):
        read_container(tmp_path / "none.egret")


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    tensor = QuantizedTensor(np.zeros(2, np.int32), 8)
    path = tmp_path / "c.egret"
    for name in ("egret:x", "__metadata__", "n" * 70_000, "\ud800"):
        with pytest.raises(EgretError, match=r"c\.egret: tensor "):
            write_container(path, {name: tensor}, {})
    with pytest.raises(EgretError, match="both coded and raw"):
        write_container(path, {"w": tensor}, {"w": RawTensor("U8", (0,), b"")})
    with pytest.raises(EgretError, match="order 8"):
        write_container(path, {"w": tensor}, {}, order=8)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names(tmp_path: Path) -> None:
    small_file(tmp_path)
    container = read_container(tmp_path / "small.egret")
    with pytest.raises(EgretError, match="no coded tensor 'b'"):
        container.quantized("b")
    with pytest.raises(EgretError, match="no raw tensor 'w'"):
        container.raw("w")


def test_raw_tensor_checks_its_parts() -> None:
    with pytest.raises(FormatError, match="found 3 bytes for BF16"):
        RawTensor("BF16", (2,), b"abc")
    with pytest.raises(FormatError, match="dtype 'F4'"):
        RawTensor("F4", (2,), b"a")


def test_bf16_rounds_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(7).normal(0, 1, 2000).astype(np.float32)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    found = RawTensor.from_array(values, "BF16")
    assert found.data == expected.view(torch.uint8).numpy().tobytes()
    np.testing.assert_array_equal(found.array(), expected.float().numpy())
