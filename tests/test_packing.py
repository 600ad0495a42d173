import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import egret
from egret import safetensors_file
from egret.cli import main
from egret.container import CodedRecord, Container, read_container
from egret.errors import EgretError, FormatError, QuantizationError
from egret.inspection import inspect_file
from egret.packing import load, pack, select_tensors, write_packed
from egret.quantize import QuantizedTensor
from egret.safetensors_file import RawTensor


def example() -> dict[str, Any]:
    random = np.random.default_rng(8)
    return {
        "fc1.weight": random.laplace(0, 0.03, (30, 40)).astype(np.float32),
        "fc1.bias": random.normal(0, 0.1, 30).astype(np.float32),
        "conv.weight": random.laplace(0, 0.1, (4, 3, 3, 3)).astype(np.float16),
        "steps": np.array(12),
        "table": np.arange(6).reshape(2, 3),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(example(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_pack_and_load(tmp_path: Path) -> None:
    state = example()
    egret.pack(state, tmp_path / "m.egret", step_log2=6)
    found = egret.load(tmp_path / "m.egret")
    assert sorted(found) == sorted(state)
    container = read_container(tmp_path / "m.egret")
    assert container.coded_names == ("conv.weight", "fc1.weight")
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        expected = array
        if name in container.coded_names:
            expected = np.rint(array.astype(np.float64) * 64) / 64
        np.testing.assert_array_equal(found[name], expected)


def test_packs_torch_and_quantised_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(4, 3)
    ready = QuantizedTensor(np.array([1, -2], np.int32), 5)
    pack({**model.state_dict(), "ready": ready}, tmp_path / "m.egret", step_log2=8)
    found = load(tmp_path / "m.egret")
    np.testing.assert_array_equal(found["ready"], [1 / 32, -2 / 32])
    weight = model.weight.detach().numpy()
    np.testing.assert_array_equal(found["weight"], np.rint(weight * 256) / 256)
    np.testing.assert_array_equal(found["bias"], model.bias.detach().numpy())


def coded_record(container: Container, name: str) -> CodedRecord:
    record = container.record(name)
    assert isinstance(record, CodedRecord)
    return record


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    weight = torch.from_numpy(rng.laplace(0, 0.1, (50, 40)).astype(np.float32))
    other = weight.clone()
    other[49, 39] += 1
    state = {
        "embed": weight,
        "head": weight,
        "copy": weight.clone(),
        "other": other,
        "half": weight.to(torch.bfloat16),
        "flat": weight.reshape(-1),
        "norm.a": torch.ones(30),
        "norm.b": torch.ones(30),
        "none.a": torch.ones(0),
        "none.b": torch.ones(0),
    }
    path = tmp_path / "m.egret"
    pack(state, path)
    with load(path) as weights:
        container = weights.container
        ties = {n: container.target(n) for n in container.names if container.is_alias(n)}
        assert ties == {"embed": "copy", "head": "copy", "norm.b": "norm.a"}
        found = weights.state_dict()
        assert found["embed"] is found["head"]
        assert found["norm.a"] is found["norm.b"]
        for name, tensor in state.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            exact = tensor.double()
            if name in container.coded_names or ties.get(name) == "copy":
                exact = (exact * 256).round() / 256
            assert torch.equal(found[name].double(), exact.to(tensor.dtype).double()), name
    # What is excluded stays exactly as it is, whatever it is tied to.
    pack(state, path, exclude=["head"])
    assert load(path).container.target("head") == "head"
    np.testing.assert_array_equal(load(path)["head"], weight.numpy())


def test_tensors_with_equal_beginnings_are_told_apart(tmp_path: Path) -> None:
    state = {f"w{n}": np.zeros((300, 300), np.float32) for n in range(4)}
    state["w1"][299, 299] = state["w3"][299, 299] = 0.5
    pack(state, tmp_path / "m.egret")
    container = read_container(tmp_path / "m.egret")
    assert [container.target(f"w{n}") for n in range(4)] == ["w0", "w1", "w0", "w1"]
    for name, array in state.items():
        np.testing.assert_array_equal(load(tmp_path / "m.egret")[name], array)


def forged(data: bytes, crc: int) -> bytes:
    """Change the last four bytes so that the CRC-32C is this one."""

    def end(number: int) -> int:
        return crc32c.crc32c(data[:-4] + number.to_bytes(4, "little"))

    # The CRC is linear in the 32 bits: solve for them.
    rows = [(end(1 << bit) ^ end(0), 1 << bit) for bit in range(32)]
    wanted, solution = crc ^ end(0), 0
    for bit in range(32):
        pivot = next(row for row in rows if row[0] >> bit & 1)
        rows = [(r ^ pivot[0], n ^ pivot[1]) if r >> bit & 1 else (r, n) for r, n in rows]
        if wanted >> bit & 1:
            wanted, solution = wanted ^ pivot[0], solution ^ pivot[1]
    return data[:-4] + solution.to_bytes(4, "little")


def test_tensors_with_equal_checksums_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    first, second = rng.integers(-5, 5, (2, 40, 50)).astype(np.int8)
    data = forged(second.tobytes(), crc32c.crc32c(first.tobytes()))
    assert crc32c.crc32c(data) == crc32c.crc32c(first.tobytes())
    state = {"a": first, "b": np.frombuffer(data, np.int8).reshape(40, 50)}
    pack(state, tmp_path / "m.egret")
    for name, array in state.items():
        np.testing.assert_array_equal(load(tmp_path / "m.egret")[name], array)


def test_names_a_wrong_weight_far_into_a_tensor(tmp_path: Path) -> None:
    array = np.zeros((1100, 1024), np.float32)
    array[1099, 5] = np.nan
    options: Any
    for options in ({}, {"bits": 8}):
        with pytest.raises(QuantizationError, match=r"'w': weight \[1099, 5\] is nan"):
            pack({"w": array}, tmp_path / "m.egret", **options)


def test_what_does_not_gain_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    state: dict[str, np.ndarray] = {
        "noise": rng.integers(-128, 128, (100, 100)).astype(np.int8),
        "tiny": np.array([[0.3]], np.float32),
        "weights": rng.laplace(0, 9, (100, 100)).clip(-128, 127).astype(np.int8),
        # Two bytes and eight in the index would do for the codewords, but not for the codebook.
        "book": np.array([[100, -77] * 6], np.int8),
        # The codebook of the others would do, but not eight bytes in the index.
        "short": np.array([[1, -2, 3, 0, 5, 0, -1]], np.int8),
    }
    pack(state, tmp_path / "m.egret")
    with load(tmp_path / "m.egret") as weights:
        assert weights.container.raw_names == ("book", "noise", "short", "tiny")
        assert weights.container.coded_names == ("weights",)
        assert weights.container.books_bytes == len(weights.container.book(0).data)
        for name, array in state.items():
            assert weights[name].dtype == array.dtype
            np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32"])
def test_integers_are_coded_without_loss(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    ends = np.iinfo(kind)
    low, high = max(ends.min, -(1 << 23)), min(ends.max, (1 << 23) - 1)
    array = rng.geometric(0.3, (40, 50)).astype(kind)
    array[0, :2] = low, high
    state: dict[str, Any] = {"w": array, "scale": np.array([0.1, 0.2], np.float32)}
    path = tmp_path / "m.egret"
    pack(state, path, step_log2=3, bits=4)
    with load(path) as weights:
        assert weights.container.coded_names == ("w",)
        assert weights.quantized("w").step_log2 == 0
        assert weights["w"].dtype == array.dtype
        np.testing.assert_array_equal(weights["w"], array)
    if kind == "int32":
        for wrong in (high + 1, low - 1):
            array[3, 4] = wrong
            pack({**state, "f": np.zeros((9, 9))}, path)
            assert load(path).container.raw_names == ("scale", "w")
            np.testing.assert_array_equal(load(path)["w"], array)


def test_bits_alone_choose_the_finest_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    state: dict[str, np.ndarray] = {
        "a": rng.normal(0, 0.01, (50, 50)).astype(np.float32),
        "b": rng.normal(0, 20, (700, 500)).astype(np.float16),
        "zero": np.zeros((4, 100), np.float32),
    }
    pack(state, tmp_path / "m.egret", bits=8)
    with load(tmp_path / "m.egret") as weights:
        for name in ("a", "b"):
            values = weights.quantized(name).values
            largest = float(np.abs(state[name].astype(np.float64)).max())
            assert 64 <= np.abs(values).max() <= 128
            step = coded_record(weights.container, name).step_log2
            assert largest * 2.0**step < 128.5
            assert largest * 2.0 ** (step + 1) > 127.4
        assert not weights["zero"].any()
    with pytest.raises(QuantizationError, match="expected -128 to 127"):
        pack(state, tmp_path / "m.egret", bits=8, step_log2=14)


@pytest.mark.parametrize("codes", ["eg-0", "eg-k", "eg-run", "eg-table", ["eg-1", "eg-run"]])
def test_only_the_codes_asked_for_are_used(tmp_path: Path, codes: Any) -> None:
    rng = np.random.default_rng(7)
    sparse = rng.laplace(0, 0.02, (60, 70)) * (rng.random((60, 70)) < 0.1)
    state = {"dense": rng.laplace(0, 0.05, (60, 70)), "sparse": sparse}
    pack(state, tmp_path / "m.egret", codes=codes)
    with load(tmp_path / "m.egret") as weights:
        container = weights.container
        names = {container.book(coded_record(container, name).book).name for name in state}
        allowed = {
            "eg-0": {"eg-0"},
            "eg-k": {f"eg-{k}" for k in range(8)},
            "eg-run": {"eg-run"},
            "eg-table": {"eg-table", "eg-table-run"},
        }.get(codes if isinstance(codes, str) else "", {"eg-1", "eg-run"})
        assert names <= allowed
        for name, array in state.items():
            np.testing.assert_array_equal(weights[name], np.rint(array * 256) / 256)


def test_threads_and_memory_change_no_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    state = {
        "large": rng.laplace(0, 0.05, (1500, 1024)).astype(np.float32),
        "small": rng.laplace(0, 0.05, (30, 40)).astype(np.float32),
    }
    one, four = tmp_path / "one.egret", tmp_path / "four.egret"
    pack(state, one)
    pack(state, four, threads=4, memory=400 << 20)
    assert one.read_bytes() == four.read_bytes()
    with load(four, threads=3) as weights:
        np.testing.assert_array_equal(weights["large"], np.rint(state["large"] * 256) / 256)
        values = weights.quantized("large", rows=(700, 702)).values
        np.testing.assert_array_equal(values, np.rint(state["large"][700:702] * 256))


def test_shapes_of_every_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    shapes = [(), (0,), (3, 0, 2), (1, 1), (1, 70_000), (70_000, 1), (300, 7, 5, 3), (65_537,)]
    state = {f"t{n}": rng.laplace(0, 0.1, shape) for n, shape in enumerate(shapes)}
    pack(state, tmp_path / "m.egret", include=["*"])
    with load(tmp_path / "m.egret") as weights:
        assert list(weights) == sorted(state)
        for name, array in state.items():
            exact = name in weights.container.raw_names
            expected = array if exact else np.rint(array * 256) / 256
            assert weights[name].shape == array.shape
            np.testing.assert_array_equal(weights[name], expected)


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    """Damage shows in the tensor that has it, and only when that is asked for."""
    rng = np.random.default_rng(10)
    state = {name: rng.laplace(0, 0.1, (40, 50)) for name in ("a", "b")}
    path = tmp_path / "m.egret"
    pack(state, path)
    data = bytearray(path.read_bytes())
    place = safetensors_file.parse_header(bytes(data), path, len(data))["egret:code"]
    data[place.stop - 5] ^= 4
    path.write_bytes(data)
    weights = load(path)
    assert set(weights) == {"a", "b"}
    assert "a" in weights
    assert "c" not in weights
    np.testing.assert_array_equal(weights["a"], np.rint(state["a"] * 256) / 256)
    with pytest.raises(FormatError, match=r"m\.egret: tensor 'b': .*CRC"):
        _ = weights["b"]
    with pytest.raises(KeyError):
        _ = weights["c"]


def test_arrays_may_be_written_to(tmp_path: Path) -> None:
    pack(example(), tmp_path / "m.egret")
    for array in load(tmp_path / "m.egret").values():
        assert array.flags.writeable


def test_every_dtype_comes_back_in_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    names = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32"]
    names += ["int64", "bool", "float8_e4m3fn", "float8_e5m2", "complex64"]
    state = {n: torch.arange(12).reshape(3, 4).to(getattr(torch, n)) for n in names}
    state["empty"] = torch.zeros(0, 3)
    state["scalar"] = torch.tensor(5)
    pack(state, tmp_path / "m.egret")
    found = load(tmp_path / "m.egret").state_dict()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes(found[name].contiguous().view(-1).view(torch.uint8).numpy()) == bytes(
            tensor.contiguous().view(-1).view(torch.uint8).numpy()
        )


def test_packs_a_file(source: Path, tmp_path: Path) -> None:
    pack(example(), tmp_path / "a.egret")
    pack(source, tmp_path / "b.egret")
    pack(str(source), tmp_path / "c.egret")
    contents = {(tmp_path / f"{name}.egret").read_bytes() for name in "abc"}
    assert len(contents) == 1


def test_the_order_of_a_state_dict_does_not_matter(tmp_path: Path) -> None:
    state = example()
    pack(state, tmp_path / "a.egret")
    pack(dict(reversed(state.items())), tmp_path / "b.egret")
    assert (tmp_path / "a.egret").read_bytes() == (tmp_path / "b.egret").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {1: np.zeros((2, 2))}}, "found key 1, expected the name of a tensor"),
        ({"state": [1]}, "found list, expected a mapping"),
        ({"state": {"egret:x": np.zeros((2, 2))}}, "reserved"),
        ({"codes": 3}, "codes: found 3"),
        ({"codes": "eg-9"}, "codes: found 'eg-9'"),
        ({"step_log2": 1.5}, r"step: found step_log2 1\.5, expected a whole number"),
        ({"step_log2": 65}, "step: found steps"),
        ({"bits": 1}, "found 1 bits, expected 2 to 24"),
        ({"bits": "8"}, "found '8' bits"),
        ({"include": "*.weight"}, r"include: found '\*\.weight', expected a list"),
        ({"exclude": [3]}, r"exclude: found \[3\], expected a list"),
        ({"threads": 0}, "threads: found 0"),
        ({"memory": 1000}, "memory: found 0 MiB, expected at least"),
    ],
)
def test_misuse_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"state": example(), "path": tmp_path / "m.egret", **changes}
    with pytest.raises(EgretError, match=message):
        pack(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_none_of_the_shards(tmp_path: Path) -> None:
    save_file(example(), tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(example(), "a.safetensors")}))
    with pytest.raises(EgretError, match=r"a\.safetensors: is the input"):
        pack(index, tmp_path / "a.safetensors")
    pack(index, tmp_path / "out.egret")
    assert len(load(tmp_path / "out.egret")) == 5


