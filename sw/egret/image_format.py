"""Constants of the hardware image: the one source for the packer, the RTL and the golden model.

The prose is chapter 2 of docs/format.md; a test compares its tables with this module.
"""

from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "CODE_EG_K",
    "CRC_BITS",
    "CRC_POLYNOMIAL",
    "DESCRIPTOR_BYTES",
    "DESCRIPTOR_WORDS",
    "ENTRY_BITS",
    "FIELDS",
    "IMAGE_MAGIC",
    "IMAGE_VERSION",
    "ROW_UNUSED",
    "ErrorKind",
    "Field",
]

IMAGE_MAGIC = 0x4745
"""First 16 bits of a descriptor: the bytes "EG"."""
IMAGE_VERSION = 1
DESCRIPTOR_WORDS = 8
"""32-bit words of a descriptor."""
DESCRIPTOR_BYTES = 4 * DESCRIPTOR_WORDS
ENTRY_BITS = 16
"""Width of an entry of the map, counts and rows sections."""
ROW_UNUSED = 0xFFFF
"""Entry of the rows section that names no row."""
CODE_EG_K = 0
"""Descriptor field `code`: exp-Golomb of order k over the index."""
CRC_BITS = 32
CRC_POLYNOMIAL = 0x1EDC6F41
"""CRC-32C (Castagnoli), RFC 3720 section 12.1: reflected, all-ones start and final inversion."""


@dataclass(frozen=True)
class Field:
    """Place of a descriptor field.

    Parameters
    ----------
    word : int
        32-bit word of the descriptor, from 0.
    lsb : int
        Lowest bit in that word.
    width : int
        Bits.
    """

    word: int
    lsb: int
    width: int

    @property
    def offset(self) -> int:
        """Lowest bit, counted from the start of the descriptor read as one little-endian number."""
        return 32 * self.word + self.lsb


FIELDS: dict[str, Field] = {
    "magic": Field(0, 0, 16),
    "version": Field(0, 16, 8),
    "load_activations": Field(1, 0, 1),
    "relu": Field(1, 1, 1),
    "keep_activations": Field(1, 2, 1),
    "emit_results": Field(1, 3, 1),
    "emit_activations": Field(1, 4, 1),
    "has_bias": Field(1, 5, 1),
    "zigzag": Field(1, 6, 1),
    "dense": Field(1, 7, 1),
    "code": Field(1, 8, 4),
    "order": Field(1, 12, 4),
    "rows": Field(2, 0, 16),
    "columns": Field(2, 16, 16),
    "map_entries": Field(3, 0, 16),
    "row_slots": Field(3, 16, 16),
    "payload_words": Field(4, 0, 32),
    "multiplier": Field(5, 0, 16),
    "shift": Field(5, 16, 6),
}
"""Descriptor fields. Bits that no field covers are zero and must be written as zero."""


class ErrorKind(IntEnum):
    """What the accelerator reports in `status_error`."""

    NONE = 0
    """No error."""
    DESCRIPTOR = 1
    """A descriptor field is out of range for this accelerator."""
    TRUNCATED = 2
    """The packet ended (TLAST) before its CRC word."""
    OVERRUN = 3
    """The packet went on after its CRC word."""
    CRC = 4
    """The CRC word does not match the packet."""
    ACTIVATIONS = 5
    """The activation packet has another length than the matrix has columns."""
    PREFIX = 6
    """A codeword's prefix is longer than the suffix limit allows."""
    INDEX = 7
    """A codeword's index lies beyond the value map."""
    SHORT = 8
    """The payload ended before every row of a substream was complete."""
