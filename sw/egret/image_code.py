"""Codes as the accelerator reads them, and the best ones for given histograms.

docs/format.md, chapter 2, "Codes".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.codebook import golomb_costs
from egret.image_format import CLASSES, ENTRY_FIELDS
from egret.prefix_code import PrefixCode

__all__ = ["HardwareCode", "best_golomb", "best_table", "class_offsets", "codewords", "golomb_code"]

_OFFSET_MAX = (1 << (ENTRY_FIELDS["offset"].width - 1)) - 1
_OFFSET_MIN = -_OFFSET_MAX - 1
_INFINITE = 1 << 62


def golomb_code(order: int, suffix_limit: int) -> PrefixCode:
    """Return the exp-Golomb code of an order with the classes that an accelerator reads.

    Parameters
    ----------
    order : int
        k, 0 to `suffix_limit`.
    suffix_limit : int
        J: most suffix bits of a codeword.
    """
    return PrefixCode(tuple(range(order, suffix_limit + 1)), order)


def class_offsets(code: PrefixCode) -> NDArray[np.int64]:
    """Return what an accelerator adds to a codeword's number in each class.

    The number is the suffix with a one bit before it, but in a table's last class the suffix alone.

    Parameters
    ----------
    code : PrefixCode
        The code.

    Returns
    -------
    ndarray of int64, shape (classes,)
        Offsets: with them, the class's first codeword stands for its first symbol.
    """
    offsets = code.bases[:-1] - np.left_shift(1, np.array(code.suffix_bits, np.int64))
    if code.order is None:
        offsets[-1] = code.bases[-2]
    return offsets


def codewords(code: PrefixCode, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the codewords of the first symbols.

    Parameters
    ----------
    code : PrefixCode
        The code; its codewords have at most 32 bits.
    count : int
        Number of symbols, at most `code.symbols`.

    Returns
    -------
    words : ndarray of uint32, shape (count,)
        The codewords as numbers.
    lengths : ndarray of uint8, shape (count,)
        Their bits.
    """
    symbols = np.arange(count)
    classes = np.searchsorted(code.bases, symbols, side="right") - 1
    words = symbols - class_offsets(code)[classes]
    return words.astype(np.uint32), code.class_lengths[classes].astype(np.uint8)


@dataclass(frozen=True)
class HardwareCode:
    """A code as one of an accelerator's banks holds it.

    Parameters
    ----------
    level : PrefixCode
        Code of the indices.
    run : PrefixCode or None
        Code of the runs of zeros before them; None without the run form.
    dense : bool
        Index 0 is an ordinary index.
    """

    level: PrefixCode
    run: PrefixCode | None = None
    dense: bool = False

    @property
    def name(self) -> str:
        """Name of the code: eg-0 … eg-7, eg-run, eg-table or eg-table-run."""
        if self.run is None:
            return "eg-table" if self.level.order is None else f"eg-{self.level.order}"
        is_golomb = self.level.order is not None and self.run.order is not None
        return "eg-run" if is_golomb else "eg-table-run"

    @property
    def needs_filler(self) -> bool:
        """Whether what follows a range's last weight is fillers, which take a codeword."""
        if self.run is None:
            return self.dense and self.level.order is None
        return self.run.order is None


def best_golomb(
    histogram: NDArray[np.int64], suffix_limit: int, orders: tuple[int, ...]
) -> tuple[int, PrefixCode] | None:
    """Find the exp-Golomb code with the fewest bits.

    Parameters
    ----------
    histogram : ndarray of int64, shape (symbols,)
        How often each symbol occurs; the last one needs a codeword in any case.
    suffix_limit : int
        J: most suffix bits of a codeword.
    orders : tuple of int
        Orders to choose from, 0 to `egret.params.MAX_ORDER`.

    Returns
    -------
    (int, PrefixCode) or None
        Bits of the codewords and the code; None where no order has so many symbols.
    """
    symbols = np.flatnonzero(histogram)
    costs = golomb_costs(symbols, histogram[symbols])
    best: tuple[int, PrefixCode] | None = None
    for order in orders:
        code = golomb_code(order, suffix_limit)
        if (
            order <= suffix_limit
            and code.symbols >= histogram.size
            and (best is None or costs[order] < best[0])
        ):
            best = int(costs[order]), code
    return best


@njit(cache=True, nogil=True)
def _best_suffixes(beyond: Any, suffix_limit: Any, layers: Any, low: Any, high: Any) -> Any:
    """Find the suffix bits of at most `layers` classes; `beyond` counts symbols from a place on."""
    end = beyond.size - 1
    best = np.full((layers, end), _INFINITE, np.int64)
    chosen = np.zeros((layers, end), np.int64)
    for layer in range(layers - 1, -1, -1):
        for place in range(end - 1, -1, -1):
            for suffix in range(suffix_limit + 1):
                after = place + (1 << suffix)
                if after >= end:
                    # A lone class without suffix would have no bits at all.
                    if place <= high and (suffix > 0 or layer > 0):
                        bits = suffix * beyond[place]
                        if bits < best[layer, place]:
                            best[layer, place] = bits
                            chosen[layer, place] = suffix
                    if suffix > 0 or layer > 0:
                        break
                    continue
                offset = place - (1 << suffix)
                if layer == layers - 1 or offset < low or offset > high:
                    continue
                rest = best[layer + 1, after]
                if rest >= _INFINITE:
                    continue
                bits = beyond[place] + suffix * (beyond[place] - beyond[after]) + rest
                if bits < best[layer, place]:
                    best[layer, place] = bits
                    chosen[layer, place] = suffix
    suffix_bits = np.zeros(layers, np.int64)
    classes = 0
    place = 0
    while place < end and best[0, 0] < _INFINITE:
        suffix_bits[classes] = chosen[classes, place]
        place += 1 << suffix_bits[classes]
        classes += 1
    return best[0, 0], suffix_bits[:classes]


def best_table(histogram: NDArray[np.int64], suffix_limit: int) -> tuple[int, PrefixCode] | None:
    """Find the table with the fewest bits.

    Parameters
    ----------
    histogram : ndarray of int64, shape (symbols,)
        How often each symbol occurs; the last one needs a codeword in any case.
    suffix_limit : int
        J: most suffix bits of a class.

    Returns
    -------
    (int, PrefixCode) or None
        Bits of the codewords and the code; None where no table has so many symbols.
    """
    beyond = np.concatenate((np.cumsum(histogram[::-1])[::-1], [0]))
    bits, suffix_bits = _best_suffixes(
        beyond.astype(np.int64), suffix_limit, CLASSES, _OFFSET_MIN, _OFFSET_MAX
    )
    if bits >= _INFINITE:
        return None
    return int(bits), PrefixCode.table(tuple(suffix_bits.tolist()))
