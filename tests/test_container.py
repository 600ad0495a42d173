"""The container, version 2; tests/test_independent_decoder.py holds it against a second reader."""

import json
import re
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import crc32c as crc_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from tests import handmade, independent_decoder
from tests.handmade import Record, alias, coded, listed_bytes, pack_bits, raw, varint

from egret import codec, safetensors_file
from egret.codebook import Codebook
from egret.container import (
    DTYPE_CODES,
    AliasRecord,
    CodedRecord,
    Container,
    RawEntry,
    RawRecord,
    RawTensor,
    read_container,
    write_container,
)
from egret.errors import EgretError, FormatError
from egret.prefix_code import PrefixCode
from egret.quantize import QuantizedTensor
from egret.safetensors_file import Bytes, HeaderEntry, StreamedTensor

DOCUMENT = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
CHAPTER = DOCUMENT.split("## Chapter 1")[1].split("## Chapter 2")[0]
EXAMPLES = CHAPTER.split("### Examples")[1]

ZIGZAG = Codebook(PrefixCode.golomb(0))
EG0 = pack_bits("00 000 00")

Tensors = Mapping[str, QuantizedTensor | RawTensor | str]


def chunk_crcs(code: NDArray[np.uint8], bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    ends = np.cumsum((bits.astype(np.int64) + 7) // 8).tolist()
    crcs = [
        crc_reference.crc32c(code[start:end].tobytes())
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return np.array(crcs, np.uint32)


def write(
    path: Path,
    tensors: Tensors,
    *,
    book: Codebook = ZIGZAG,
    chunk: int = 4,
    network: bytes | None = None,
) -> bytes:
    """Write coded tensors by one codebook, raw ones, and aliases, given by their targets' names."""
    records: list[CodedRecord | RawEntry | AliasRecord] = []
    codes = []
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].encode()):
        if isinstance(tensor, str):
            records.append(AliasRecord(name, tensor))
        elif isinstance(tensor, RawTensor):
            blocks: Callable[[], list[Bytes]] = partial(list, [tensor.data])
            records.append(RawEntry(name, tensor.dtype, tensor.shape, blocks))
        else:
            code, bits = codec.encode(tensor.values.reshape(-1), book, chunk)
            codes.append(code)
            step, crcs = tensor.step_log2, chunk_crcs(code, bits)
            records.append(
                CodedRecord(name, tensor.dtype, tensor.shape, step, 0, chunk, bits, crcs)
            )
    write_container(path, records, [book.data], codes, network=network)
    return path.read_bytes()


def contents(container: Container) -> tuple[Any, ...]:
    """Read everything, each part in two ways."""
    container.verify()
    tensors: dict[str, Any] = {}
    for name in container.names:
        record = container.record(name)
        restored = container.restored(name)
        assert (restored.dtype, restored.shape) == (record.dtype, record.shape)
        if isinstance(record, RawRecord):
            tensors[name] = (record.dtype, record.shape, bytes(container.raw(name).data))
        else:
            tensor = container.quantized(name)
            tensors[name] = (tensor.dtype, tensor.shape, tensor.values.tolist(), tensor.step_log2)
        tensors[name] = (*tensors[name], bytes(restored.data), container.target(name))
    return container.network, tensors


def small_tensors() -> dict[str, QuantizedTensor | RawTensor | str]:
    return {
        "b": RawTensor("BF16", (2,), b"abcd"),
        "n": RawTensor("I64", (), bytes(range(8))),
        "v": QuantizedTensor(np.array([7, 0, 0, 1, -1], np.int32), 3, "BF16"),
        "w": QuantizedTensor(np.array([[0, -3, 0], [5, 0, -3]], np.int32), 8),
        "w.tied": "w",
        "w.tied too": "w",
        "x": QuantizedTensor(np.array(-128, np.int32), 0, "I8"),
        "é": QuantizedTensor(np.empty((0, 4), np.int32), -2, "F64"),
    }


def small_file(folder: Path) -> bytes:
    return write(folder / "small.egret", small_tensors(), network=b'{"name":"n"}')


# --- The document's examples ---


def documented_bits(label: str) -> list[bytes]:
    return [
        pack_bits(text) for text in re.findall(rf"^{label}  +([01 ]+)$", EXAMPLES, re.MULTILINE)
    ]


DENSE = np.array([[0, -3, 0], [5, 0, -3]], np.int32)
DENSE_BOOK = Codebook(PrefixCode.golomb(0), None, np.array([0, -3, 5], np.int32), "set")
SPARSE = np.zeros((3, 8), np.int32)
SPARSE[[0, 0, 1, 2, 2], [3, 5, 4, 0, 1]] = [1, -1, 2, -2, 1]
SPARSE_BOOK = Codebook(PrefixCode.table((1, 2)), PrefixCode.table((1, 3)))
BIAS = np.array([1.5, -0.25], "<f4").tobytes()


def test_examples_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "example.egret"
    dense_code, dense_bits = codec.encode(DENSE, DENSE_BOOK, 6)
    sparse_code, sparse_bits = codec.encode(SPARSE, SPARSE_BOOK, 16)
    dense_crcs, sparse_crcs = (
        chunk_crcs(dense_code, dense_bits),
        chunk_crcs(sparse_code, sparse_bits),
    )
    write_container(
        path,
        [
            RawEntry("bias", "F32", (2,), lambda: [BIAS]),
            CodedRecord("dense", "F32", (2, 3), 8, 0, 6, dense_bits, dense_crcs),
            CodedRecord("sparse", "I8", (3, 8), 0, 1, 16, sparse_bits, sparse_crcs),
            AliasRecord("sparse.tied", "sparse"),
        ],
        [DENSE_BOOK.data, SPARSE_BOOK.data],
        [dense_code, sparse_code],
    )
    data = path.read_bytes()
    assert data == listed_bytes(EXAMPLES)
    assert f"{len(data)} bytes" in EXAMPLES
    # The bits that the text spells out.
    assert documented_bits("book 0") == [DENSE_BOOK.data]
    assert documented_bits("book 1") == [SPARSE_BOOK.data]
    assert documented_bits("chunk of dense") == [dense_code.tobytes()]
    assert b"".join(documented_bits("chunk of sparse")) == sparse_code.tobytes()
    assert len(documented_bits("chunk of sparse")) == 2
    found = independent_decoder.read(data)
    assert found["bias"].data == BIAS
    assert (found["dense"].values, found["dense"].step) == (DENSE.reshape(-1).tolist(), 8)
    assert found["sparse"] == found["sparse.tied"]
    assert (found["sparse"].dtype, found["sparse"].shape) == ("I8", (3, 8))
    assert found["sparse"].values == SPARSE.reshape(-1).tolist()
    with Container(path) as container:
        assert container.raw("bias").array().tolist() == [1.5, -0.25]
        np.testing.assert_array_equal(container.quantized("dense").values, DENSE)
        np.testing.assert_array_equal(container.quantized("sparse.tied").values, SPARSE)


def test_ranked_map_of_the_document() -> None:
    (data,) = documented_bits("book")
    values = [int(text) for text in re.findall(r"^values +([-0-9 ]+)$", EXAMPLES, re.M)[0].split()]
    book = Codebook.from_bytes(data)
    assert book.values is not None
    assert book.values.tolist() == values
    level = PrefixCode.table((0, 1, 2))
    assert Codebook(level, None, np.array(values, np.int32), "ranked").data == data


def test_dtype_numbers_are_those_of_the_document() -> None:
    found = re.search(r"\| dtype \| (0 .*) \|\n.*\n\| name \| (.*) \|", CHAPTER)
    assert found is not None
    table = zip(found[2].split(" | "), map(int, found[1].split(" | ")), strict=True)
    assert dict(table) == DTYPE_CODES


# --- Round trips ---

SHAPES = st.lists(st.integers(0, 5), max_size=3)
NAMES = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.lists(st.sampled_from(["layer", ".1", ".10", "é", "ê", "weight"]), max_size=4).map("".join),
).filter(lambda name: name != "__metadata__" and not name.startswith("egret:"))
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(
        SHAPES,
        st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "I16", "U16", "I32", "raw"]),
        st.integers(-64, 64),
        st.sampled_from([1, 30, 2**20]),
    ),
    max_size=6,
)
LIMITS = {
    "I8": (-128, 127),
    "U8": (0, 255),
    "I16": (-(2**15), 2**15 - 1),
    "U16": (0, 2**16 - 1),
    "I32": (-(2**23), 2**23 - 1),
}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(TENSORS, st.one_of(st.none(), st.binary(max_size=9)), st.integers(1, 9), st.booleans())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: dict[str, Any],
    network: bytes | None,
    chunk: int,
    run_form: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.egret"
    random = np.random.default_rng(5)
    tensors: dict[str, QuantizedTensor | RawTensor | str] = {}
    for name, (shape, dtype, step, spread) in drawn.items():
        if dtype == "raw":
            tensors[name] = RawTensor.from_array(random.normal(size=shape))
            continue
        low, high = LIMITS.get(dtype, (-(2**23), 2**23 - 1))
        values = np.rint(random.laplace(0, spread, shape)).clip(low, high)
        values = np.asarray(values, np.int32)
        tensors[name] = QuantizedTensor(values, 0 if dtype in LIMITS else step, dtype)
    for name in list(tensors):
        if name + "'" not in tensors and len(name) < 3:
            tensors[name + "'"] = name
    book = Codebook(PrefixCode.golomb(1), PrefixCode.golomb(0)) if run_form else ZIGZAG
    data = write(path, tensors, book=book, chunk=chunk, network=network)
    expected = independent_decoder.read(data)
    assert set(expected) == set(tensors)
    with read_container(path) as container:
        container.verify()
        assert container.names == tuple(sorted(tensors, key=str.encode))
        assert container.network == network
        for name, given_tensor in tensors.items():
            tensor = given_tensor
            assert container.is_alias(name) == isinstance(tensor, str)
            if isinstance(tensor, str):
                assert container.target(name) == tensor
                tensor = tensors[tensor]
                assert name not in container.coded_names + container.raw_names
            assert bytes(container.restored(name).data) == expected[name].restored()
            if isinstance(tensor, RawTensor):
                found = container.raw(name)
                assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
                assert bytes(found.data) == bytes(tensor.data)
                continue
            assert isinstance(tensor, QuantizedTensor)
            quantized = container.quantized(name)
            np.testing.assert_array_equal(quantized.values, tensor.values)
            assert quantized.shape == tensor.shape
            assert (quantized.step_log2, quantized.dtype) == (tensor.step_log2, tensor.dtype)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = small_tensors()
    first = write(tmp_path / "1", tensors)
    assert write(tmp_path / "2", dict(reversed(tensors.items()))) == first


