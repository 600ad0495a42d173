"""The accelerator's parameters: one frozen object from which every width follows.

The packer, the golden model and the RTL generator are each built from an
`AcceleratorParams`; nothing else knows a width.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egret.errors import EgretError

__all__ = [
    "ACTIVATION_BITS",
    "BIAS_BITS",
    "CODE_NAMES",
    "FANOUT_SPARE",
    "MAX_ORDER",
    "MICROCODE_BITS",
    "MULTIPLIER_BITS",
    "PARSERS",
    "PRESETS",
    "RESULT_BITS",
    "SHIFT_BITS",
    "VENDORS",
    "AcceleratorParams",
    "load_params",
]

ACTIVATION_BITS = 8
"""Activations are int8 (docs/adr/0003)."""
BIAS_BITS = 32
"""A bias is an int32 in units of the accumulator."""
RESULT_BITS = 32
"""A raw result, accumulator plus bias, is an int32."""
MULTIPLIER_BITS = 16
"""The requantiser's multiplier is an unsigned 16-bit integer."""
SHIFT_BITS = 6
"""The requantiser's right shift is 0 to 63."""
MAX_ORDER = 7
"""Largest exp-Golomb order k."""
CODE_NAMES = ("eg-k", "eg-run", "eg-table")
"""Codes that a parser may know; the first one is always among them."""
PARSERS = ("logic", "microcode")
"""How a parser is built: an unrolled state machine in LUTs, or its table in block RAM."""
MICROCODE_BITS = 4
"""Stream bits that a word of microcode stands for, and the narrowest parser of that kind."""
FANOUT_SPARE = 3
"""Free entries that a lane's queue must have to be sent a beat that passes a register on its way.

One for the beat, and one for each of the two that may be on their way already: what a lane says of
its room passes a register, too.
"""
VENDORS = ("generic", "ecp5", "ice40", "xilinx7")
"""Families that the constraints are written for. iCE40s, but for UltraPlus, lack multipliers."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorParams:
    """Parameters of one accelerator.

    Parameters
    ----------
    name : str
        Name of the parameter set; becomes part of file names.
    lanes : int
        Number of lanes, each a parser, a value map and `batch` multipliers. A power of two.
    parser_bits : int
        W: stream bits a lane's parser reads in a clock cycle. 1, 2, 4, 8 or 16.
    parser_cut : int
        Bits between two pipeline registers of the parser. A divisor of `parser_bits`, and the
        quotient C = `parser_bits / parser_cut` a power of two. C substreams are
        interleaved in the lane (C-slow), so that the parser's loop closes in one stage.
    parser : str
        One of `PARSERS`. "microcode" needs `parser_bits` of at least 4 and `parser_cut` = 2, or 4
        without a register behind the block RAM, which ECP5 is slow without.
    codes : tuple of str
        Codes that the parser knows, out of `CODE_NAMES`, "eg-k" among them. A list is taken too.
    suffix_limit : int
        J: most suffix bits of a legal codeword, 4 to 12. The limit on exp-Golomb prefixes follows:
        prefix zeros plus order may not exceed it.
    bus_bits : int
        Width of the weight stream's data: 32, 64, 128 or 256, a multiple of
        `lanes * parser_bits`.
    batch : int
        B: activation vectors multiplied by each decoded weight.
    map_depth : int
        Entries of a lane's value map. A power of two, 2 to 2048.
    weight_bits : int
        Width of a signed weight from the value map, 2 to 16.
    activation_depth : int
        Longest activation vector that fits one of the two activation memories, so the
        largest number of columns, and of rows of a layer that feeds another. A power of two.
    activation_columns : int
        A: columns in a beat of the activation stream. 1, 2, 4, 8 or 16.
    row_depth : int
        Most rows of a matrix; at least `activation_depth`. A power of two.
    input_depth : int
        Beats that a lane may fall behind the others, 2 to 64. A power of two.
    block_depth : int
        Parsed blocks with non-zeros that may wait for a lane's multipliers, 2 to 64. A power of
        two.
    vendor : str
        One of `VENDORS`. It decides the constraints' form, and with "ice40", whose parts have no
        multipliers but the UltraPlus', `requantizer_cycles`.

    Raises
    ------
    EgretError
        A value or a combination is wrong; the message names the field, the value found and
        what was expected.
    """

    name: str
    lanes: int
    parser_bits: int
    parser_cut: int
    bus_bits: int
    parser: str = "logic"
    codes: tuple[str, ...] = CODE_NAMES
    suffix_limit: int = 10
    batch: int = 1
    map_depth: int = 1024
    weight_bits: int = 12
    activation_depth: int = 1024
    activation_columns: int = 1
    row_depth: int = 1024
    input_depth: int = 16
    block_depth: int = 16
    vendor: str = "generic"

    def __post_init__(self) -> None:
        if isinstance(self.codes, list):
            object.__setattr__(self, "codes", tuple(self.codes))
        kinds: dict[str, type] = {"name": str, "parser": str, "vendor": str, "codes": tuple}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            expected = kinds.get(field.name, int)
            if type(value) is not expected:
                raise EgretError(
                    f"parameter {field.name}: found {value!r}, expected {expected.__name__}"
                )

        def require(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise EgretError(
                    f"parameter {field}: found {getattr(self, field)!r}, expected {expected}"
                )

        require(
            self.name.isascii() and self.name.replace("-", "").replace("_", "").isalnum(),
            "name",
            "ASCII letters, digits, '-' and '_'",
        )
        require(_is_power_of_two(self.lanes) and self.lanes <= 64, "lanes", "a power of two to 64")
        require(self.parser_bits in (1, 2, 4, 8, 16), "parser_bits", "1, 2, 4, 8 or 16")
        require(
            self.parser_cut > 0 and self.parser_bits % self.parser_cut == 0,
            "parser_cut",
            f"a divisor of parser_bits = {self.parser_bits}",
        )
        require(
            _is_power_of_two(self.slots) and self.slots <= 16,
            "parser_cut",
            f"parser_bits = {self.parser_bits} divided by 1, 2, 4, 8 or 16",
        )
        require(self.parser in PARSERS, "parser", f"one of {', '.join(PARSERS)}")
        require(
            self.parser == "logic"
            or (self.parser_bits >= MICROCODE_BITS and self.parser_cut in (2, MICROCODE_BITS)),
            "parser_cut",
            f"2 or {MICROCODE_BITS}, and parser_bits at least {MICROCODE_BITS}, "
            "where parser is 'microcode'",
        )
        require(
            set(self.codes) <= set(CODE_NAMES)
            and len(set(self.codes)) == len(self.codes)
            and CODE_NAMES[0] in self.codes,
            "codes",
            f"a choice of {', '.join(CODE_NAMES)}, with {CODE_NAMES[0]}",
        )
        require(4 <= self.suffix_limit <= 12, "suffix_limit", "4 to 12")
        require(self.bus_bits in (32, 64, 128, 256), "bus_bits", "32, 64, 128 or 256")
        require(
            self.beat_bits <= self.bus_bits and self.bus_bits % self.beat_bits == 0,
            "bus_bits",
            f"a multiple of lanes * parser_bits = {self.beat_bits}",
        )
        require(1 <= self.batch <= 16, "batch", "1 to 16")
        require(
            _is_power_of_two(self.map_depth) and 2 <= self.map_depth <= 2048,
            "map_depth",
            "a power of two, 2 to 2048",
        )
        require(
            self.map_depth <= 1 << self.suffix_limit,
            "map_depth",
            f"at most 2**suffix_limit = {1 << self.suffix_limit}: every index needs a codeword",
        )
        require(2 <= self.weight_bits <= 16, "weight_bits", "2 to 16")
        require(
            _is_power_of_two(self.activation_depth) and 16 <= self.activation_depth <= 16384,
            "activation_depth",
            "a power of two, 16 to 16384",
        )
        require(
            _is_power_of_two(self.row_depth) and self.activation_depth <= self.row_depth <= 32768,
            "row_depth",
            f"a power of two, at least activation_depth = {self.activation_depth}, at most 32768",
        )
        require(
            self.activation_columns in (1, 2, 4, 8, 16), "activation_columns", "1, 2, 4, 8 or 16"
        )
        for depth in ("input_depth", "block_depth"):
            value = getattr(self, depth)
            require(_is_power_of_two(value) and 2 <= value <= 64, depth, "a power of two, 2 to 64")
        require(self.vendor in VENDORS, "vendor", f"one of {', '.join(VENDORS)}")

    @property
    def slots(self) -> int:
        """C: substreams interleaved in a lane."""
        return self.parser_bits // self.parser_cut

    @property
    def substreams(self) -> int:
        """Substreams of a matrix: lanes × C. Substream s belongs to lane s // C, slot s % C."""
        return self.lanes * self.slots

    @property
    def beat_bits(self) -> int:
        """Payload bits that all lanes together read in a cycle."""
        return self.lanes * self.parser_bits

    @property
    def beats_per_word(self) -> int:
        """Beats held in a bus word."""
        return self.bus_bits // self.beat_bits

    @property
    def activation_bus_bits(self) -> int:
        """Width of the activation stream's data: A columns of B vectors."""
        return ACTIVATION_BITS * self.batch * self.activation_columns

    def pad_activations(self, packet: bytes) -> bytes:
        """Return a packet for the activation stream, columns of B bytes, in whole beats."""
        size = self.activation_bus_bits // 8
        return packet.ljust(-(-len(packet) // size) * size, b"\0")

    @property
    def number_bits(self) -> int:
        """Width of a codeword as a number, leading zeros aside."""
        return max(self.suffix_limit, self.parser_bits.bit_length()) + 1

    @property
    def skip_bits(self) -> int:
        """Width of weights to pass over, in the run form of the run's codeword as a number.

        Weights are sent on when they reach half of what the width can hold, and may grow by two
        blocks of zeros, the one that is already on its way and the one that takes them along.
        Without runs, half is at least 16 blocks' zeros: behind the blocks few cycles go into these.
        """
        runs = CODE_NAMES[1] in self.codes
        return self.number_bits if runs else self.parser_bits.bit_length() + 4

    @property
    def code_banks(self) -> int:
        """Codes that an accelerator holds at a time: the microcode takes its block RAM whole."""
        return 1 if self.parser == "microcode" else 2

    @property
    def fanout_cycles(self) -> int:
        """Cycles that a beat takes to the lanes: 1, or 0 to one lane or where queues are short."""
        return int(self.lanes > 1 and self.input_depth > 2)

    @property
    def requantizer_cycles(self) -> int:
        """Cycles for each result: 1, or without multipliers one a multiplier's bit, and one."""
        return MULTIPLIER_BITS + 1 if self.vendor == "ice40" else 1

    @property
    def accumulator_bits(self) -> int:
        """Width of an accumulator that no legal matrix can overflow."""
        return self.weight_bits + ACTIVATION_BITS + (self.activation_depth - 1).bit_length()

    def to_json(self) -> str:
        """Return the fields as a JSON object, keys in field order."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], source: str = "parameters"
    ) -> "AcceleratorParams":
        """Build from a mapping, as read from JSON or YAML.

        Parameters
        ----------
        mapping : Mapping[str, Any]
            Field names and values; fields with a default may be absent.
        source : str
            Name of the file or other origin, for error messages.

        Raises
        ------
        EgretError
            Unknown or missing field, or a value the class refuses.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(map(str, mapping)) - set(fields))
        if unknown:
            raise EgretError(
                f"{source}: unknown parameter {unknown[0]!r}, expected one of {', '.join(fields)}"
            )
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in mapping
        ]
        if missing:
            raise EgretError(f"{source}: parameter {missing[0]!r} is missing")
        try:
            return cls(**mapping)
        except EgretError as error:
            raise EgretError(f"{source}: {error}") from error