def test_write_packed(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    coded = {
        "w": QuantizedTensor(rng.integers(-9, 9, (20, 30)).astype(np.int32), 5),
        "one": QuantizedTensor(np.array([7], np.int32), 0, "I8"),
        "half": QuantizedTensor(np.array([[-3, 3]], np.int32), 1, "BF16"),
    }
    raw = {"b": RawTensor.from_array(np.arange(3.0))}
    write_packed(tmp_path / "m.egret", coded, raw, network=b"text", codes="eg-k")
    with load(tmp_path / "m.egret") as weights:
        assert weights.container.network == b"text"
        assert weights.container.coded_names == ("half", "one", "w")
        for name, tensor in coded.items():
            found = weights.quantized(name)
            assert (found.dtype, found.step_log2) == (tensor.dtype, tensor.step_log2)
            np.testing.assert_array_equal(found.values, tensor.values)
        assert weights["half"].tolist() == [[-1.5, 1.5]]
    with pytest.raises(EgretError, match="'b' is given both coded and raw"):
        write_packed(tmp_path / "m.egret", {"b": coded["w"]}, raw)
    wrong = {"w": QuantizedTensor(np.array([1, 200], np.int32), 0, "I8")}
    with pytest.raises(QuantizationError, match=r"'w': weight \[1\] is 200, expected -128 to 127"):
        write_packed(tmp_path / "m.egret", wrong, {})
    large = {"w": QuantizedTensor(np.array([1 << 23], np.int32), 0)}
    with pytest.raises(QuantizationError, match=r"\(24 bits\)"):
        write_packed(tmp_path / "m.egret", large, {})


def test_selection() -> None:
    tensors = {name: RawTensor.from_array(array) for name, array in example().items()}
    assert select_tensors(tensors) == ["fc1.weight", "conv.weight"]
    assert select_tensors(tensors, include=["fc1.*"]) == ["fc1.weight", "fc1.bias"]
    assert select_tensors(tensors, exclude=["conv*"]) == ["fc1.weight"]
    assert select_tensors(tensors, ["*"], ["*.bias"]) == ["fc1.weight", "conv.weight"]
    arrays: dict[str, np.ndarray] = {
        "a": np.zeros((2, 2), np.int8),
        "b": np.zeros((2, 2), np.int64),
        "c": np.zeros(3, np.uint16),
        "d": np.zeros((), np.int32),
        "e": np.zeros((2, 2), bool),
    }
    integers = {name: RawTensor.from_array(array) for name, array in arrays.items()}
    assert select_tensors(integers) == ["a"]
    assert select_tensors(integers, include=["*"]) == ["a", "c"]
    with pytest.raises(EgretError, match=r"pattern 'fc2\.\*' matches none of the 5 tensors"):
        select_tensors(tensors, exclude=["fc2.*"])


def test_nothing_to_code(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="none of the 1 tensors is to be coded"):
        pack({"b": np.zeros(3, np.float32)}, tmp_path / "m.egret")
    with pytest.raises(FormatError, match="entry 'b': found str"):
        pack({"b": "text"}, tmp_path / "m.egret")


def test_commands_round_trip(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, back, again = (tmp_path / name for name in ("m.egret", "back", "again.egret"))
    assert main(["pack", str(source), "-o", str(packed), "--step", "7"]) == 0
    assert "2 of 5 tensors coded, 1,308 weights" in capsys.readouterr().out
    assert main(["unpack", str(packed), "-o", str(back)]) == 0
    unpacked = load_file(back)
    for name, array in load(packed).items():
        assert unpacked[name].dtype == example()[name].dtype
        np.testing.assert_array_equal(unpacked[name], array)
    assert main(["pack", str(back), "-o", str(again), "--step", "7"]) == 0
    assert again.read_bytes() == packed.read_bytes()


def test_pack_options(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "m.egret"
    command = ["pack", str(source), "-o", str(packed), "--codes", "eg-3"]
    assert main([*command, "--include", "*.weight", "--exclude", "conv*"]) == 0
    container = read_container(packed)
    assert container.coded_names == ("fc1.weight",)
    record = container.record("fc1.weight")
    assert isinstance(record, CodedRecord)
    assert container.book(record.book).name == "eg-3"


def test_inspect_counts_and_prints(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "m.egret"
    pack(example(), packed)
    assert main(["inspect", str(packed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    container = read_container(packed)
    assert found["packed"] is True
    assert found["file_bytes"] == packed.stat().st_size
    books = {e["book"]: container.book(e["book"]) for e in found["tensors"]}
    assert found["book_bytes"] == sum(len(book.data) for book in books.values())
    assert found["map_bytes"] == -(-sum(book.map_bits for book in books.values()) // 8)
    for entry in found["tensors"]:
        values = container.quantized(entry["name"]).values
        record = container.record(entry["name"])
        assert isinstance(record, CodedRecord)
        assert entry["code_bits"] == record.code_bits
        assert entry["code"] == container.book(record.book).name
        assert entry["chunks"] == record.bits.size
        assert entry["zeros"] == np.count_nonzero(values == 0)
        assert entry["distinct"] == np.unique(values).size
        assert entry["entropy_bits"] <= entry["huffman_bits"] <= entry["exp_golomb_bits"]
        assert entry["entropy_bits"] <= entry["code_bits"]
        assert 0.5 < entry["ggd_shape"] < 1.8
    total = found["total"]
    assert total["payload_bits"] == total["code_bits"] + 8 * found["book_bytes"]
    assert total["payload_ratio"] == total["payload_bits"] / total["entropy_bits"]
    assert total["raw_bytes"] == 30 * 4 + 8 + 6 * 8
    assert total["chunk_index_bytes"] == 8 * total["chunks"]
    parts = ("chunk_index_bytes", "raw_bytes", "other_bytes")
    inside = sum(total[part] for part in parts) + found["code_bytes"] + found["book_bytes"]
    assert inside == found["file_bytes"]
    assert found["total"]["weights"] == 1308
    assert {entry["name"] for entry in found["raw"]} == {"fc1.bias", "steps", "table"}
    # Weights that are not packed are measured as packing would store them.
    plain = inspect_file(source).to_dict()
    for field in ("exp_golomb_bits", "huffman_bits", "entropy_bits", "zeros", "payload_bits"):
        assert plain["total"][field] == pytest.approx(found["total"][field])
    assert main(["inspect", str(packed)]) == 0
    text = capsys.readouterr().out
    bits = 8 * packed.stat().st_size / 1308
    assert f"whole file: {packed.stat().st_size:,} bytes, {bits:.3f} bits per weight" in text
    assert "fc1.weight 30×40" in " ".join(text.split())


def test_inspect_shows_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from egret.network import IntegerLayer, IntegerNetwork

    layer = IntegerLayer(
        name="fc",
        weight=QuantizedTensor(np.eye(2, 3, dtype=np.int32), 8),
        bias=None,
        input_scale=0.5,
        output_scale=0.25,
        multiplier=40_000,
        shift=20,
        relu=True,
    )
    IntegerNetwork("n", (layer,)).save(tmp_path / "n.egret")
    assert main(["inspect", str(tmp_path / "n.egret")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == (
        ["fc", "2", "3", "no", "0.5", "40000", "20", "yes"]
    )


def test_inspect_plots(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    packed = tmp_path / "m.egret"
    pack(source, packed)
    for name, start in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c.PDF", b"%PDF")):
        contents = set()
        for file in (source, source, packed):
            target = tmp_path / name
            assert main(["inspect", str(file), "--plot", str(target)]) == 0
            assert target.read_bytes().startswith(start)
            contents.add(target.read_bytes())
        assert len(contents) == 2, name


def test_plot_of_another_kind_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "absent"), "--plot", str(tmp_path / "p.jpg")]) == 1
    assert "--plot: found 'p.jpg', expected a name that ends in .png, .svg, .pdf" in line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_inspect_of_large_and_shared_tensors_equals_the_packed_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    large = rng.laplace(0, 0.05, (2200, 1024)).astype(np.float32)
    state = {
        "large": large,
        "tied": large,
        **{f"small{n}": rng.laplace(0, 0.05, (30, 40)).astype(np.float16) for n in range(5)},
        "noise": rng.integers(-128, 128, (50, 60)).astype(np.int8),
    }
    save_file(state, tmp_path / "w.safetensors")
    pack(state, tmp_path / "m.egret")
    plain = inspect_file(tmp_path / "w.safetensors", threads=2)
    packed = inspect_file(tmp_path / "m.egret", threads=2)
    assert plain.aliases == packed.aliases == {"tied": "large"}
    assert [entry["name"] for entry in plain.raw] == ["noise"]
    assert (plain.book_bytes, plain.map_bytes) == (packed.book_bytes, packed.map_bytes)
    for before, after in zip(
        sorted(plain.tensors, key=lambda tensor: tensor.name), packed.tensors, strict=True
    ):
        assert replace(before, ggd_shape=None, book=0) == replace(after, ggd_shape=None, book=0)
        assert before.ggd_shape == pytest.approx(after.ggd_shape, abs=0.02)
    assert plain.payload_bits == packed.payload_bits
    assert packed.payload_ratio is not None
    assert 1 <= packed.payload_ratio < 1.1


def test_inspect_takes_codes_and_bits(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source), "--json", "--codes", "eg-2", "--bits", "6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["code"] for entry in found["tensors"]} == {"eg-2"}
    assert all(entry["distinct"] <= 64 for entry in found["tensors"])


def test_unpack_some(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, back = tmp_path / "m.egret", tmp_path / "back"
    pack(source, packed)
    command = ["unpack", str(packed), "-o", str(back), "--threads", "2", "--include"]
    assert main([*command, "fc1.*", "--include", "steps"]) == 0
    assert set(load_file(back)) == {"fc1.weight", "fc1.bias", "steps"}
    capsys.readouterr()
    assert main([*command, "fc2.*"]) == 1
    assert "m.egret: pattern 'fc2.*' matches none of the 5 tensors" in line(capsys)
    assert main([*command[:4], "--threads", "0"]) == 1
    assert "threads: found 0" in line(capsys)


@pytest.mark.parametrize(
    ("text", "status"),
    [("512M", 0), ("1g", 0), ("600000000", 0), ("512MB", 2), ("-1", 2), ("", 2), ("10M", 1)],
)
def test_memory_sizes(source: Path, tmp_path: Path, text: str, status: int) -> None:
    command = ["pack", str(source), "-o", str(tmp_path / "m.egret"), f"--memory={text}"]
    if status == 2:
        with pytest.raises(SystemExit):
            main(command)
    else:
        assert main(command) == status


def test_bad_input_is_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "m.egret"
    pack(example(), packed)
    (tmp_path / "cut.egret").write_bytes(packed.read_bytes()[:-1])
    (tmp_path / "text").write_text("a text about nothing")
    state = example()
    state["fc1.weight"][2, 3] = np.nan
    save_file(state, tmp_path / "nan")
    state["fc1.weight"][2, 3] = 1e6
    save_file(state, tmp_path / "large")
    cases = [
        (["pack", "none"], "none: cannot read this file: No such file"),
        (["pack", "text"], "text: found another kind of file"),
        (["pack", "m.egret"], "m.egret: is packed already"),
        (["pack", "nan"], "nan: tensor 'fc1.weight': weight [2, 3] is nan"),
        (["pack", "large"], "large: tensor 'fc1.weight': weight [2, 3] is 1e+06"),
        (["inspect", "nan"], "nan: tensor 'fc1.weight': weight [2, 3] is nan"),
        (["inspect", "none"], "none: cannot read this file"),
        (["inspect", "text"], "text: found another kind of file"),
        (["inspect", "cut.egret"], "cut.egret: truncated"),
        (["unpack", "none"], "none: cannot read this file"),
        (["unpack", "text"], "text: not a safetensors file"),
        (["unpack", "cut.egret"], "cut.egret: truncated"),
        (["unpack", "model.safetensors"], "model.safetensors: a safetensors file, but not"),
    ]
    for (command, name), message in cases:
        target = tmp_path / "out"
        output = [] if command == "inspect" else ["-o", str(target)]
        assert main([command, str(tmp_path / name), *output]) == 1, (command, name)
        assert message in line(capsys)
        assert not target.exists()


def test_the_package_imports_neither_torch_nor_numba() -> None:
    program = (
        "import sys, egret, egret.commands.pack, egret.commands.unpack, egret.commands.inspect\n"
        "assert egret.__version__\n"
        "print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])\n"
        "egret.pack, egret.load\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_the_package_has_no_other_names() -> None:
    assert {"pack", "load", "compile", "__version__"} <= set(dir(egret))
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = egret.unknown


@pytest.mark.parametrize("dtype", ["F64", "F32", "I8"])
def test_empty_tensors_of_the_largest_shapes_come_back(tmp_path: Path, dtype: str) -> None:
    shape = (2**30, 0, 2**29)
    path = tmp_path / "w.egret"
    coded = {"w": QuantizedTensor(np.empty(shape, np.int32), 0, dtype)}
    write_packed(path, coded, {"r": RawTensor(dtype, shape, b"")})
    weights = load(path)
    assert weights["w"].shape == weights["r"].shape == shape
    with pytest.raises(EgretError, match="is too large"):
        RawTensor(dtype, (2**30, 0, 2**30), b"")


def test_unpacking_goes_by_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    state: dict[str, np.ndarray] = {
        "w": np.rint(random.laplace(0, 9, (700, 301))).astype(np.int16),
        "v": (np.rint(random.laplace(0, 9, (3, 90_000))) / 256).astype(np.float32),
        "b": random.normal(size=7).astype(np.float32),
    }
    pack(state, tmp_path / "m.egret")
    asked: list[tuple[int, int] | None] = []
    restored = Container.restored

    def recorded(container: Container, name: str, **options: Any) -> RawTensor:
        asked.append(options["rows"])
        return restored(container, name, **options)

    monkeypatch.setattr("egret.packed._BLOCK_WEIGHTS", 65_536)
    monkeypatch.setattr(Container, "restored", recorded)
    assert main(["unpack", str(tmp_path / "m.egret"), "-o", str(tmp_path / "m.safetensors")]) == 0
    found = load_file(tmp_path / "m.safetensors")
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert (0, 217) in asked
    assert (2, 3) in asked
    assert None in asked


def test_inspection_shows_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack({"a\n\x1b[31mred": np.ones((30, 40), np.float32)}, tmp_path / "m.egret")
    assert main(["inspect", str(tmp_path / "m.egret")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"a\n\x1b[31mred" in shown
