"""CRC-32C (Castagnoli): reflected, all-ones start, final inversion (RFC 3720, section 12.1)."""

from typing import Any

import crc32c as library
from numpy.typing import NDArray

__all__ = ["crc32c"]


def crc32c(data: bytes | bytearray | memoryview | NDArray[Any], value: int = 0) -> int:
    """Return the CRC-32C of bytes.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8
        The bytes, in one piece.
    value : int
        CRC of the bytes before these, to continue it.

    Returns
    -------
    int
        The CRC, 0 to 2^32 - 1.
    """
    return library.crc32c(data, value)
