"""Rate-distortion-optimised rounding: a weight is rounded for its error and for its bits.

The nearest multiple of the step is not always the best one. Where the next one towards 0, or 0
itself, has a shorter codeword, or joins two runs of zeros, it may save more than it spoils.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.codebook import Codebook
from egret.errors import EgretError

__all__ = ["Rounder", "check_lam"]

# Larger values are rounded to the nearest: their tables would be large, and their bits cost next
# to nothing beside their error.
_REACH = 1 << 16


def check_lam(lam: float, where: str) -> None:
    """Refuse a λ that is not a finite number of 0 or more; `where` begins the message.

    Raises
    ------
    EgretError
        It is not.
    """
    if isinstance(lam, bool) or not isinstance(lam, int | float):
        raise EgretError(f"{where}: found {lam!r}, expected a number of 0 or more")
    if not (math.isfinite(lam) and lam >= 0):
        raise EgretError(f"{where}: found {lam!r}, expected a finite number of 0 or more")


@njit(cache=True, nogil=True)
def _level(scaled: Any, nearest: Any, lengths: Any, lam: Any) -> Any:
    """Return the better of a value and, unless that is 0, the next one towards 0; and its cost."""
    reach = lengths.size // 2
    if not -reach <= nearest <= reach:
        return nearest, (scaled - nearest) ** 2
    cost = (scaled - nearest) ** 2 + lam * lengths[nearest + reach]
    lower = nearest - (1 if nearest > 0 else -1)
    if lower != 0:
        other = (scaled - lower) ** 2 + lam * lengths[lower + reach]
        if other < cost:
            return lower, other
    return nearest, cost


@njit(cache=True, nogil=True)
def _choose_direct(scaled: Any, values: Any, lengths: Any, lam: Any) -> None:
    zero = lam * lengths[lengths.size // 2]
    for place in range(values.size):
        if values[place] != 0:
            value, cost = _level(scaled[place], values[place], lengths, lam)
            values[place] = value if cost <= scaled[place] ** 2 + zero else 0


@njit(cache=True, nogil=True)
def _choose_runs(
    scaled: Any, values: Any, chunk: Any, lengths: Any, run_lengths: Any, lam: Any
) -> None:
    """Find the cheapest path from one weight that is not 0 to the next, chunk by chunk."""
    most = lam * run_lengths.max()
    size = min(chunk, values.size)
    # Place 0 stands before the chunk's first weight; the others are weights that may stay.
    places = np.empty(size + 2, np.int64)
    chosen = np.empty(size + 2, values.dtype)
    own = np.zeros(size + 2)
    dropped = np.zeros(size + 2)
    best = np.zeros(size + 2)
    before = np.zeros(size + 2, np.int64)
    for first in range(0, values.size, chunk):
        stop = min(values.size, first + chunk)
        places[0] = -1
        count = 0
        for place in range(first, stop):
            if values[place] != 0:
                count += 1
                places[count] = place - first
                chosen[count], own[count] = _level(scaled[place], values[place], lengths, lam)
                dropped[count] = scaled[place] ** 2
                values[place] = 0
        places[count + 1] = stop - first
        own[count + 1] = 0.0
        for item in range(1, count + 2):
            best[item] = np.inf
            between = 0.0
            earlier = item - 1
            while True:
                run = places[item] - places[earlier] - 1
                # A chunk that ends with a weight has no run after it.
                bits = run_lengths[run] if run > 0 or item <= count else 0
                total = best[earlier] + between + lam * bits
                if total < best[item]:
                    best[item] = total
                    before[item] = earlier
                # No path that leaves out `earlier` can cost less than this, because one through
                # it costs at most its own and a run more.
                least = best[earlier] - own[earlier] - most + dropped[earlier] + between
                if earlier == 0 or least >= best[item]:
                    break
                between += dropped[earlier]
                earlier -= 1
            best[item] += own[item]
        item = before[count + 1]
        while item > 0:
            values[first + places[item]] = chosen[item]
            item = before[item]


@dataclass(frozen=True, eq=False)
class Rounder:
    """Rounds weights to what costs least, in error and in the bits of one codebook.

    The cost of a tensor is Σ (w / step − q)² + λ · bits, where bits are the lengths of its
    codewords, those of the runs of zeros included. It is the least that any choice for each weight
    among the nearest multiple, the next one towards 0, and 0 can reach.

    Parameters
    ----------
    book : Codebook
        Codes whose lengths count. What it has no codeword for is taken to need one bit more than
        its longest: a codebook made for the result will have one.
    lam : float
        λ, 0 or more, in squared steps per bit. An entropy-coded uniform quantiser gains a bit a
        weight for 2 ln 2 / 12 = 0.116 squared steps when its step is small, so that a λ much above
        0.1 is better spent on a coarser step.

    Notes
    -----
    Source of the slope: H. Gish and J. Pierce, "Asymptotically efficient quantizing", 1968.
    """

    book: Codebook
    lam: float

    @cached_property
    def _run_lengths(self) -> NDArray[np.float64]:
        assert self.book.run is not None
        lengths = self.book.run.class_lengths
        runs = np.full(_REACH + 1, float(lengths[-1] + 1))
        known = min(runs.size, self.book.run.symbols)
        runs[:known] = self.book.run.lengths(np.arange(known))
        return runs

    def _lengths(self, reach: int) -> NDArray[np.float64]:
        """Return the bits of the values from -reach to reach."""
        values = np.arange(-reach, reach + 1, dtype=np.int32)
        indices = self.book.indices(values)
        lengths = np.full(values.size, float(self.book.level.class_lengths[-1] + 1))
        # In the run form 0 has no codeword of its own; its place is never looked at.
        known = (indices >= 0) & ((values != 0) | (not self.book.is_run))
        lengths[known] = self.book.level.lengths(indices[known])
        return lengths

    def improve(self, scaled: NDArray[np.float64], values: NDArray[np.int32], chunk: int) -> None:
        """Replace nearest values by the best ones, in place.

        Parameters
        ----------
        scaled : ndarray of float64, shape (count,)
            Weights in steps: a whole tensor, or a whole number of its chunks.
        values : ndarray of int32, shape (count,)
            The nearest integers; changed.
        chunk : int
            Weights in a chunk, 1 to `egret.codec.MAX_CHUNK`; runs end with it.
        """
        if values.size == 0 or self.lam == 0:
            return
        reach = min(_REACH, int(max(-int(values.min()), int(values.max()))))
        lengths = self._lengths(reach)
        if self.book.is_run:
            _choose_runs(scaled, values, chunk, lengths, self._run_lengths, self.lam)
        else:
            _choose_direct(scaled, values, lengths, self.lam)