def test_the_order_in_the_file(tmp_path: Path) -> None:
    tensors: dict[str, QuantizedTensor | RawTensor | str] = {
        name: RawTensor(dtype, (1,), bytes(size))
        for name, dtype, size in (("z", "F64", 8), ("a", "U8", 1), ("b", "F16", 2), ("c", "I64", 8))
    }
    data = write(tmp_path / "c", {**tensors, "w": QuantizedTensor(DENSE, 8)}, network=b"")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    own = [f"egret:{name}" for name in ("code", "books", "network", "index")]
    assert list(header) == ["c", "z", "b", "a", *own]
    # Spaces fill the header up, so that wide elements lie at multiples of their size.
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_the_safetensors_library_opens_it(tmp_path: Path) -> None:
    bias = np.array([1.5, 2.5], np.float32)
    half = np.arange(3, dtype=np.float16)
    tensors: Tensors = {
        "b": RawTensor.from_array(bias),
        "h": RawTensor.from_array(half),
        "w": QuantizedTensor(DENSE, 8),
        "w.tied": "w",
    }
    write(tmp_path / "c.egret", tensors)
    with safe_open(tmp_path / "c.egret", framework="numpy") as file:
        assert set(file.keys()) == {"b", "h", "egret:code", "egret:index", "egret:books"}
        assert file.get_tensor("b").tolist() == bias.tolist()
        assert file.get_tensor("h").tolist() == half.tolist()


