"""A progress line on standard error for work that takes long."""

import sys
import time

__all__ = ["Progress"]

_QUIET_SECONDS = 2.0
_INTERVAL_SECONDS = 1.0


class Progress:
    """Says every second what is being worked on, once it has taken two.

    Parameters
    ----------
    action : str
        What is done, such as "packing".
    """

    def __init__(self, action: str) -> None:
        self._action = action
        self._done = 0
        self._next = time.monotonic() + _QUIET_SECONDS

    def __call__(self, name: str, total: int) -> None:
        """Note that work on the next of `total` items, `name`, begins."""
        self._done += 1
        now = time.monotonic()
        if now >= self._next:
            print(f"  {self._action} {self._done}/{total}: {name}", file=sys.stderr, flush=True)
            self._next = now + _INTERVAL_SECONDS
