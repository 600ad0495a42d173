"""Packing that is killed goes on where it ended, and gives the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from egret.checkpoint import read_checkpoint
from egret.cli import main
from egret.errors import EgretError
from egret.packing import load, pack

SEED = 31
TENSORS = 5

PROGRAM = """
import os, signal, sys
from egret.packing import pack
source, target, share, sign, step = sys.argv[1:]
def progress(name, done, total):
    if done >= float(share) * total:
        os.kill(os.getpid(), int(sign))
def notice(text):
    print(text, flush=True)
pack(source, target, step_log2=int(step), progress=progress, notice=notice)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(SEED)
    state = {
        f"large{n}": rng.laplace(0, 0.01 * (n + 1), (600, 512)).astype(np.float32)
        for n in range(TENSORS)
    }
    state |= {f"small{n}": rng.laplace(0, 0.1, (20, 30)).astype(np.float16) for n in range(TENSORS)}
    # Copied last, when everything is coded.
    state |= {f"kept{n}": rng.normal(0, 1, 300_000).astype(np.float32) for n in range(2)}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    return path


def run(
    source: Path, target: Path, share: float, sign: int = signal.SIGKILL, step: int = 8
) -> subprocess.CompletedProcess[str]:
    """Pack until this share of the bytes is done, then send the process a signal."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, source, target, str(share), str(int(sign)), str(step)],
        capture_output=True,
        text=True,
        check=False,
    )


def spool(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_packing_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.egret", tmp_path / "out.egret"
    pack(source, whole)
    target.write_bytes(b"an older file")
    groups = 0
    for share in (0.1, 0.4, 0.6, 0.8):
        killed = run(source, target, share)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert target.read_bytes() == b"an older file"
        assert ("going on with the packing" in killed.stdout) == (groups > 0), share
        before, groups = groups, len((spool(target) / "journal").read_text().splitlines()) - 1
        assert groups > before or share in (0.1, 0.8), share
    finished = run(source, target, 2)
    assert finished.returncode == 0, finished.stderr
    assert f"after {2 * TENSORS} of {2 * TENSORS} tensors" in finished.stdout
    assert target.read_bytes() == whole.read_bytes()
    assert not spool(target).exists()


def test_killed_while_a_tensor_is_half_coded(source: Path, tmp_path: Path) -> None:
    """The code of the tensor under way is thrown away, not put in twice."""
    whole, target = tmp_path / "whole.egret", tmp_path / "out.egret"
    pack(source, whole)
    assert run(source, target, 0.35).returncode == -signal.SIGKILL
    with (spool(target) / "code").open("ab") as file:
        file.write(bytes(1000))
    with (spool(target) / "journal").open("ab") as file:
        file.write(b'12345678 {"tensors":[{"name":"lar')
    pack(source, target)
    assert target.read_bytes() == whole.read_bytes()


def test_another_step_starts_anew(source: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.egret", tmp_path / "out.egret"
    pack(source, whole, step_log2=6)
    run(source, target, 0.5, step=8)
    notices: list[str] = []
    pack(source, target, step_log2=6, notice=notices.append)
    assert notices == []
    assert target.read_bytes() == whole.read_bytes()


def test_a_changed_input_starts_anew(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.egret"
    run(source, target, 0.5)
    state = {name: tensor.raw().array() for name, tensor in read_checkpoint(source).items()}
    changed = {**state, "large0": state["large0"] + 1}
    save_file(changed, source)
    os.utime(source, ns=(1, 1))
    pack(source, target)
    expected = np.rint(changed["large0"] * 256.0) / 256
    np.testing.assert_array_equal(load(target)["large0"], expected)


def test_threads_and_memory_may_change(source: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.egret", tmp_path / "out.egret"
    pack(source, whole)
    run(source, target, 0.5)
    notices: list[str] = []
    pack(source, target, threads=2, memory=1 << 31, notice=notices.append)
    assert len(notices) == 1
    assert target.read_bytes() == whole.read_bytes()


def test_an_interrupt_keeps_what_is_done(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.egret"
    interrupted = run(source, target, 0.5, signal.SIGINT)
    assert "KeyboardInterrupt" in interrupted.stderr
    assert spool(target).is_dir()
    assert main(["pack", str(source), "-o", str(target), "--step", "8"]) == 0
    assert "out.egret: going on with the packing" in capsys.readouterr().err
    assert leftovers(tmp_path) == ["model.safetensors", "out.egret"]


def test_an_error_leaves_nothing(source: Path, tmp_path: Path) -> None:
    state = {name: tensor.raw().array() for name, tensor in read_checkpoint(source).items()}
    large = state[f"large{TENSORS - 1}"].copy()
    large[-1, -1] = np.nan
    save_file({**state, f"large{TENSORS - 1}": large}, source)
    with pytest.raises(EgretError, match=r"weight \[599, 511\] is nan"):
        pack(source, tmp_path / "out.egret")
    assert leftovers(tmp_path) == ["model.safetensors"]