def test_thousands_of_tensors(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    tensors: dict[str, QuantizedTensor | RawTensor | str] = {}
    for layer in range(1000):
        values = random.integers(-9, 10, (2, 3)).astype(np.int32)
        tensors[f"model.layers.{layer}.attention.weight"] = QuantizedTensor(values, 8)
        tensors[f"model.layers.{layer}.bias"] = RawTensor("F32", (1,), random.bytes(4))
        tensors[f"model.layers.{layer}.tied"] = f"model.layers.{layer}.attention.weight"
    write(tmp_path / "c", tensors)
    with read_container(tmp_path / "c") as container:
        assert len(container.names) == 3000
        # Names in full would take more than this for each tensor.
        assert container.index_bytes < 25 * 3000
        container.verify()
        for name, tensor in tensors.items():
            if isinstance(tensor, RawTensor):
                assert bytes(container.raw(name).data) == bytes(tensor.data)
            else:
                stored = tensors[tensor] if isinstance(tensor, str) else tensor
                assert isinstance(stored, QuantizedTensor)
                np.testing.assert_array_equal(container.quantized(name).values, stored.values)


def test_restores_every_dtype(tmp_path: Path) -> None:
    values = np.array([-300, -1, 0, 1, 255, 4096], np.int32)
    tensors = {
        dtype: QuantizedTensor(values if dtype != "BF16" else values[1:], 8, dtype)
        for dtype in ("F32", "F16", "BF16", "F64")
    }
    for dtype, (low, high) in LIMITS.items():
        tensors[dtype] = QuantizedTensor(np.array([low, 0, high], np.int32), 0, dtype)
    stored = RawTensor("I64", (1,), bytes(8))
    write(tmp_path / "c", {**tensors, "raw": stored, "tied": "F32"})
    container = read_container(tmp_path / "c")
    state = container.state()
    kinds = {"F32": "f4", "F16": "f2", "BF16": "f4", "F64": "f8"}
    kinds |= {"I8": "i1", "U8": "u1", "I16": "i2", "U16": "u2", "I32": "i4"}
    for dtype, kind in kinds.items():
        assert container.restored(dtype).dtype == dtype
        assert state[dtype].dtype == np.dtype(kind)
        scale = 2 ** tensors[dtype].step_log2
        assert state[dtype].tolist() == [v / scale for v in tensors[dtype].values.tolist()]
        state[dtype][0] = 1
    assert state["tied"] is state["F32"]
    state["raw"][0] = 1
    assert container.raw("raw").array().tolist() == [0]
    assert list(state) == list(container.names)


def test_weights_beyond_the_dtype_become_infinite(tmp_path: Path) -> None:
    values = np.array([65504, 65519, 65520, -(2**23)], np.int32)
    write(tmp_path / "c", {"w": QuantizedTensor(values, 0, "F16")})
    with read_container(tmp_path / "c") as container:
        assert container.restored("w").array().tolist() == [65504, 65504, np.inf, -np.inf]


def test_extreme_steps_are_exact(tmp_path: Path) -> None:
    values = np.array([2**23 - 1, -(2**23), 1], np.int32)
    tensors = {
        f"{dtype}{step}": QuantizedTensor(values, step, dtype)
        for dtype in ("F32", "F64")
        for step in (-64, 64)
    }
    write(tmp_path / "c", tensors)
    with read_container(tmp_path / "c") as container:
        for name, tensor in tensors.items():
            found = container.restored(name).array().tolist()
            assert found == [v * 2.0**-tensor.step_log2 for v in values.tolist()]


def test_a_raw_tensor_without_a_numpy_type(tmp_path: Path) -> None:
    write(tmp_path / "c.egret", {"f": RawTensor("F8_E4M3", (1,), b"x")})
    container = read_container(tmp_path / "c.egret")
    assert bytes(container.restored("f").data) == b"x"
    with pytest.raises(FormatError, match=r"c\.egret: tensor 'f': NumPy has no type for"):
        container.state()


# --- Reading a part ---


def many_chunks(folder: Path) -> tuple[Path, NDArray[np.int32], Codebook]:
    values = np.random.default_rng(3).integers(-20, 21, (40, 5)).astype(np.int32)
    path = folder / "chunks.egret"
    write(path, {"a": QuantizedTensor(values[:1], 8), "w": QuantizedTensor(values, 8)}, chunk=10)
    return path, values, ZIGZAG


def test_row_blocks(tmp_path: Path) -> None:
    path, values, _ = many_chunks(tmp_path)
    with read_container(path) as container:
        for first in range(41):
            for last in range(first, 41):
                block = container.quantized("w", rows=(first, last), threads=1 + last % 3)
                np.testing.assert_array_equal(block.values, values[first:last])
                assert block.shape == (last - first, 5)
        for rows in ((-1, 2), (3, 2), (0, 41), (41, 41)):
            with pytest.raises(EgretError, match=r"chunks\.egret: tensor 'w': found rows"):
                container.quantized("w", rows=rows)


def test_rows_of_odd_shapes(tmp_path: Path) -> None:
    tensors = {
        "scalar": QuantizedTensor(np.array(3, np.int32), 8),
        "line": QuantizedTensor(np.arange(9, dtype=np.int32), 8),
        "none": QuantizedTensor(np.empty((0, 3), np.int32), 8),
        "flat": QuantizedTensor(np.empty((3, 0), np.int32), 8),
        "deep": QuantizedTensor(np.arange(60, dtype=np.int32).reshape(5, 3, 4), 8),
    }
    write(tmp_path / "c", tensors)
    with read_container(tmp_path / "c") as container:
        for name in ("line", "none", "flat", "deep"):
            values = tensors[name].values
            for first in range(len(values) + 1):
                found = container.quantized(name, rows=(first, len(values))).values
                np.testing.assert_array_equal(found, values[first:])
        with pytest.raises(EgretError, match=r"tensor 'scalar': found rows 0 to 0, expected some"):
            container.quantized("scalar", rows=(0, 0))


def test_threads_find_the_same(tmp_path: Path) -> None:
    path, values, _ = many_chunks(tmp_path)
    with read_container(path) as container:
        for threads in (1, 2, 3, 64):
            found = container.quantized("w", threads=threads).values
            np.testing.assert_array_equal(found, values)
            assert bytes(container.restored("w", threads=threads).data) == bytes(
                RawTensor.from_array(values / np.float32(256), "F32").data
            )
            container.verify(threads=threads)


def damage(path: Path, tensor: str, place: int) -> None:
    """Flip a bit of a byte of one of the container's own tensors."""
    data = bytearray(path.read_bytes())
    entry = safetensors_file.parse_header(bytes(data), path, len(data))[tensor]
    data[entry.start + place] ^= 0x10
    path.write_bytes(data)


def test_damage_is_found_in_the_chunk_that_has_it(tmp_path: Path) -> None:
    path, values, _ = many_chunks(tmp_path)
    with read_container(path) as container:
        record = container.record("w")
        assert isinstance(record, CodedRecord)
        assert (record.chunk, record.chunks, record.size) == (10, 20, 200)
        first = container.record("a")
        assert isinstance(first, CodedRecord)
        place = first.code_bytes + int(record.chunk_bytes[:7].sum())
    damage(path, "egret:code", place)
    # Opening reads no code; chunk 7 holds the rows 14 and 15.
    with read_container(path) as container:
        for rows in ((0, 14), (16, 40)):
            found = container.quantized("w", rows=rows).values
            np.testing.assert_array_equal(found, values[slice(*rows)])
        np.testing.assert_array_equal(container.quantized("a").values, values[:1])
        message = rf"^{re.escape(str(path))}: tensor 'w': chunk 7: damaged: its CRC does not match$"
        for threads in (1, 2):
            for block in (None, (14, 15), (3, 40)):
                with pytest.raises(FormatError, match=message):
                    container.quantized("w", rows=block, threads=threads)
            with pytest.raises(FormatError, match=message):
                container.verify(threads=threads)
            with pytest.raises(FormatError, match=message):
                container.restored("w", threads=threads)


def test_opening_reads_neither_code_nor_raw_tensors_nor_network(tmp_path: Path) -> None:
    small_file(tmp_path)
    path = tmp_path / "small.egret"
    for tensor in ("egret:code", "egret:network", "b"):
        damage(path, tensor, 0)
    with read_container(path) as container:
        assert container.names == tuple(small_tensors())
        for read, message in (
            (lambda: container.quantized("v"), "tensor 'v': chunk 0"),
            (lambda: container.network, "network"),
            (lambda: container.raw("b"), "tensor 'b'"),
            (lambda: container.restored("b"), "tensor 'b'"),
        ):
            with pytest.raises(FormatError, match=rf"small\.egret: {message}: damaged: its CRC"):
                read()
        assert container.raw("n").array() == int.from_bytes(bytes(range(8)), "little")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [("egret:books", "codebooks: damaged: their CRC"), ("egret:index", "index: damaged: its CRC")],
)
def test_opening_checks_index_and_codebooks(tmp_path: Path, tensor: str, message: str) -> None:
    small_file(tmp_path)
    damage(tmp_path / "small.egret", tensor, 0 if tensor == "egret:books" else 30)
    with pytest.raises(FormatError, match=rf"small\.egret: {message} does not match$"):
        read_container(tmp_path / "small.egret")


