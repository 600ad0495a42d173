"""Writing files so that a reader never sees half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from egret.errors import EgretError

__all__ = [
    "atomic_path",
    "check_folder",
    "check_writable",
    "checked_target",
    "write_bytes",
    "write_text",
]


def checked_target(target: str | Path) -> Path:
    """Return the file that writing to `target` makes or replaces, and make its folder.

    Parameters
    ----------
    target : str or Path
        Name of the output. A link is followed, so that it is written through and not replaced.

    Raises
    ------
    EgretError
        The folder cannot be created, or the target is a folder or a device.
    """
    target = Path(target).resolve() if Path(target).is_symlink() else Path(target)
    if target.name == "" or (target.exists() and not target.is_file()):
        raise EgretError(
            f"{target}: cannot write here: found no regular file, expected a file name"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EgretError(f"{target}: cannot write here: {error.strerror}") from error
    return target


def check_writable(target: str | Path) -> None:
    """Find out before a long computation whether its result can be written.

    Parameters
    ----------
    target : str or Path
        Name of the output. Its folder is created when missing; nothing is left in it.

    Raises
    ------
    EgretError
        As from `atomic_path`.
    """
    with suppress(_Unchanged), atomic_path(target):
        raise _Unchanged


def check_folder(folder: str | Path) -> None:
    """Find out before a long computation whether its results can be written into a folder.

    Parameters
    ----------
    folder : str or Path
        The folder, which need not be there yet; nothing is made.

    Raises
    ------
    EgretError
        It is none, or cannot be created or written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise EgretError(f"{folder}: found a file, expected a folder to write to")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise EgretError(f"{folder}: cannot write here: {error.strerror}") from error


class _Unchanged(Exception):
    """Leaves `atomic_path` without a file."""


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that is renamed to `target` on success.

    Parameters
    ----------
    target : str or Path
        The final name. Its folder is created when missing.

    Yields
    ------
    Path
        Name to write to. On an exception it is removed and `target` stays as it was.

    Raises
    ------
    EgretError
        The folder cannot be created or written to, the target is a folder or a device, or what is
        written to the yielded path finds no room.
    """
    target = checked_target(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise EgretError(f"{target}: cannot write here: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except OSError as error:
            # A failed write names no file, or the temporary one.
            if error.filename not in (None, name):
                raise
            raise EgretError(f"{target}: cannot write this file: {error.strerror}") from error
        # mkstemp makes private files; a result should have the user's usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            temporary.replace(target)
        except OSError as error:
            raise EgretError(f"{target}: cannot write this file: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(target: str | Path, data: bytes) -> None:
    """Write `data` to `target` through a temporary name."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: str | Path, text: str) -> None:
    """Write `text` to `target` as UTF-8 through a temporary name."""
    write_bytes(target, text.encode("utf-8"))
