"""Prefix codes of classes: a unary class, then a suffix; docs/format.md, "Prefix codes".

Exp-Golomb codes and the tables of `eg-table` are the same thing with other suffix lengths, so
that one decoder, in software as in gates, reads them all.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from egret.errors import FormatError
from egret.params import MAX_ORDER

__all__ = [
    "LONGEST_CODEWORD",
    "MAX_CLASSES",
    "MAX_GOLOMB_SUFFIX",
    "MAX_TABLE_SUFFIX",
    "PrefixCode",
]

MAX_GOLOMB_SUFFIX = 28
"""Most suffix bits of an exp-Golomb codeword in the container."""
MAX_CLASSES = 16
"""Most classes of a table."""
MAX_TABLE_SUFFIX = 24
"""Most suffix bits of a table's class."""
LONGEST_CODEWORD = 2 * MAX_GOLOMB_SUFFIX + 1
"""Bits of the longest codeword: any whole codeword lies in 64 bits read from a byte's start."""

# Longer than any codeword, and a bit of its own; the symbol read with it is 0 or 1.
_NO_CODEWORD = 64 | 63 << 8


@dataclass(frozen=True)
class PrefixCode:
    """A code whose class j holds the next 2^suffix_bits[j] symbols.

    Parameters
    ----------
    suffix_bits : tuple of int
        Suffix bits of each class.
    order : int or None
        k of an exp-Golomb code, whose classes all have a one bit. None for a table, whose last
        class has none.
    """

    suffix_bits: tuple[int, ...]
    order: int | None = None

    @classmethod
    def golomb(cls, order: int) -> Self:
        """Return the exp-Golomb code of an order, 0 to `egret.params.MAX_ORDER`.

        Raises
        ------
        FormatError
            The order is out of range.
        """
        if not 0 <= order <= MAX_ORDER:
            raise FormatError(f"found exp-Golomb order {order}, expected 0 to {MAX_ORDER}")
        return cls(tuple(range(order, MAX_GOLOMB_SUFFIX + 1)), order)

    @classmethod
    def table(cls, suffix_bits: tuple[int, ...]) -> Self:
        """Return the code of a table with these suffix bits.

        Raises
        ------
        FormatError
            Too few or too many classes, or suffix bits out of range.
        """
        if not 1 <= len(suffix_bits) <= MAX_CLASSES:
            raise FormatError(f"found {len(suffix_bits)} classes, expected 1 to {MAX_CLASSES}")
        if not all(0 <= bits <= MAX_TABLE_SUFFIX for bits in suffix_bits):
            raise FormatError(
                f"found suffix bits {suffix_bits}, expected 0 to {MAX_TABLE_SUFFIX} each"
            )
        return cls(suffix_bits)

    @cached_property
    def bases(self) -> NDArray[np.int64]:
        """First symbol of each class, and the number of symbols: shape (classes + 1,), int64."""
        sizes = np.left_shift(1, np.array(self.suffix_bits, np.int64))
        return np.concatenate(([0], np.cumsum(sizes)))

    @property
    def symbols(self) -> int:
        """Number of symbols that have a codeword."""
        return int(self.bases[-1])

    @property
    def classes(self) -> tuple[NDArray[np.int64], bool]:
        """The suffix bits as an array, and whether the last class too has a one bit."""
        return np.array(self.suffix_bits, np.int64), self.order is not None

    @cached_property
    def class_lengths(self) -> NDArray[np.int64]:
        """Bits of the codewords of each class: shape (classes,), int64."""
        lengths = np.arange(1, len(self.suffix_bits) + 1) + np.array(self.suffix_bits, np.int64)
        if self.order is None:
            lengths[-1] -= 1
        return lengths

    def lengths(self, symbols: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bits of symbols' codewords.

        Parameters
        ----------
        symbols : ndarray of integers
            Symbols, each below `symbols`.

        Returns
        -------
        ndarray of int64
            Bits, in the same shape.
        """
        return self.class_lengths[np.searchsorted(self.bases, symbols, side="right") - 1]

    @cached_property
    def decode_rows(self) -> NDArray[np.uint64]:
        """What a decoder does after each number of leading zeros: shape (65,), uint64.

        Bits 7:0 are the codeword's length (64: there is no such codeword), 15:8 are 63 less the
        suffix bits, 23:16 the bits before the suffix, 63:32 the first symbol of the class.
        """
        zeros = np.arange(65)
        numbers = np.minimum(zeros, len(self.suffix_bits) - 1)
        suffix = np.array(self.suffix_bits, np.int64)[numbers]
        lengths = self.class_lengths[numbers]
        rows = lengths | (63 - suffix) << 8 | (lengths - suffix) << 16 | self.bases[numbers] << 32
        if self.order is not None:
            rows[zeros >= len(self.suffix_bits)] = _NO_CODEWORD
        return rows.astype(np.uint64)