def test_closing(tmp_path: Path) -> None:
    small_file(tmp_path)
    with read_container(tmp_path / "small.egret") as container:
        kept = container.raw("b")
    assert bytes(kept.data) == b"abcd"
    container.close()
    assert container.names == tuple(small_tensors())
    for read in (
        lambda: container.raw("b"),
        lambda: container.quantized("w"),
        lambda: container.restored("w"),
        lambda: container.network,
        lambda: container.book(0),
        container.verify,
        container.state,
    ):
        with pytest.raises(EgretError, match=r"small\.egret: this container has been closed"):
            read()


def test_what_the_container_says_of_itself(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    stored = independent_decoder.read_safetensors(data)
    with read_container(tmp_path / "small.egret") as container:
        assert container.file_bytes == len(data)
        assert container.index_bytes == len(stored["egret:index"].data)
        assert container.books_bytes == len(stored["egret:books"].data)
        assert container.coded_names == ("v", "w", "x", "é")
        assert container.raw_names == ("b", "n")
        record = container.record("w.tied")
        assert isinstance(record, CodedRecord)
        assert (record.name, record.dtype, record.shape) == ("w.tied", "F32", (2, 3))
        # 0 is one bit, -3 (number 5) is 00110, 5 (number 10) is 0001011.
        assert record.bits.tolist() == [1 + 5 + 1 + 7, 1 + 5]
        assert (record.code_bits, record.code_bytes, record.chunks) == (20, 3, 2)
        raw_record = container.record("n")
        assert isinstance(raw_record, RawRecord)
        assert (raw_record.size, raw_record.data_bytes) == (1, 8)
        assert container.book(0) is container.book(record.book)


def test_unknown_names(tmp_path: Path) -> None:
    small_file(tmp_path)
    container = read_container(tmp_path / "small.egret")
    with pytest.raises(EgretError, match="no coded tensor 'b'"):
        container.quantized("b")
    with pytest.raises(EgretError, match=r"no raw tensor 'w\.tied'"):
        container.raw("w.tied")
    for read in (
        container.quantized,
        container.raw,
        container.restored,
        container.record,
        container.target,
        container.is_alias,
    ):
        with pytest.raises(EgretError, match=r"small\.egret: there is no tensor 'egret:code'"):
            read("egret:code")
    for number in (-1, 1):
        with pytest.raises(EgretError, match=rf"small\.egret: there is no codebook {number}"):
            container.book(number)


def test_more_codebooks_than_are_kept() -> None:
    books = [pack_bits(f"00 {order:03b} 00") for order in range(8)] * 5
    records = [coded(f"{n:02}", [1], [handmade.golomb(n, n % 8)], book=n) for n in range(40)]
    container = Container("f.egret", handmade.Container(records, books).file())
    first = container.book(0)
    for n in [*range(40), *range(40)]:
        values = container.quantized(f"{n:02}").values
        assert values.tolist() == [handmade.unzigzag(n)]
        assert container.book(n).name == f"eg-{n % 8}"
    # Only some are kept.
    assert container.book(0) is not first


# --- Damage ---


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    for size in range(len(data)):
        with pytest.raises(FormatError, match=r"^f\.egret: "):
            Container("f.egret", data[:size])
    for more in (b"\0", b"x" * 9):
        with pytest.raises(FormatError):
            Container("f.egret", data + more)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"^f\.egret: .+$"):
            contents(Container("f.egret", bytes(damaged)))


