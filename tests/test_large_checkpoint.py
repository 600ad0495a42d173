"""A sharded checkpoint far larger than the memory that packing may take."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import egret

MEMORY = 512 << 20
COLUMNS = 4096
BLOCK_ROWS = 256
# Rows of the tensors of each shard; of F32 the largest have 200 MiB.
SHARDS = [
    *[{f"layers.{n}.a": ("F32", 12_800), f"layers.{n}.b": ("F32", 12_800)} for n in range(4)],
    {f"layers.{n}.c": ("BF16", 12_800) for n in range(3)},
    {f"layers.{n}.d": ("F16", 12_800) for n in range(2)},
]
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
SMALL = 64
SEED = 20


def weights_block() -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return rng.laplace(0, 0.02, (BLOCK_ROWS, COLUMNS)).astype(np.float32)


def words(block: np.ndarray, number: int, dtype: str) -> np.ndarray:
    """Make the block that the tensor of this number repeats."""
    block = np.roll(block, 131 * number, axis=1)
    if dtype == "BF16":
        return (block.view(np.uint32) >> 16).astype(np.uint16)
    return block.astype(np.float16 if dtype == "F16" else np.float32)


def numbers(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def write_checkpoint(folder: Path) -> tuple[Path, int]:
    """Write shards and their index; return the index and the bytes of all tensors."""
    block = weights_block()
    places: dict[str, str] = {}
    total = number = 0
    for shard, tensors in enumerate(SHARDS):
        name = f"model-{shard + 1:05}-of-{len(SHARDS):05}.safetensors"
        header = {}
        end = 0
        for tensor, (dtype, rows) in tensors.items():
            size = rows * COLUMNS * BYTES[dtype]
            shape = [rows, COLUMNS]
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        for norm in range(SMALL):
            tensor = f"norms.{shard}.{norm}"
            header[tensor] = {
                "dtype": "F32",
                "shape": [8, 64],
                "data_offsets": [end, end + 4 * 8 * 64],
            }
            end += 4 * 8 * 64
        places |= dict.fromkeys(header, name)
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for dtype, rows in tensors.values():
                data = words(block, number, dtype).tobytes()
                number += 1
                for _ in range(rows // BLOCK_ROWS):
                    file.write(data)
            for norm in range(SMALL):
                file.write(np.full(8 * 64, shard + norm / 64, np.float32).tobytes())
        total += end
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return index, total


# ru_maxrss of a child counts its parent's memory too: after a fork they are one.
PROGRAM = """
import re, resource, sys
from pathlib import Path
from egret.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
if status.exists():
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
sys.exit(code)
"""


def test_packs_within_its_memory(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < 4 << 30:
        pytest.fail(f"{tmp_path}: {free >> 20} MiB are free, this test needs 4096")
    index, total = write_checkpoint(tmp_path)
    assert total > 4 * MEMORY
    packed = tmp_path / "model.egret"
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "pack", index, "-o", packed, "--memory", "512M"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peak = int(done.stdout.split()[-1])
        largest = 12_800 * COLUMNS * BYTES["F32"]
        assert peak <= MEMORY + largest, f"{peak >> 20} MiB"
        check(packed)
    finally:
        for file in tmp_path.iterdir():
            file.unlink()


def check(packed: Path) -> None:
    """Compare some rows of every large tensor, and all small ones."""
    block = weights_block()
    rng = np.random.default_rng(SEED)
    with egret.load(packed) as weights:
        number = 0
        for shard, tensors in enumerate(SHARDS):
            for name, (dtype, rows) in tensors.items():
                exact = numbers(words(block, number, dtype))
                number += 1
                for first in (0, rows - 3, *map(int, rng.integers(0, rows - 3, 3))):
                    found = weights.quantized(name, rows=(first, first + 3))
                    assert found.dtype == dtype
                    expected = np.rint(256 * exact[np.arange(first, first + 3) % BLOCK_ROWS])
                    np.testing.assert_array_equal(
                        found.values, expected, f"{name}, row {first}, seed {SEED}"
                    )
            for norm in range(SMALL):
                value = np.rint(256 * (shard + norm / 64)) / 256
                assert (weights[f"norms.{shard}.{norm}"] == value).all()
