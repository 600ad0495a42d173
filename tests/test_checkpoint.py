import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from egret import safetensors_file
from egret.checkpoint import InputFile, TensorSource, as_source, read_checkpoint
from egret.errors import EgretError, FormatError
from egret.safetensors_file import RawTensor

ARRAYS: dict[str, Any] = {
    "f64": np.array([[1.5, -2.0]]),
    "f32": np.array([[[3.25]]], np.float32),
    "f16": np.array([0.5, 7], np.float16),
    "i64": np.array(-5),
    "u8": np.array([1, 255], np.uint8),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}
DTYPES = {"f64": "F64", "f32": "F32", "f16": "F16", "i64": "I64", "u8": "U8", "bool": "BOOL"}


def check(tensors: Mapping[str, TensorSource]) -> None:
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == DTYPES.get(name, "F32")
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name].raw().array(), array)


def test_reads_safetensors_whatever_the_name(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "weights.bin")
    check(read_checkpoint(tmp_path / "weights.bin"))


def test_written_safetensors_are_read_by_the_library(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = tmp_path / "w.safetensors"
    safetensors_file.write(path, {n: RawTensor.from_array(a) for n, a in ARRAYS.items()})
    found = load_file(path)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_reads_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.0, -2.5], [0.1, 3e38]]).to(torch.bfloat16)
    save_torch({"w": values}, tmp_path / "w.safetensors")
    torch.save({"w": values}, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        tensor = read_checkpoint(tmp_path / file)["w"]
        assert (tensor.dtype, tensor.shape) == ("BF16", (2, 2))
        np.testing.assert_array_equal(tensor.raw().array(), values.float().numpy())


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict"])
def test_reads_state_dicts(tmp_path: Path, new_format: bool, key: str | None) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    saved = state if key is None else {key: state, "epoch": 3}
    path = tmp_path / "model.safetensors"
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    check(read_checkpoint(path))


def test_reads_a_sharded_file(tmp_path: Path) -> None:
    names = list(ARRAYS)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, members in shards.items():
        save_file({name: ARRAYS[name] for name in members}, tmp_path / shard)
    places = {name: shard for shard, members in shards.items() for name in members}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    check(read_checkpoint(index))
    index.write_text(json.dumps({"weight_map": {"f64": "b.safetensors"}}))
    with pytest.raises(FormatError, match=r"b\.safetensors: tensor 'f64' is missing"):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"f64": "../b.safetensors"}}))
    with pytest.raises(FormatError, match="does not lie beside the index"):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"f64": "none.safetensors"}}))
    with pytest.raises(EgretError, match=r"none\.safetensors: cannot read this file"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"abc", "another kind of file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "another kind of file"),
        (b"{}", "another kind of file"),
        (b'{"weight_map": 3}', "another kind of file"),
        (b"{" * 100_000, "another kind of file"),
        ((100).to_bytes(8, "little") + b"{}", "truncated: the header ends at byte 108"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"model\.safetensors: .*{message}"):
        read_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(EgretError, match=r"none\.pt: cannot read this file: No such file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(EgretError, match="cannot read this file: Is a directory"):
        read_checkpoint(tmp_path)


def test_every_truncated_safetensors_file(tmp_path: Path) -> None:
    save_file({"w": ARRAYS["f32"]}, tmp_path / "w")
    data = (tmp_path / "w").read_bytes()
    for size in range(len(data)):
        (tmp_path / "w").write_bytes(data[:size])
        with pytest.raises(FormatError):
            read_checkpoint(tmp_path / "w")


def test_truncated_state_dicts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for new_format in (True, False):
        path = tmp_path / "w.pt"
        torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=new_format)
        data = path.read_bytes()
        for size in range(4, len(data), 61):
            path.write_bytes(data[:size])
            with pytest.raises(FormatError) as caught:
                read_checkpoint(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(FormatError, match=r"could run code; save model\.state_dict\(\) instead"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"w": 3}, "entry 'w': found int, expected a tensor"),
        ({"w": [1.0]}, "entry 'w': found list"),
        ({1: 2}, "found key 1"),
        ([1, 2], "found list, expected a state dict"),
    ],
)
def test_entries_that_are_no_tensors(tmp_path: Path, saved: object, message: str) -> None:
    torch = pytest.importorskip("torch")
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=rf"w\.pt: {message}"):
        read_checkpoint(tmp_path / "w.pt")