def record(body: bytes) -> handmade.Container:
    """A container of one coded tensor `w` with these fields between its name and its chunk's."""
    rest = struct.pack("<II", 4, crc_reference.crc32c(b"\xa0"))
    return handmade.Container([Record(b"w", 1, body + rest, code=b"\xa0")], [EG0])


W = coded("w", [2], ["1 010"])
GOOD = handmade.Container([W], [EG0])
EMPTY = raw("b", "U8", (0,), b"")


def test_the_handmade_file_is_good() -> None:
    container = Container("f.egret", GOOD.file())
    assert contents(container)[1]["w"][:4] == ("F32", (2,), [0, -1], 0)
    assert (
        record(b"\0\1\2\0\0\2").file()
        == replace(GOOD, records=[coded("w", [2], ["1 010"], chunk=2)]).file()
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (replace(GOOD, magic=b"EGRU"), "index: found magic b'EGRU', expected b'EGRT'"),
        (replace(GOOD, version=3), "index: found format version 3, this Egret reads versions 1 an"),
        (replace(GOOD, version=0x102), "found format version 258"),
        (replace(GOOD, flags=2), "index: found flags 0x0002"),
        (replace(GOOD, flags=1), "tensor 'egret:network' is missing"),
        (replace(GOOD, network=b"", flags=0), "tensor 'egret:network' is not in the index"),
        (replace(GOOD, network_crc=1), "found a network CRC"),
        (replace(GOOD, record_count=0), "index: goes on after its last record"),
        (replace(GOOD, record_count=2), "index: ends within a record"),
        (replace(GOOD, record_count=2**32 - 1), "index: ends within a record"),
        (replace(GOOD, book_count=2**32 - 1), "index: "),
        (replace(GOOD, book_sizes=[varint(2**62)]), "tensor 'egret:books': found U8 of shape"),
        (replace(GOOD, book_sizes=[b"\x80\x00"]), "ends with a group that is zero"),
        (replace(GOOD, book_sizes=[b"\xff" * 9]), "a varint of 2^63 or more"),
        (replace(GOOD, index_end=b"\0"), "index: goes on after"),
        (replace(GOOD, code_end=b"\0"), "'egret:code': found U8 of shape [2], expected U8 of"),
        (replace(GOOD, records=[replace(W, kind=3)]), "index: tensor 'w': found kind 3"),
        (record(b"\x63\1\2\0\0\1"), "tensor 'w': found dtype number 99"),
        (record(b"\x09\1\2\0\0\2"), "tensor 'w': found dtype U32, expected one that can be coded"),
        (record(b"\4\1\2\1\0\2"), "tensor 'w': found step exponent 1, expected 0 to 0"),
        (record(b"\0\1\2\x41\0\2"), "tensor 'w': found step exponent 65, expected -64 to 64"),
        (record(b"\0\1\2\xbf\0\2"), "tensor 'w': found step exponent -65"),
        (record(b"\0\1\2\0\1\2"), "tensor 'w': found codebook 1, expected 0 to 0"),
        (record(b"\0\1\2\0\0\0"), "tensor 'w': found weights in a chunk 0, expected 1 to 65536"),
        (record(b"\0\1\2\0\0\x81\x80\4"), "tensor 'w': found weights in a chunk 65537"),
        (record(b"\0\x21" + b"\1" * 33 + b"\0\0\2"), "tensor 'w': shape [1, 1, 1"),
        (record(b"\0\2" + 2 * varint(2**60) + b"\0\0\2"), "is too large"),
        (record(b"\0\2" + varint(2**61) + b"\0\0\0\2"), "is too large"),
        (record(b"\0\1" + varint(2**59) + b"\0\0\1"), "index: ends within a record"),
        (record(b"\0\1" + varint(2**33) + b"\0\0\x80\x80\4"), "index: ends within a record"),
        (replace(GOOD, records=[W, W]), "index: record 1: names are not in ascending order"),
        (replace(GOOD, records=[W, EMPTY]), "record 1: names are not in ascending order"),
        (replace(GOOD, records=[replace(W, name=b"\xff")]), "record 0: the name is not UTF-8"),
        (replace(GOOD, records=[replace(W, name=b"egret:w")]), "'egret:w': the name is reserved"),
        (replace(GOOD, records=[replace(W, name=b"__metadata__")]), "the name is reserved"),
        (replace(GOOD, records=[replace(W, shared=1)]), "record 0: shares 1 bytes with a name"),
        (replace(GOOD, records=[replace(W, name=b"w" * 65_536)]), "found a name of 65536 bytes"),
        (replace(GOOD, records=[W, alias("x", 1)]), "tensor 'x': is the same as tensor number 1"),
        (replace(GOOD, records=[W, alias("x", 0), alias("y", 1)]), "tensor 'y': is the same as"),
        (replace(GOOD, records=[W, alias("x", 2**62)]), "tensor 'x': is the same as tensor number"),
    ],
)  # fmt: skip
def test_impossible_index(file: handmade.Container, message: str) -> None:
    data = file.file()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"^f\.egret: .*{re.escape(message)}"):
            Container("f.egret", data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_index_that_ends_anywhere() -> None:
    index = GOOD.index()[:-4]
    for size in range(len(index)):
        tensors = [
            (name, dtype, shape, data)
            if name != "egret:index"
            else (name, "U8", [size + 4], index[:size] + crc_bytes(index[:size]))
            for name, dtype, shape, data in GOOD.tensors()
        ]
        with pytest.raises(FormatError, match=r"^f\.egret: index: (found|ends|goes)"):
            Container("f.egret", handmade.safetensors(tensors))


def crc_bytes(data: bytes) -> bytes:
    return struct.pack("<I", crc_reference.crc32c(data))


def test_names_that_share_too_much() -> None:
    """A few bytes of each name could stand for gigabytes of names."""

    def shared_names() -> Iterator[Record]:
        name = b"n" * 65_000
        yield Record(name, 1, b"\0\1\0\0\0\1")
        for number in range(1100):
            name = b"n" * 65_000 + struct.pack(">H", number).hex().encode()
            yield Record(name, 1, b"\0\1\0\0\0\1", shared=65_000)

    data = replace(GOOD, records=list(shared_names())).file()
    assert len(data) < 100_000
    with pytest.raises(FormatError, match="and 67108864 for all names"):
        Container("f.egret", data)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (replace(GOOD, books=[b""]), "tensor 'w': codebook 0: "),
        (replace(GOOD, books=[EG0 + b"\0"]), "tensor 'w': codebook 0: goes on after its end"),
        (replace(GOOD, books=[pack_bits("00 000 11")]), "tensor 'w': codebook 0: found value map"),
        (replace(GOOD, records=[coded("w", [3], ["1 010"])]), "tensor 'w': chunk 0: "),
        (replace(GOOD, records=[coded("w", [1], ["1 010"])]), "tensor 'w': chunk 0: "),
        (
            replace(GOOD, records=[coded("w", [2], ["1", "01"], chunk=1)]),
            "tensor 'w': chunk 1: ",
        ),
        (
            replace(GOOD, records=[coded("w", [1], [handmade.golomb(256)], dtype="I8")]),
            "tensor 'w': found value 128, expected -128 to 127 in I8",
        ),
        (
            replace(GOOD, records=[coded("w", [1], ["010"], dtype="U16")]),
            "tensor 'w': found value -1, expected 0 to 65535 in U16",
        ),
    ],
)  # fmt: skip
def test_code_and_codebook_that_do_not_fit(file: handmade.Container, message: str) -> None:
    container = Container("f.egret", file.file())
    for read in (container.quantized, container.restored):
        with pytest.raises(FormatError, match=rf"^f\.egret: {re.escape(message)}"):
            read("w")
    with pytest.raises(FormatError, match=rf"^f\.egret: {re.escape(message)}"):
        container.verify()


