"""Work that was interrupted is taken up where it ended, and never where it is in doubt."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egret.errors import EgretError
from egret.spool import Spool

WORK = {"input": ["a", 3], "step": 8}


class Killed(BaseException):
    """Stands for what ends a process in the middle."""


def block(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def content(spool: Spool) -> dict[str, bytes]:
    return {
        entry["name"]: b"".join(bytes(b) for b in spool.read(entry["start"], entry["stop"]))
        for entry in spool.entries
    }


def work(output: Path, fingerprint: Any, *names: str) -> None:
    """Finish pieces of work called `names`, begin another, and die."""
    with Spool(output, fingerprint) as spool:
        for name in names:
            spool.append(block(b"first of "))
            spool.append(block(name.encode()))
            spool.finish({"name": name})
        spool.append(block(b"begun"))
        raise Killed


def interrupted(output: Path, fingerprint: Any, *names: str) -> None:
    with pytest.raises(Killed):
        work(output, fingerprint, *names)


def test_interrupted_work_is_taken_up(tmp_path: Path) -> None:
    output = tmp_path / "out"
    interrupted(output, WORK, "a", "b")
    interrupted(output, WORK, "c")
    folder = tmp_path / ".out.partial"
    with Spool(output, WORK) as spool:
        assert spool.folder == folder
        assert content(spool) == {n: b"first of " + n.encode() for n in ("a", "b", "c")}
        spool.append(block(b"d"))
        assert spool.finish({"name": "d", "pair": (1, 2)})["pair"] == [1, 2]
        assert content(spool)["d"] == b"d"
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_other_work_starts_anew(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", WORK, "a", "b")
    with Spool(tmp_path / "out", {**WORK, "step": 9}) as spool:
        assert spool.entries == []
        assert spool.folder is not None
        assert (spool.folder / "code").stat().st_size == 0


def fail(output: Path) -> None:
    with Spool(output, WORK) as spool:
        spool.finish({"name": "a"})
        raise EgretError("wrong")


def test_an_error_of_the_input_removes_it(tmp_path: Path) -> None:
    with pytest.raises(EgretError):
        fail(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_journal_cut_at_every_byte(tmp_path: Path) -> None:
    output, folder = tmp_path / "out", tmp_path / ".out.partial"
    interrupted(output, WORK, "a", "b")
    journal, code = ((folder / name).read_bytes() for name in ("journal", "code"))
    lines = journal.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    for cut in range(len(journal) + 1):
        (folder / "journal").write_bytes(journal[:cut])
        (folder / "code").write_bytes(code)
        whole = int((ends <= cut).sum())
        try:
            with Spool(output, WORK) as spool:
                assert list(content(spool)) == ["a", "b"][: max(0, whole - 1)], cut
                spool.append(block(b"z"))
                spool.finish({"name": "z"})
                assert content(spool)["z"] == b"z"
                raise Killed
        except Killed:
            assert (folder / "journal").read_bytes().startswith(lines[0])


@pytest.mark.parametrize(("place", "kept"), [(0, []), (10, ["a"])])
def test_code_that_is_damaged_or_missing_is_done_again(
    tmp_path: Path, place: int, kept: list[str]
) -> None:
    output, folder = tmp_path / "out", tmp_path / ".out.partial"
    interrupted(output, WORK, "a", "b")
    code = (folder / "code").read_bytes()
    journal = (folder / "journal").read_bytes()
    flipped = bytearray(code)
    flipped[place] ^= 1
    for wrong in (bytes(flipped), code[: place + 5]):
        folder.mkdir(exist_ok=True)
        (folder / "code").write_bytes(wrong)
        (folder / "journal").write_bytes(journal)
        with Spool(output, WORK) as spool:
            assert list(content(spool)) == kept


def test_two_processes_do_not_mix(tmp_path: Path) -> None:
    output = tmp_path / "out"
    program = (
        "import sys\n"
        "from egret.spool import Spool\n"
        f"with Spool({str(output)!r}, {{'x': 1}}):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(EgretError, match="out: another process is writing this file"):
            Spool(output, {"x": 1})
        other.communicate("")
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_nameless_one_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work(tmp_path / "out", None, "a")
    assert list(tmp_path.iterdir()) == []
    with Spool(tmp_path / "out") as spool:
        spool.append(block(b"ab"))
        spool.finish({"name": "x"})
        assert content(spool) == {"x": b"ab"}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EgretError, match="cannot write here"):
        Spool(tmp_path / "file" / "out", WORK)
    with pytest.raises(EgretError, match="found no regular file"):
        Spool(tmp_path, WORK)
