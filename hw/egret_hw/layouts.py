"""Layouts of what travels between the accelerator's components."""

from amaranth.hdl import signed
from amaranth.lib import data

from egret.image_format import CLASSES, ENTRY_BITS, ENTRY_FIELDS
from egret.params import ACTIVATION_BITS, AcceleratorParams

__all__ = [
    "MICROCODE_ADDRESS_BITS",
    "MICROCODE_WORD_BITS",
    "block_slot_bits",
    "code_layout",
    "code_write_layout",
    "lane_result_layout",
    "map_write_layout",
    "matrix_layout",
    "microcode_write_layout",
    "position_bits",
    "start_write_layout",
    "vector_write_layout",
]

MICROCODE_ADDRESS_BITS = 10
"""State and four stream bits."""
MICROCODE_WORD_BITS = 18
"""Next state, and the marks of four bits; the width of a block RAM."""

_OFFSET_BITS = ENTRY_FIELDS["offset"].width
_CLASS_BITS = (CLASSES - 1).bit_length()


def block_slot_bits(params: AcceleratorParams) -> int:
    """Return the width of a slot's number, at least 1."""
    return max(1, (params.slots - 1).bit_length())


def position_bits(params: AcceleratorParams) -> int:
    """Return the width of a signed position in a row.

    A position is a column minus the number of columns, so that its sign tells where a row ends, and
    reaches as far beyond as the longest run leads.
    """
    return max((params.activation_depth - 1).bit_length(), params.number_bits) + 2


def code_layout() -> data.StructLayout:
    """Layout of a code's settings, as held centrally for each bank.

    Returns
    -------
    data.StructLayout
        The fields of a CODE packet; `level_order`, `run_order` and `level_offset`, `run_offset`:
        suffix bits and offset of class 0, all that an exp-Golomb code needs.
    """
    return data.StructLayout(
        {
            "run_form": 1,
            "dense": 1,
            "level_golomb": 1,
            "run_golomb": 1,
            "level_last": _CLASS_BITS,
            "run_last": _CLASS_BITS,
            "level_order": ENTRY_FIELDS["suffix_bits"].width,
            "run_order": ENTRY_FIELDS["suffix_bits"].width,
            "level_offset": signed(_OFFSET_BITS),
            "run_offset": signed(_OFFSET_BITS),
        }
    )


def code_write_layout() -> data.StructLayout:
    """Layout of the broadcast that loads code tables.

    Returns
    -------
    data.StructLayout
        `enable`; `bank`; `run`, which of the two tables; `number`, the class; `suffix_bits`;
        `offset`.
    """
    return data.StructLayout(
        {
            "enable": 1,
            "bank": 1,
            "run": 1,
            "number": _CLASS_BITS,
            "suffix_bits": ENTRY_FIELDS["suffix_bits"].width,
            "offset": signed(_OFFSET_BITS),
        }
    )


def microcode_write_layout() -> data.StructLayout:
    """Layout of the broadcast that loads microcode: `enable`, `address`, `word`."""
    return data.StructLayout(
        {"enable": 1, "address": MICROCODE_ADDRESS_BITS, "word": MICROCODE_WORD_BITS}
    )


def matrix_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a matrix's settings, as held centrally for the two that may be under way.

    Returns
    -------
    data.StructLayout
        Fields of the MATRIX packet, and `memory`, the activation memory to read.
    """
    return data.StructLayout(
        {
            "code_bank": 1,
            "zigzag": 1,
            "memory": 1,
            "columns": params.activation_depth.bit_length(),
            "map_base": (params.map_depth - 1).bit_length(),
            "map_entries": params.map_depth.bit_length(),
        }
    )


def start_write_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of the broadcast that places substreams.

    Returns
    -------
    data.StructLayout
        `enable`; `parity`, which of the two matrices under way; `slot`; `position` before the first
        weight: its column - 1 - columns.
    """
    return data.StructLayout(
        {
            "enable": 1,
            "parity": 1,
            "slot": block_slot_bits(params),
            "position": signed(position_bits(params)),
        }
    )


def map_write_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of the broadcast that loads the value map: `enable`, `address`, `value`."""
    return data.StructLayout(
        {
            "enable": 1,
            "address": (params.map_depth - 1).bit_length(),
            "value": signed(ENTRY_BITS),
        }
    )


def vector_write_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of the broadcast that writes activations.

    Returns
    -------
    data.StructLayout
        `enable`, one strobe for each activation; `memory`, which of the two memories; `address`,
        the column minus the matrix's columns, modulo the depth (the low bits of a position),
        divided by the columns of a beat; `activations`, int8 each: the vectors of the column with
        the lowest address, then those of the next one, to the columns of a beat.
    """
    return data.StructLayout(
        {
            "enable": params.batch * params.activation_columns,
            "memory": 1,
            "address": (params.activation_depth // params.activation_columns - 1).bit_length(),
            "activations": data.ArrayLayout(
                signed(ACTIVATION_BITS), params.batch * params.activation_columns
            ),
        }
    )


def lane_result_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a row's sum, or of a part of it, as it leaves its lane.

    Returns
    -------
    data.StructLayout
        `parity`, which of the two matrices under way; `slot`; `last`, the substream's last one of
        the matrix; `sums`, one accumulator for each vector of the batch. Every substream sends one
        for each row of its range in order, rows of zeros too, up to the last one with a weight.
    """
    return data.StructLayout(
        {
            "parity": 1,
            "slot": block_slot_bits(params),
            "last": 1,
            "sums": data.ArrayLayout(signed(params.accumulator_bits), params.batch),
        }
    )