def test_a_codebook_that_no_tensor_uses() -> None:
    container = Container("f.egret", replace(GOOD, books=[EG0, b"\xff"]).file())
    assert container.quantized("w").values.tolist() == [0, -1]
    for read in (container.verify, lambda: container.book(1)):
        with pytest.raises(FormatError, match=r"^f\.egret: codebook 1: "):
            read()


def test_a_row_block_names_the_chunk_of_the_tensor() -> None:
    record = coded("w", [4], ["1", "1", "01", "1"], chunk=1)
    container = Container("f.egret", replace(GOOD, records=[record]).file())
    assert container.quantized("w", rows=(3, 4)).values.tolist() == [0]
    with pytest.raises(FormatError, match=r"^f\.egret: tensor 'w': .*chunk 2"):
        container.quantized("w", rows=(2, 3))


# --- The safetensors file around it ---


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
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
        b'{"a":' + b"[" * 100_000,
        b'{"\xff":1}',
        b'{"a":NaN}',
    ],
)
def test_hostile_safetensors_header(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + b"\0"
    with pytest.raises(FormatError, match=r"^f\.egret: "):
        safetensors_file.parse(data, "f.egret")


Stored = dict[str, tuple[str, list[int], bytes]]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("b"),
        lambda t: t.pop("egret:books"),
        lambda t: t.update(extra=("U8", [1], b"1")),
        lambda t: t.update({"w": ("F32", [1], b"1234")}),
        lambda t: t.update(b=("F16", [2], t["b"][2])),
        lambda t: t.update(b=("BF16", [1, 2], t["b"][2])),
        lambda t: t.update({"egret:code": ("I8", *t["egret:code"][1:])}),
        lambda t: t.update({"egret:code": ("U8", [1], b"1")}),
        lambda t: t.update({"egret:index": ("I8", *t["egret:index"][1:])}),
        lambda t: t.update({"egret:network": ("I8", *t["egret:network"][1:])}),
        lambda t: t.update({"egret:network": ("U8", [1, 12], t["egret:network"][2])}),
    ],
)
def test_header_that_differs_from_the_index(
    tmp_path: Path, change: Callable[[Stored], object]
) -> None:
    stored = independent_decoder.read_safetensors(small_file(tmp_path))
    tensors: Stored = {n: (e.dtype, list(e.shape), e.data) for n, e in stored.items()}

    def join(tensors: Stored) -> bytes:
        return handmade.safetensors([(name, *entry) for name, entry in tensors.items()])

    # The order is free, and metadata is ignored.
    contents(Container("f.egret", join(dict(reversed(tensors.items())))))
    change(tensors)
    with pytest.raises(FormatError, match=r"^f\.egret: tensor '"):
        Container("f.egret", join(tensors))