def test_views_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    found = as_source(weight.T, "w")
    np.testing.assert_array_equal(found.raw().array(), np.arange(6.0).reshape(2, 3).T)
    with pytest.raises(FormatError, match=r"found a tensor of torch\.float32, torch\.sp"):
        as_source(torch.eye(2).to_sparse(), "w")
    with pytest.raises(FormatError, match="entry 'w': found dtype <U1"):
        as_source(np.array(["a"]), "w")


def test_without_torch_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 and more")
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from egret.checkpoint import read_checkpoint\n"
        "from egret.errors import EgretError\n"
        "try:\n"
        f"    read_checkpoint({str(tmp_path / 'w.pt')!r})\n"
        "except EgretError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("needs PyTorch: pip install 'egret[train]'")


def test_blocks_and_runs_of_elements(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    save_file({"w": array, "other": np.zeros(3)}, tmp_path / "w")
    tensor = read_checkpoint(tmp_path / "w")["w"]
    assert (tensor.size, tensor.data_bytes) == (24, 96)
    np.testing.assert_array_equal(tensor.read(5, 9), np.arange(5, 14))
    blocks = list(tensor.blocks(40))
    assert [block.size for block in blocks] == [40, 40, 16]
    assert b"".join(map(bytes, blocks)) == array.tobytes()


def test_arrays_are_not_copied_and_odd_ones_are_put_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = as_source(array, "w")
    array[1, 2] = 50
    assert source.read(5, 1).tolist() == [50]
    for odd in (array.T, array[:, ::2], array.astype(">f4"), array[0, 0]):
        found = as_source(odd, "w")
        assert (found.dtype, found.shape) == ("F32", odd.shape)
        np.testing.assert_array_equal(found.raw().array(), odd)


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_file({"w": np.zeros(100)}, path)
    tensor = read_checkpoint(path)["w"]
    tensor.read(0, 100)
    os.utime(path, ns=(5, 5))
    with pytest.raises(EgretError, match="w: has changed while it was being read"):
        tensor.read(0, 100)
    path.unlink()
    with pytest.raises(EgretError, match="w: cannot read this file"):
        tensor.read(0, 100)


def test_reads_no_more_than_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")
    file = InputFile(tmp_path / "f")
    assert bytes(file.read(2, 4)) == b"cd"
    assert bytes(file.read(4, 100)) == b"ef"
    assert bytes(file.read(9, 100)) == b""


def test_reads_that_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    file = InputFile(tmp_path / "f")
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:7]], at))
    assert bytes(file.read(3, 60)) == bytes(range(3, 60))
    out = np.zeros(80, np.uint8)
    assert bytes(file.read(3, 60, out)) == bytes(range(3, 60))
    assert not out[57:].any()


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """A file with a hole far larger than memory opens at once."""
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1 << 36], "data_offsets": [0, 1 << 38]}}
    ).encode()
    path = tmp_path / "w"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 38))
    checkpoint = read_checkpoint(path)
    assert checkpoint.data_bytes == 1 << 38
    assert checkpoint["w"].read((1 << 36) - 2, 2).tolist() == [0, 0]


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x4B50])
def test_headers_whose_length_looks_like_another_kind(tmp_path: Path, length: int) -> None:
    """0x480, little-endian, is how a pickle begins; 0x4B50 is how a zip file does."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    text = header + b" " * (length - len(header))
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + text + b"\7")
    assert read_checkpoint(tmp_path / "w")["w"].read(0, 1).tolist() == [7]
