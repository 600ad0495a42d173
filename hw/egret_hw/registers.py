"""The register map, in one table: the RTL, the documents, the C header and the drivers follow it.

All registers are 32 bits wide and little-endian. Offsets are stable: a new register takes a
free place, and a new parameter follows the last one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version

from egret.errors import EgretError
from egret.image_format import IMAGE_VERSION, ErrorKind
from egret.params import CODE_NAMES, PARSERS, VENDORS, AcceleratorParams

__all__ = [
    "ADDRESS_BITS",
    "CORE_ID",
    "COUNTERS",
    "REGISTERS",
    "REGISTER_BITS",
    "Field",
    "Kind",
    "Register",
    "decode_params",
    "package_version",
    "register_named",
]

REGISTER_BITS = 32
ADDRESS_BITS = 12
"""Byte addresses: the registers have a page of 4 KiB to themselves."""
CORE_ID = int.from_bytes(b"EGRT", "little")
"""What the register ID reads as."""

_PARAMETERS_BASE = 0x080


class Kind(Enum):
    """What a field is."""

    CONSTANT = "constant"
    """The same in every read; follows from the parameters."""
    LIVE = "read only"
    """Driven by the hardware."""
    HELD = "read, write"
    """Keeps what was written; 0 after `aresetn`."""
    PULSE = "write 1"
    """Writing 1 does it once; reads as 0."""


@dataclass(frozen=True)
class Field:
    """Bits of a register.

    Parameters
    ----------
    name : str
        Name in lower case; "value" for a register that is one field.
    lsb : int
        Lowest bit.
    width : int
        Bits.
    kind : Kind
        What it is.
    meaning : str
        One line of Markdown.
    value : callable, optional
        Of a constant: its value, from the parameters.
    """

    name: str
    lsb: int
    width: int
    kind: Kind
    meaning: str
    value: Callable[[AcceleratorParams], int] | None = None

    @property
    def mask(self) -> int:
        """The field's bits in the register."""
        return ((1 << self.width) - 1) << self.lsb

    @property
    def bits(self) -> str:
        """The bits as a document writes them: "3:0", or "4"."""
        return str(self.lsb) if self.width == 1 else f"{self.lsb + self.width - 1}:{self.lsb}"


@dataclass(frozen=True)
class Register:
    """A register.

    Parameters
    ----------
    name : str
        Name in upper case.
    offset : int
        Byte address, a multiple of 4.
    meaning : str
        One line of Markdown.
    fields : tuple of Field
        Its fields; bits that no field covers read as 0 and ignore writes.
    """

    name: str
    offset: int
    meaning: str
    fields: tuple[Field, ...]

    def signal_name(self, field: Field) -> str:
        """Return the name of the field's signal in the RTL."""
        name = self.name.lower()
        return name if field.name == "value" else f"{name}_{field.name}"

    def field(self, name: str) -> Field:
        """Return the field of a name, which must be one of the register's."""
        return next(field for field in self.fields if field.name == name)

    @property
    def writable(self) -> bool:
        """Whether writes are accepted."""
        return any(field.kind in (Kind.HELD, Kind.PULSE) for field in self.fields)

    def constant(self, params: AcceleratorParams) -> int | None:
        """Return what every read gives, or None where that is not known beforehand."""
        value = 0
        for field in self.fields:
            if field.value is None:
                return None
            value |= field.value(params) << field.lsb
        return value


def package_version() -> str:
    """Return Egret's version."""
    return version("egret")


def _version_number(place: int) -> int:
    return int(re.findall(r"\d+", package_version())[place])


def _plain(
    name: str,
    offset: int,
    kind: Kind,
    meaning: str,
    value: Callable[[AcceleratorParams], int] | None = None,
) -> Register:
    """Return a register that is one field."""
    return Register(
        name, offset, meaning, (Field("value", 0, REGISTER_BITS, kind, meaning, value),)
    )


def _numbered(names: tuple[str, ...]) -> str:
    return ", ".join(f"{number}: `{name}`" for number, name in enumerate(names))


def _parameter_number(params: AcceleratorParams, name: str) -> int:
    """Return a parameter as the number that its register holds."""
    value = getattr(params, name)
    match name:
        case "parser":
            return PARSERS.index(value)
        case "codes":
            return sum(1 << CODE_NAMES.index(code) for code in value)
        case "vendor":
            return VENDORS.index(value)
        case _:
            return int(value)


_PARAMETER_MEANINGS = {
    "parser": f" ({_numbered(PARSERS)})",
    "codes": f", a bit each ({_numbered(CODE_NAMES)})",
    "vendor": f" ({_numbered(VENDORS)})",
}
_PARAMETERS = tuple(
    field.name for field in dataclasses.fields(AcceleratorParams) if field.name != "name"
)


def _parameter_register(place: int, name: str) -> Register:
    def value(params: AcceleratorParams) -> int:
        return _parameter_number(params, name)

    meaning = f"parameter `{name}`{_PARAMETER_MEANINGS.get(name, '')}"
    offset = _PARAMETERS_BASE + REGISTER_BITS // 8 * place
    return _plain(f"PARAM_{name.upper()}", offset, Kind.CONSTANT, meaning, value)


