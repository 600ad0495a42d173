import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import egret
from egret.cli import main
from egret.container import CodedRecord, read_container
from egret.errors import EgretError, FormatError, QuantizationError
from egret.inspection import inspect_file
from egret.packing import load, pack, select_tensors
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


def test_selection() -> None:
    tensors = {name: RawTensor.from_array(array) for name, array in example().items()}
    assert select_tensors(tensors) == ["fc1.weight", "conv.weight"]
    assert select_tensors(tensors, include=["fc1.*"]) == ["fc1.weight", "fc1.bias"]
    assert select_tensors(tensors, exclude=["conv*"]) == ["fc1.weight"]
    assert select_tensors(tensors, ["*"], ["*.bias"]) == ["fc1.weight", "conv.weight"]
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
    target = tmp_path / "plot.png"
    assert main(["inspect", str(source), "--plot", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")


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