PRESETS: dict[str, AcceleratorParams] = {
    params.name: params
    for params in (
        AcceleratorParams(
            name="xs-ice40",
            lanes=1,
            parser_bits=1,
            parser_cut=1,
            bus_bits=32,
            codes=("eg-k",),
            suffix_limit=8,
            map_depth=256,
            weight_bits=8,
            activation_depth=512,
            row_depth=512,
            input_depth=2,
            block_depth=2,
            vendor="ice40",
        ),
        AcceleratorParams(
            name="s",
            lanes=4,
            parser_bits=4,
            parser_cut=2,
            bus_bits=32,
            parser="microcode",
            activation_columns=4,
            vendor="ecp5",
        ),
        AcceleratorParams(
            name="m-ddr3",
            lanes=16,
            parser_bits=4,
            parser_cut=2,
            bus_bits=64,
            parser="microcode",
            activation_columns=8,
            vendor="ecp5",
        ),
        AcceleratorParams(
            name="l-onchip",
            lanes=32,
            parser_bits=8,
            parser_cut=4,
            bus_bits=256,
            parser="microcode",
            activation_columns=8,
            vendor="ecp5",
        ),
    )
}
"""Named parameter sets; the rungs are explained in docs/hardware.md."""


def load_params(path: str | Path) -> AcceleratorParams:
    """Read a parameter set from a YAML or JSON file.

    Parameters
    ----------
    path : str or Path
        File with a mapping of `AcceleratorParams` fields. Read as JSON when its name ends in
        `.json`, else as YAML, which needs the `hw` extra.

    Returns
    -------
    AcceleratorParams

    Raises
    ------
    EgretError
        The file is missing, is not such a mapping, or holds a wrong parameter.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EgretError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EgretError(f"{path}: not a readable text file: {error}") from error
    mapping: object
    if path.suffix == ".json":
        try:
            mapping = json.loads(text)
        except ValueError as error:
            raise EgretError(f"{path}: not JSON: {error}") from error
    else:
        import yaml

        try:
            mapping = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise EgretError(f"{path}: not YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise EgretError(
            f"{path}: found {type(mapping).__name__}, expected a mapping of parameter names"
        )
    return AcceleratorParams.from_mapping(mapping, source=str(path))
