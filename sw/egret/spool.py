"""Finished work on disk, from which an interrupted packing goes on.

A spool is a folder beside the output, `.OUTPUT.partial`, with two files. `code` holds bytes that
are done. `journal` says what they are, a line of JSON and its CRC each: first a fingerprint of
the work, then one line for each piece of work that is done. A process can be killed at any time:
a line that is not whole, or whose bytes are not all there, is as if it had not been written.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from egret.crc import crc32c
from egret.errors import EgretError
from egret.files import checked_target

__all__ = ["Spool"]

_BLOCK_BYTES = 1 << 20


class Spool:
    """Keeps the bytes and the description of work that is done.

    Used in a `with` statement. Its end removes the spool after success and after an
    `EgretError`, which doing the same again would meet again; after anything else, an interrupt
    for instance, the spool stays for the next run.

    Parameters
    ----------
    output : str or Path
        The file that the work is for; the spool lies beside it.
    fingerprint : Mapping of str to JSON values, or None
        What the work depends on. Work found in a spool of another fingerprint is thrown away.
        None for work that cannot be taken up again: it is kept in a nameless file.

    Attributes
    ----------
    entries : list of dict
        What was given to `finish`, by this process and by those that were interrupted.
    folder : Path or None
        Where the spool lies; None for a nameless one.

    Raises
    ------
    EgretError
        Nothing can be written beside the output, or another process is working on it.
    """

    def __init__(self, output: str | Path, fingerprint: Mapping[str, Any] | None = None) -> None:
        target = checked_target(output)
        self.entries: list[dict[str, Any]] = []
        self.folder: Path | None = None
        self._journal: BinaryIO | None = None
        self._crc = 0
        self._start = 0
        try:
            if fingerprint is None:
                handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
                os.unlink(name)
                self._code: BinaryIO = os.fdopen(handle, "r+b")
                return
            self.folder = target.with_name(f".{target.name}.partial")
            self.folder.mkdir(exist_ok=True)
            self._code = _open(self.folder / "code")
            self._journal = _open(self.folder / "journal")
        except OSError as error:
            raise EgretError(f"{target}: cannot write here: {error.strerror}") from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EgretError(f"{target}: another process is writing this file") from error
        self._take_up(fingerprint)

    def _take_up(self, fingerprint: Mapping[str, Any]) -> None:
        assert self._journal is not None
        whole = 0
        number = 0
        for number, line in enumerate(self._journal):
            entry = _parse(line)
            if entry is None or (number == 0 and entry != _plain(fingerprint)):
                break
            if number:
                if not self._is_there(entry):
                    break
                self.entries.append(entry)
                self._start = entry["stop"]
            whole += len(line)
        self._journal.truncate(whole)
        self._journal.seek(whole)
        self._code.truncate(self._start)
        self._code.seek(self._start)
        if whole == 0:
            self._journal.write(_line(fingerprint))
            self._journal.flush()

    def _is_there(self, entry: Mapping[str, Any]) -> bool:
        if entry["start"] != self._start:
            return False
        crc = 0
        done = 0
        for block in self.read(entry["start"], entry["stop"]):
            crc = crc32c(block, crc)
            done += block.size
        return done == entry["stop"] - entry["start"] and crc == entry["crc"]

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._code.close()
        if self._journal is not None and self.folder is not None:
            if error is None or isinstance(error, EgretError):
                shutil.rmtree(self.folder, ignore_errors=True)
            self._journal.close()

    def append(self, data: NDArray[np.uint8]) -> None:
        """Add bytes to the piece of work under way."""
        self._code.write(data.data)
        self._crc = crc32c(data, self._crc)

    def finish(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """End the piece of work under way.

        Parameters
        ----------
        entry : Mapping of str to JSON values
            Describes it.

        Returns
        -------
        dict
            The description as `entries` has it, with the place of the bytes: "start" and
            "stop", which `read` takes, and their "crc".
        """
        self._code.flush()
        stop = self._code.tell()
        whole = _plain({**entry, "start": self._start, "stop": stop, "crc": self._crc})
        if self._journal is not None:
            self._journal.write(_line(whole))
            self._journal.flush()
        self._start, self._crc = stop, 0
        self.entries.append(whole)
        return whole

    def read(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Read the bytes from `start` up to `stop` in blocks."""
        while start < stop:
            data = os.pread(self._code.fileno(), min(_BLOCK_BYTES, stop - start), start)
            if not data:
                return
            start += len(data)
            yield np.frombuffer(data, np.uint8)


def _open(path: Path) -> BinaryIO:
    # Neither truncated, as "w+b" would, nor always written at the end, as with "a+b".
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what remains after writing and reading: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(entry))
    return plain


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % crc32c(text):
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry
