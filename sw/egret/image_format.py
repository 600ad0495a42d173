"""Constants of the hardware image: the one source for the packer, the RTL and the golden model.

The prose is chapter 2 of docs/format.md; a test compares its tables with this module.
"""

from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "CLASSES",
    "CODE_FIELDS",
    "CRC_BITS",
    "CRC_POLYNOMIAL",
    "ENTRY_BITS",
    "ENTRY_FIELDS",
    "HEADER_BYTES",
    "HEADER_FIELDS",
    "IMAGE_MAGIC",
    "IMAGE_VERSION",
    "LOAD_FIELDS",
    "MATRIX_BYTES",
    "MATRIX_FIELDS",
    "ErrorKind",
    "Field",
    "PacketKind",
]

IMAGE_MAGIC = 0x4745
"""First 16 bits of a packet: the bytes "EG"."""
IMAGE_VERSION = 2
HEADER_BYTES = 8
"""Header of every packet but a matrix."""
MATRIX_BYTES = 24
"""Header of a matrix packet."""
ENTRY_BITS = 16
"""Width of an entry of the map and code sections, and of a narrow start."""
CLASSES = 16
"""Classes of each of a code's two tables."""
CRC_BITS = 32
CRC_POLYNOMIAL = 0x1EDC6F41
"""CRC-32C (Castagnoli), RFC 3720 section 12.1: reflected, all-ones start and final inversion."""


class PacketKind(IntEnum):
    """What a packet carries."""

    MATRIX = 1
    """A matrix: run it."""
    MAP = 2
    """Entries of the value map."""
    CODE = 3
    """A code: the two class tables and how they take turns."""
    BIAS = 4
    """Biases."""


@dataclass(frozen=True)
class Field:
    """Place of a header's field.

    Parameters
    ----------
    word : int
        32-bit word of the header, from 0.
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
        """Lowest bit, counted from the start of the header read as one little-endian number."""
        return 32 * self.word + self.lsb


HEADER_FIELDS: dict[str, Field] = {
    "magic": Field(0, 0, 16),
    "version": Field(0, 16, 8),
    "kind": Field(0, 24, 8),
}
"""Fields that every packet begins with."""

LOAD_FIELDS: dict[str, Field] = {
    **HEADER_FIELDS,
    "base": Field(1, 0, 16),
    "count": Field(1, 16, 16),
}
"""Header of MAP and BIAS packets. Bits that no field covers are zero, in every header."""

CODE_FIELDS: dict[str, Field] = {
    **HEADER_FIELDS,
    "bank": Field(1, 0, 1),
    "run_form": Field(1, 1, 1),
    "dense": Field(1, 2, 1),
    "level_golomb": Field(1, 3, 1),
    "run_golomb": Field(1, 4, 1),
    "level_last": Field(1, 8, 4),
    "run_last": Field(1, 12, 4),
}
"""Header of a CODE packet."""

MATRIX_FIELDS: dict[str, Field] = {
    **HEADER_FIELDS,
    "rows": Field(1, 0, 16),
    "columns": Field(1, 16, 16),
    "load_activations": Field(2, 0, 1),
    "relu": Field(2, 1, 1),
    "keep_activations": Field(2, 2, 1),
    "emit_results": Field(2, 3, 1),
    "emit_activations": Field(2, 4, 1),
    "has_bias": Field(2, 5, 1),
    "zigzag": Field(2, 6, 1),
    "more": Field(2, 7, 1),
    "code_bank": Field(2, 8, 1),
    "wide_starts": Field(2, 9, 1),
    "column_bits": Field(2, 12, 4),
    "shift": Field(2, 16, 6),
    "map_base": Field(3, 0, 16),
    "map_entries": Field(3, 16, 16),
    "multiplier": Field(4, 0, 16),
    "bias_base": Field(4, 16, 16),
    "payload_words": Field(5, 0, 32),
}
"""Header of a MATRIX packet."""

ENTRY_FIELDS: dict[str, Field] = {
    "suffix_bits": Field(0, 0, 4),
    "offset": Field(0, 4, 12),
}
"""Entry of a code's table: what a class's codewords end with, and what leads to their index."""


class ErrorKind(IntEnum):
    """What the accelerator reports as its error."""

    NONE = 0
    """No error."""
    DESCRIPTOR = 1
    """A header's field is out of range for this accelerator."""
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
    ROW = 8
    """A weight lies beyond the last row."""
