"""Bad input on the command line: one clear line, a non-zero exit, nothing lost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from egret.network import IntegerLayer, IntegerNetwork
from egret.quantize import QuantizedTensor

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


def egret(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "egret.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail with one line, and return the line."""
    run = egret(*arguments)
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 1, (run.returncode, run.stdout, run.stderr)
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("egret: error: ")
    return lines[0]


def weights(path: Path, array: np.ndarray) -> Path:
    safetensors.numpy.save_file({"layer.weight": array}, path)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    source = weights(tmp_path / "good.safetensors", rng.normal(size=(20, 30)).astype(np.float32))
    path = tmp_path / "good.egret"
    assert egret("pack", source, "-o", path).returncode == 0
    return path


READERS = {
    "pack": ("-o", "out.egret"),
    "unpack": ("-o", "out.safetensors"),
    "inspect": (),
    "image": ("-o", "out.bin"),
    "sim": (),
}


@pytest.mark.parametrize("command", READERS)
def test_missing_file(command: str, tmp_path: Path) -> None:
    options = [tmp_path / word if word.startswith("out") else word for word in READERS[command]]
    line = refused(command, tmp_path / "absent.egret", *options)
    assert "absent.egret" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", READERS)
def test_file_of_another_kind(command: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.egret"
    picture.write_bytes(PNG)
    options = [tmp_path / word if word.startswith("out") else word for word in READERS[command]]
    line = refused(command, picture, *options)
    assert "picture.egret" in line
    assert list(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize("command", ["unpack", "inspect", "image", "sim"])
@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_packed_file(command: str, keep: int, packed: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.egret"
    cut.write_bytes(packed.read_bytes()[:keep])
    options = [tmp_path / word if word.startswith("out") else word for word in READERS[command]]
    line = refused(command, cut, *options)
    assert "cut.egret" in line
    assert not any(path.name.startswith("out") for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "found"), [(np.nan, "nan"), (np.inf, "inf"), (1e6, "1000000|256000000")]
)
def test_weight_that_cannot_be_quantised(value: float, found: str, tmp_path: Path) -> None:
    array = np.ones((6, 7), np.float32)
    array[2, 3] = value
    output = tmp_path / "out.egret"
    output.write_bytes(b"kept")
    line = refused("pack", weights(tmp_path / "bad.safetensors", array), "-o", output)
    assert "layer.weight" in line
    assert any(word in line.lower() for word in found.split("|")), line
    assert output.read_bytes() == b"kept"


def test_packed_file_without_a_network(packed: Path, tmp_path: Path) -> None:
    line = refused("image", packed, "-o", tmp_path / "out.bin")
    assert "good.egret" in line
    assert "network" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lanes: [1", "not YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("name: x\nlanes: 3\nparser_bits: 4\nparser_cut: 4\nbus_bits: 32\n", "parameter lanes"),
        ("name: x\nlanes: 2\n", "'parser_bits' is missing"),
        ("name: x\nspeed: 2\n", "unknown parameter 'speed'"),
    ],
)
def test_wrong_parameter_file(text: str, says: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.yml"
    config.write_text(text)
    line = refused("rtl", "--config", config, "-o", tmp_path / "out.v")
    assert "mine.yml" in line
    assert says in line
    assert not (tmp_path / "out.v").exists()


def test_missing_parameter_file(tmp_path: Path) -> None:
    assert "absent.json" in refused("rtl", "--config", tmp_path / "absent.json", "-o", "out.v")


def test_output_that_cannot_be_written(packed: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    line = refused("unpack", packed, "-o", blocker / "out.safetensors")
    assert "file" in line
    assert blocker.read_text() == "not a folder"


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_output_over_the_input(command: str, packed: Path, tmp_path: Path) -> None:
    source = tmp_path / "good.safetensors" if command == "pack" else packed
    before = source.read_bytes()
    assert "is the input" in refused(command, source, "-o", source)
    assert source.read_bytes() == before


def test_output_that_is_a_device(packed: Path) -> None:
    assert "/dev/null: cannot write here" in refused("unpack", packed, "-o", "/dev/null")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.egret"
    IntegerNetwork(
        "one",
        (
            IntegerLayer(
                name="layer",
                weight=QuantizedTensor(np.eye(4, dtype=np.int32), 8),
                bias=None,
                input_scale=0.1,
                output_scale=0.1,
                multiplier=40_000,
                shift=20,
                relu=False,
            ),
        ),
    ).save(path)
    return path


@pytest.mark.parametrize("option", ["--seed", "--count"])
def test_number_below_its_range(option: str, network: Path) -> None:
    assert f"{option}: found -1" in refused("sim", network, f"{option}=-1")


def test_sim_looks_at_its_options_before_it_simulates(network: Path, tmp_path: Path) -> None:
    assert "cannot write here" in refused("sim", network, "-o", tmp_path)
    assert "--count: found 3 with --inputs" in refused(
        "sim", network, "--count=3", "--inputs", tmp_path / "absent.npy"
    )


def test_train_looks_at_its_folder_before_it_trains(packed: Path) -> None:
    line = refused("train", "digits", "--epochs=1", "-o", packed)
    assert "good.egret: found a file, expected a folder" in line


def test_name_that_no_verilog_tool_reads(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text(
        '{"name": "\u00e9", "lanes": 2, "parser_bits": 4, "parser_cut": 4, "bus_bits": 32}',
        encoding="utf-8",
    )
    line = refused("rtl", "--config", config, "-o", tmp_path / "out.v")
    assert "parameter name" in line
    assert "ASCII" in line
