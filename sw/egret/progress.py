"""How far long work has come, on standard error."""

import sys
import time
from types import TracebackType
from typing import TextIO

__all__ = ["Progress", "format_bytes"]

_QUIET_SECONDS = 2.0
_TERMINAL_SECONDS = 0.2
_LINE_SECONDS = 5.0
_BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


def format_bytes(count: float) -> str:
    """Return a number of bytes in a unit that suits it, such as "2.2 GB"."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _format_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


class Progress:
    """Shows how far work has come, once it has taken two seconds.

    On a terminal this is a bar that is drawn anew in its place; elsewhere a line every five
    seconds. Used in a `with` statement, whose end takes the bar away.

    Parameters
    ----------
    action : str
        What is done, such as "packing".
    stream : text file, optional
        Where to write; standard error when absent.
    """

    def __init__(self, action: str, stream: TextIO | None = None) -> None:
        self._action = action
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began: tuple[float, int] | None = None
        self._next = time.monotonic() + _QUIET_SECONDS
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawn and self._terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Note that `done` of `total` bytes are done and that `name` is being worked on."""
        now = time.monotonic()
        if self._began is None:
            # What was done before is no measure of the speed.
            self._began = (now, done)
        if now < self._next:
            return
        self._next = now + (_TERMINAL_SECONDS if self._terminal else _LINE_SECONDS)
        self._drawn = True
        line = self._line(now, name, done, total)
        self._stream.write(f"{_CLEAR}{line}" if self._terminal else f"{line}\n")
        self._stream.flush()

    def _line(self, now: float, name: str, done: int, total: int) -> str:
        share = done / total if total else 1.0
        start, before = self._began or (now, done)
        filled = int(share * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        left = ""
        if done > before and now > start:
            seconds = (total - done) * (now - start) / (done - before)
            left = f", {_format_seconds(seconds)} left"
        return (
            f"  {self._action} [{bar}] {100 * share:3.0f} %, {format_bytes(done)} of "
            f"{format_bytes(total)}{left}: {name}"
        )