def _constant(name: str, lsb: int, width: int, meaning: str, value: Callable[[], int]) -> Field:
    return Field(name, lsb, width, Kind.CONSTANT, meaning, lambda params: value())


COUNTERS: tuple[Register, ...] = (
    _plain("MATRICES", 0x040, Kind.LIVE, "matrices that ended without error"),
    _plain(
        "CYCLES",
        0x044,
        Kind.LIVE,
        "cycles in which a packet or results were under way, or a packet's first word waited",
    ),
    _plain("WORDS", 0x048, Kind.LIVE, "bus words taken, discarded ones included"),
    _plain("STALLS", 0x04C, Kind.LIVE, "cycles of those in which a bus word waited"),
    _plain("STARVED", 0x050, Kind.LIVE, "cycles of those in which no bus word was there"),
    _plain(
        "MULTIPLIES",
        0x054,
        Kind.LIVE,
        "weights multiplied, zeros not counted; each by `batch` activations",
    ),
    _plain(
        "WEIGHTS", 0x058, Kind.LIVE, "weights of the matrices, zeros included: rows times columns"
    ),
    _plain("PAYLOAD_WORDS", 0x05C, Kind.LIVE, "bus words of the matrices' payloads"),
)
"""What the core counts. They wrap at 2^32; resets set them to 0."""

REGISTERS: tuple[Register, ...] = (
    _plain("ID", 0x000, Kind.CONSTANT, "the bytes `EGRT`", lambda params: CORE_ID),
    Register(
        "VERSION",
        0x004,
        "what the core was made by, and what it reads",
        (
            _constant("image", 0, 8, "version of the hardware image", lambda: IMAGE_VERSION),
            _constant("patch", 8, 8, "Egret's version, third number", lambda: _version_number(2)),
            _constant("minor", 16, 8, "second number", lambda: _version_number(1)),
            _constant("major", 24, 8, "first number", lambda: _version_number(0)),
        ),
    ),
    Register(
        "CONTROL",
        0x008,
        "what a host may order",
        (
            Field("reset", 0, 1, Kind.PULSE, "soft reset: ends the error state, see hardware.md"),
            Field("mask_irq", 1, 1, Kind.HELD, "1 keeps the port `irq` low"),
        ),
    ),
    Register(
        "STATUS",
        0x00C,
        "what is going on in the cycle of the read",
        (
            Field("error", 0, 1, Kind.LIVE, "the core has stopped with an error"),
            Field("weight_tvalid", 8, 1, Kind.LIVE, "a word of the image is offered"),
            Field("weight_tready", 9, 1, Kind.LIVE, "and would be taken"),
            Field("act_tvalid", 10, 1, Kind.LIVE, "a column of activations is offered"),
            Field("act_tready", 11, 1, Kind.LIVE, "and would be taken"),
            Field("out_tvalid", 12, 1, Kind.LIVE, "a result is offered"),
            Field("out_tready", 13, 1, Kind.LIVE, "and would be taken"),
        ),
    ),
    Register(
        "ERROR",
        0x010,
        "kind of the first error since the last reset",
        (
            Field(
                "value",
                0,
                4,
                Kind.LIVE,
                ", ".join(f"{kind.value}: {kind.name}" for kind in ErrorKind),
            ),
        ),
    ),
    _plain("POSITION", 0x014, Kind.LIVE, "its position, by the table of errors in format.md"),
    _plain("SCRATCH", 0x018, Kind.HELD, "what was written, without effect: for trying the bus"),
    *COUNTERS,
    *(_parameter_register(place, name) for place, name in enumerate(_PARAMETERS)),
)
"""Every register, in ascending order of offsets."""

_BY_NAME = {register.name: register for register in REGISTERS}


def register_named(name: str) -> Register:
    """Return the register of a name.

    Raises
    ------
    EgretError
        There is none.
    """
    if name not in _BY_NAME:
        raise EgretError(f"register {name!r}: unknown, expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def decode_params(values: Mapping[str, int], name: str) -> AcceleratorParams:
    """Return the parameters that a core's registers tell.

    Parameters
    ----------
    values : Mapping[str, int]
        What the PARAM registers read as, by name of the register.
    name : str
        Name for the parameter set, which has no register.

    Returns
    -------
    AcceleratorParams

    Raises
    ------
    EgretError
        No core has such parameters.
    """
    mapping: dict[str, object] = {"name": name}
    for parameter in _PARAMETERS:
        value = values[f"PARAM_{parameter.upper()}"]
        match parameter:
            case "parser" | "vendor":
                choices = PARSERS if parameter == "parser" else VENDORS
                if value >= len(choices):
                    raise EgretError(
                        f"{name}: parameter {parameter}: found {value}, expected less than "
                        f"{len(choices)}"
                    )
                mapping[parameter] = choices[value]
            case "codes":
                mapping[parameter] = tuple(
                    code for place, code in enumerate(CODE_NAMES) if value >> place & 1
                )
            case _:
                mapping[parameter] = value
    return AcceleratorParams.from_mapping(mapping, source=name)
