"""CRC-32C (Castagnoli): reflected, all-ones start, final inversion (RFC 3720, section 12.1)."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.image_format import CRC_POLYNOMIAL

__all__ = ["crc32c"]


def _tables() -> NDArray[np.uint32]:
    """Build tables[j][b]: the CRC register after byte b and j zero bytes."""
    reflected = int(f"{CRC_POLYNOMIAL:032b}"[::-1], 2)
    first: NDArray[Any] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = (first >> 1) ^ np.where(first & 1, np.uint32(reflected), np.uint32(0))
    tables = [first]
    for _ in range(7):
        tables.append((tables[-1] >> 8) ^ first[tables[-1] & 255])
    return np.stack(tables).astype(np.uint32)


_TABLES = _tables()


@njit(cache=True, nogil=True)
def _update(data: Any, register: Any, tables: Any) -> Any:
    register = np.uint32(register)
    whole = data.size - data.size % 8
    for start in range(0, whole, 8):
        # Eight bytes at once: each has its own table for the bytes that follow it.
        mixed = (
            tables[7, (register & np.uint32(255)) ^ data[start]]
            ^ tables[6, ((register >> np.uint32(8)) & np.uint32(255)) ^ data[start + 1]]
            ^ tables[5, ((register >> np.uint32(16)) & np.uint32(255)) ^ data[start + 2]]
            ^ tables[4, (register >> np.uint32(24)) ^ data[start + 3]]
        )
        register = np.uint32(
            mixed
            ^ tables[3, data[start + 4]]
            ^ tables[2, data[start + 5]]
            ^ tables[1, data[start + 6]]
            ^ tables[0, data[start + 7]]
        )
    for place in range(whole, data.size):
        index = (register ^ np.uint32(data[place])) & np.uint32(255)
        register = np.uint32((register >> np.uint32(8)) ^ tables[0, index])
    return register


def crc32c(data: bytes | bytearray | memoryview | NDArray[np.uint8], value: int = 0) -> int:
    """Return the CRC-32C of bytes.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8
        The bytes.
    value : int
        CRC of the bytes before these, to continue it.

    Returns
    -------
    int
        The CRC, 0 to 2^32 - 1.
    """
    view = np.frombuffer(data, np.uint8)
    return int(_update(view, np.uint32(value ^ 0xFFFFFFFF), _TABLES)) ^ 0xFFFFFFFF
