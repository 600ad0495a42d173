"""Outputs appear whole or not at all."""

import errno
import os
import re
from pathlib import Path

import pytest

from egret.errors import EgretError
from egret.files import atomic_path, check_folder, check_writable, write_bytes, write_text


def fail_within(target: Path) -> None:
    """Write half of `target`, then fail."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ValueError("in the middle")


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="in the middle"):
        fail_within(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in the middle"):
        fail_within(tmp_path / "out.txt")
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out.txt"
    write_text(target, "ν = 0.8\n")
    assert target.read_bytes() == b"\xce\xbd = 0.8\n"


def test_line_ends_are_not_translated(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\nb\n")
    assert (tmp_path / "t").read_bytes() == b"a\r\nb\n"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "out", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EgretError, match=r"file/out: cannot write here: ") as error:
        write_bytes(tmp_path / "file" / "out", b"x")
    assert "\n" not in str(error.value)


def test_target_that_is_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(EgretError, match=r"folder: cannot write here: found no regular file"):
        write_bytes(target, b"x")
    assert list(tmp_path.iterdir()) == [target]


def test_target_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_target_that_is_a_device() -> None:
    with pytest.raises(EgretError, match=r"/dev/null: cannot write here"):
        write_text("/dev/null", "new")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "full"
    message = f"{target}: cannot write this file: No space left on device"
    with pytest.raises(EgretError, match=re.escape(message)), atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_faults_of_other_files_are_left_alone(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "target"):
        missing.read_bytes()


def test_targets_are_checked_ahead_and_left_alone(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    check_writable(old)
    check_writable(tmp_path / "new" / "file")
    check_folder(tmp_path / "other" / "below")
    check_folder(tmp_path)
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "old"]
    with pytest.raises(EgretError, match=r"old: found a file, expected a folder to write to$"):
        check_folder(old)
    with pytest.raises(EgretError, match=r"old/below: cannot write here: Not a directory$"):
        check_folder(old / "below")
    with pytest.raises(EgretError, match=r"new: cannot write here: found no regular file"):
        check_writable(tmp_path / "new")
    with pytest.raises(EgretError, match=r"old/below: cannot write here"):
        check_writable(old / "below")