def test_metadata_is_ignored() -> None:
    data = GOOD.file()
    size = int.from_bytes(data[:8], "little")
    header = b'{"__metadata__":{"by":"someone"},' + data[9 : 8 + size]
    changed = struct.pack("<Q", len(header)) + header + data[8 + size :]
    assert contents(Container("f.egret", changed)) == contents(Container("f.egret", data))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the file is empty"):
        Container("f.egret", b"")
    with pytest.raises(FormatError, match="not a safetensors file"):
        Container("f.egret", b"\x89PNG\r\n\x1a\n and more")
    with pytest.raises(FormatError, match="not an Egret container"):
        Container("f.egret", handmade.safetensors([("a", "U8", [1], b"1")]))
    (tmp_path / "empty.egret").touch()
    with pytest.raises(FormatError, match=r"empty\.egret: the file is empty"):
        read_container(tmp_path / "empty.egret")
    with pytest.raises(EgretError, match=r"none\.egret: cannot read this file: No such file"):
        read_container(tmp_path / "none.egret")
    with pytest.raises(EgretError, match="cannot read this file: Is a directory"):
        read_container(tmp_path)


def test_parse_header_gives_places_in_the_file() -> None:
    tensors = [("b", "F32", [2], bytes(range(8))), ("a", "U8", [0], b""), ("c", "BF16", [], b"xy")]
    data = handmade.safetensors(tensors)
    start = len(data) - 10
    expected = {
        "b": HeaderEntry("F32", (2,), start, start + 8),
        "a": HeaderEntry("U8", (0,), start + 8, start + 8),
        "c": HeaderEntry("BF16", (), start + 8, start + 10),
    }
    for known in (data, data[:start], memoryview(data)[: start + 3]):
        assert safetensors_file.parse_header(known, "f", len(data)) == expected
    with pytest.raises(FormatError, match=r"^f: truncated: the tensors end at byte"):
        safetensors_file.parse_header(data, "f", len(data) - 1)
    with pytest.raises(FormatError, match=r"^f: truncated: the header ends at byte"):
        safetensors_file.parse_header(data, "f", start - 1)


# --- Writing ---


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    path = tmp_path / "c.egret"
    code, bits = codec.encode(DENSE, ZIGZAG, 6)
    good = CodedRecord("w", "F32", (2, 3), 8, 0, 6, bits, chunk_crcs(code, bits))
    entry = RawEntry("b", "U8", (2,), lambda: [b"12"])
    cases: list[tuple[list[CodedRecord | RawEntry | AliasRecord], str]] = [
        ([replace(good, name="egret:x")], "tensor 'egret:x': names that start with 'egret:' are"),
        ([replace(good, name="__metadata__")], "a container cannot hold this name"),
        ([replace(good, name="\ud800")], "a container cannot hold this name"),
        ([replace(entry, name="n" * 65_536)], "cannot hold this name"),
        ([good, entry], "tensor 'b': records are not in ascending order"),
        ([good, good], "tensor 'w': records are not in ascending order"),
        ([entry, replace(good, name="b")], "tensor 'b': records are not in ascending order"),
        ([replace(good, book=1)], "tensor 'w': found codebook 1, expected 0 to 0"),
        ([replace(good, step_log2=65)], "tensor 'w': found step exponent 65"),
        ([replace(good, dtype="I8")], "tensor 'w': found step exponent 8, expected 0 to 0"),
        ([replace(good, dtype="U32")], "tensor 'w': found dtype U32"),
        ([replace(good, chunk=65_537)], "tensor 'w': found weights in a chunk 65537"),
        ([replace(good, chunk=5)], "tensor 'w': found 1 lengths and 1 CRCs, expected one of each"),
        ([replace(good, crcs=good.crcs[:0])], "tensor 'w': found 1 lengths and 0 CRCs"),
        ([replace(good, shape=(2**61, 0))], "tensor 'w': shape"),
        ([replace(entry, dtype="Q8")], "found dtype 'Q8'"),
        ([AliasRecord("a", "w"), good], "tensor 'a': is the same as 'w', expected an earlier"),
        ([good, AliasRecord("x", "w"), AliasRecord("y", "x")], "tensor 'y': is the same as 'x'"),
        ([replace(entry, blocks=lambda: [b"1", b"23"]), good], "'b': found 3 bytes, expected 2"),
        ([replace(entry, shape=(3,)), good], "tensor 'b': found 2 bytes, expected 3"),
        ([replace(good, bits=bits + 8)], "tensor 'egret:code': found"),
    ]  # fmt: skip
    for records, message in cases:
        with pytest.raises(EgretError, match=message):
            write_container(path, records, [ZIGZAG.data], [code])
        assert list(tmp_path.iterdir()) == []
    names = [f"{number:05}" + "n" * 65_000 for number in range(1100)]
    with pytest.raises(EgretError, match=r"c\.egret: found names of 71505500 bytes together"):
        write_container(path, [replace(entry, name=name) for name in names], [], [])


def test_blocks_of_any_kind_and_size(tmp_path: Path) -> None:
    values = np.arange(12, dtype="<f4").reshape(3, 4)
    code, bits = codec.encode(DENSE, ZIGZAG, 6)
    record = CodedRecord("w", "F32", (2, 3), 8, 0, 6, bits, chunk_crcs(code, bits))
    whole = values.tobytes()
    kinds: list[list[Bytes]] = [
        [whole],
        [values[:1], values[1:]],
        [whole[:1], b"", bytearray(whole[1:7]), memoryview(whole)[7:], values[:0]],
    ]
    for number, blocks in enumerate(kinds):
        entry = RawEntry("r", "F32", (3, 4), partial(iter, blocks))
        bytewise = iter(code.reshape(-1, 1))
        write_container(tmp_path / f"{number}", [entry, record], [ZIGZAG.data], bytewise)
    data = {(tmp_path / f"{number}").read_bytes() for number in range(3)}
    assert len(data) == 1
    with read_container(tmp_path / "0") as container:
        container.verify()
        np.testing.assert_array_equal(container.raw("r").array(), values)


def test_memory_of_reading_and_writing_is_bounded(tmp_path: Path) -> None:
    block = bytes(1 << 20)
    count = 48
    entry = RawEntry("r", "U8", (count << 20,), lambda: (block for _ in range(count)))
    chunk = codec.MAX_CHUNK
    code, bits = codec.encode(np.full(chunk, 200, np.int32), ZIGZAG, chunk)
    crcs = chunk_crcs(code, bits)
    record = CodedRecord("w", "F32", (256, chunk), 8, 0, chunk, bits.repeat(256), crcs.repeat(256))
    with read_container_of(tmp_path / "warm"):
        pass
    tracemalloc.start()
    try:
        path = tmp_path / "c"
        write_container(path, [entry, record], [ZIGZAG.data], (code for _ in range(256)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
        size = path.stat().st_size
        assert size > 75 << 20
        with read_container(path) as container:
            assert container.raw("r").dtype == "U8"
            rows = container.quantized("w", rows=(200, 202)).values
            assert (rows == 200).all()
            del rows
            assert tracemalloc.get_traced_memory()[1] < 1 << 23
            container.verify()
            # A few chunks at a time: half of the tensor's values here, and their code.
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def read_container_of(path: Path) -> Container:
    write(path, small_tensors())
    container = read_container(path)
    container.verify()
    return container


def test_streamed_tensors_in_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors: dict[str, RawTensor | StreamedTensor] = {
        "a": StreamedTensor("F16", (2,), lambda: iter((b"\0\x3c", b"\0\x40"))),
        "b": RawTensor("F32", (1,), struct.pack("<f", 2.5)),
        "z": RawTensor("F64", (1,), bytes(8)),
    }
    safetensors_file.write(path, tensors, last=("b",))
    found = load_file(path)
    assert {name: array.tolist() for name, array in found.items()} == {
        "a": [1.0, 2.0],
        "b": [2.5],
        "z": [0.0],
    }
    data = path.read_bytes()
    header = safetensors_file.parse_header(data, path, len(data))
    assert list(header) == ["z", "a", "b"]
    short = {"a": StreamedTensor("F16", (2,), lambda: [b"abc"])}
    with pytest.raises(EgretError, match=r"w\.safetensors: tensor 'a': found 3 bytes, expected 4"):
        safetensors_file.write(path, short)
    assert path.read_bytes() == data
    with pytest.raises(FormatError, match="found dtype 'Q8'"):
        StreamedTensor("Q8", (2,), list)


def test_raw_tensor_checks_its_parts() -> None:
    with pytest.raises(FormatError, match="found 3 bytes for BF16"):
        RawTensor("BF16", (2,), b"abc")
    with pytest.raises(FormatError, match="dtype 'F4'"):
        RawTensor("F4", (2,), b"a")


def test_raw_tensors_of_arrays_are_copies() -> None:
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (plain.copy(), np.asfortranarray(plain)):
        tensor = RawTensor.from_array(array)
        assert tensor.array().tolist() == [[0, 1, 2], [3, 4, 5]]
        array[:] = 9
        assert tensor.array().tolist() == [[0, 1, 2], [3, 4, 5]]
    swapped = RawTensor.from_array(np.array([1, 2], ">i4"))
    assert bytes(swapped.data) == b"\1\0\0\0\2\0\0\0"
    for shape in ((), (0,), (3, 0, 2)):
        assert RawTensor.from_array(np.zeros(shape, np.float16)).shape == shape
        assert RawTensor.from_array(np.zeros(shape), "BF16").array().shape == shape


def test_bf16_rounds_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(7).normal(0, 1, 2000).astype(np.float32)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    found = RawTensor.from_array(values, "BF16")
    assert found.data == expected.view(torch.uint8).numpy().tobytes()
    np.testing.assert_array_equal(found.array(), expected.float().numpy())
