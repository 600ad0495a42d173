"""Generated Verilog as text: makes it readable, and reads a module's ports.

The back end elaborates every instance into a module of its own, with escaped names. The text
is brought into a form nearer to what a person would write; the design stays the same.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

from egret.errors import EgretError

__all__ = ["Port", "module_ports", "tidy_verilog"]

_MODULE = re.compile(r"^module .*?^endmodule\n", re.MULTILINE | re.DOTALL)
_MODULE_NAME = re.compile(r"^module (\\\S+ |\w+)", re.MULTILINE)
# A register that only makes `always @*` blocks run at time 0; its number counts over the file.
_TIME_ZERO = re.compile(r"\\\$auto\$verilog_backend\S+ ")
# A value in the declaration is there before those blocks wait for a change (in Icarus Verilog, for
# one): a block whose other inputs keep their first values would give X. This comes after.
_TIME_ZERO_VALUE = ("  reg time_zero  = 0;\n", "  reg time_zero;\n  initial time_zero <= 1'h0;\n")
# A port without a name of its own; its numbers count over the file.
_NUMBERED_PORT = re.compile(r"\\port\$\d+\$\d+ ")
# Such a port as it is declared, once it has a number of its module's own.
_PORT_DECLARATION = re.compile(
    r"^  (?:in|out)put (?P<width>(?:\[\d+:\d+\] )?)port_(?P<number>\d+) ;\n"
    r"  wire (?P=width)port_(?P=number) ;\n",
    re.MULTILINE,
)
_PORT_CONNECTION = re.compile(r"^    \.port_(?P<number>\d+) \([^\n]*?\)(?=,?\n)", re.MULTILINE)
_INSTANCE = re.compile(
    r"^  (\\\S+ |\w+) +[\w\\][^\n]* \(\n(?:    \.[^\n]*\n)+  \);\n", re.MULTILINE
)
_CONNECTED_PORT = re.compile(r"(?<=^    \.)\\port\$\d+\$\d+ ", re.MULTILINE)
# A memory of zeros, one statement an entry: thousands of lines that say nothing.
_ZEROS = re.compile(
    r"^( *)initial begin\n(?:\1  (?P<name>\w+)\[\d+\] = (?P<zero>\d+'[dh]0+);\n)"
    r"(?:\1  (?P=name)\[\d+\] = (?P=zero);\n)+\1end\n",
    re.MULTILINE,
)
# What the back end computes in between: `\$` and a number.
_NAMELESS = re.compile(r"\\\$\d+ ")
_NAMELESS_WIRE = re.compile(
    r"^  wire ((?:signed )?(?:\[\d+:\d+\] )?)(?P<name>\\\$\d+ );\n", re.MULTILINE
)
# One that is assigned as a whole, once.
_NAMELESS_VALUE = re.compile(r"^  assign (?P<name>\\\$\d+ ) = ([^;]*;)\n", re.MULTILINE)
_NAME = re.compile(r"\\\S+ |\b[A-Za-z_]\w*")
# A name that the back end makes of a field of a record, or of an element of an array.
_FIELD = re.compile(
    r"^(?:  \(\*[^\n]*\*\)\n)*  wire (?:signed )?(?:\[\d+:\d+\] )?(?P<name>\\[^\s.[]*[.[]\S* );\n",
    re.MULTILINE,
)
_FIELD_VALUE = re.compile(r"^  assign (?P<name>\\[^\s.[]*[.[]\S* ) = [^;]*;\n", re.MULTILINE)
_DECLARATION = textwrap.TextWrapper(
    100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
)
# A field of no bits, which nothing refers to; Verilog has no such thing, [-1:0] means two bits.
_NO_BITS = re.compile(r"^ *(?:wire|reg) \[-1:0\] [^;]*;\n", re.MULTILINE)


_PORT = re.compile(r"^ *(input|output)(?: (?:wire|reg))?(?: \[(\d+):0\])? (\w+) *;", re.MULTILINE)


@dataclass(frozen=True)
class Port:
    """A module's port.

    Parameters
    ----------
    name : str
        Name.
    width : int
        Bits.
    is_input : bool
        An input, else an output.
    """

    name: str
    width: int
    is_input: bool


def module_ports(verilog: str, module: str) -> list[Port]:
    """Read a generated module's ports, but for those with escaped names.

    Parameters
    ----------
    verilog : str
        Text that declares ports in the module's body (IEEE 1364-2005, clause 12.3.3).
    module : str
        Name of the module.

    Returns
    -------
    list of Port
        In the order of their declarations.

    Raises
    ------
    EgretError
        There is no such module.
    """
    body = re.search(rf"^module {re.escape(module)}\b.*?^endmodule", verilog, re.M | re.S)
    if body is None:
        raise EgretError(f"{module}: found no such module in the Verilog")
    return [
        Port(name, int(msb or 0) + 1, kind == "input") for kind, msb, name in _PORT.findall(body[0])
    ]


def _loop_over_zeros(found: re.Match[str]) -> str:
    indent, name, zero = found[1], found["name"], found["zero"]
    entries = found[0].count(" = ")
    return (
        f"{indent}integer {name}_entry;\n"
        f"{indent}initial begin\n"
        f"{indent}  for ({name}_entry = 0; {name}_entry < {entries}; "
        f"{name}_entry = {name}_entry + 1)\n"
        f"{indent}    {name}[{name}_entry] = {zero};\n"
        f"{indent}end\n"
    )


def _plain_name(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lstrip("\\"))


def _module_names(verilog: str) -> list[str]:
    return [found[1] for found in _MODULE_NAME.finditer(verilog)]


def _name_modules_plainly(verilog: str) -> str:
    names = {name: _plain_name(name) for name in _module_names(verilog)}
    if len(set(names.values())) != len(names):
        return verilog
    for name, plain in names.items():
        if name.startswith("\\"):
            verilog = verilog.replace(name, f"{plain} ")
    return verilog


def _number_ports_locally(verilog: str) -> str:
    """Give each module's nameless ports numbers of its own: equal modules then have equal text."""
    modules = {_module_names(module)[0]: module for module in _MODULE.findall(verilog)}
    names: dict[str, dict[str, str]] = {}
    for module, text in modules.items():
        # Where a module is instantiated, its ports' names are its own, not those of the parent.
        ports = _NUMBERED_PORT.findall(_CONNECTED_PORT.sub("", text))
        names[module] = {
            port: f"port_{number} " for number, port in enumerate(dict.fromkeys(ports))
        }

    def connected(found: re.Match[str]) -> str:
        text = _renamed(_CONNECTED_PORT, found[0], names.get(found[1], {}))
        return _in_order(_PORT_CONNECTION, text)

    def renamed(found: re.Match[str]) -> str:
        text = _INSTANCE.sub(connected, found[0])
        text = _renamed(_NUMBERED_PORT, text, names[_module_names(found[0])[0]])
        return _in_order(_PORT_DECLARATION, text)

    return _MODULE.sub(renamed, verilog)


def _in_order(pattern: re.Pattern[str], text: str) -> str:
    """Sort numbered ports by their numbers: the back end sorts them by those of the file."""
    found = sorted(pattern.finditer(text), key=lambda port: int(port["number"]))
    ordered = iter(found)
    return pattern.sub(lambda _: next(ordered)[0], text)


def _shared_once(verilog: str) -> str:
    kept: dict[str, str] = {}
    same: dict[str, str] = {}
    for module in _MODULE.findall(verilog):
        name = _module_names(module)[0]
        first = kept.setdefault(module.replace(f"module {name}", "module", 1), name)
        if first != name:
            same[name] = first
    if not same:
        return verilog
    verilog = _MODULE.sub(
        lambda found: "" if _module_names(found[0])[0] in same else found[0], verilog
    )
    reference = re.compile(rf"^(  )({'|'.join(map(re.escape, same))})\b", re.MULTILINE)
    verilog = reference.sub(lambda found: found[1] + same[found[2]], verilog)
    # `lane_0`, now that it stands for every lane, becomes `lane`.
    for first in sorted(set(same.values())):
        shared = re.sub(r"_0(?=_|$)", "", first, count=1)
        if shared not in _module_names(verilog):
            verilog = re.sub(rf"\b{re.escape(first)}(?=\s)", shared, verilog)
    return verilog


def _share_equal_modules(verilog: str) -> str:
    """Keep one of the modules that differ in nothing but their name, from the leaves upwards."""
    while True:
        shared = _shared_once(verilog)
        if shared == verilog:
            return verilog
        verilog = shared


def _renamed(pattern: re.Pattern[str], text: str, names: Mapping[str, str]) -> str:
    """Replace the pattern's occurrences that have a new name."""
    return pattern.sub(lambda found: names.get(found[0], found[0]), text)


def _without(pattern: re.Pattern[str], module: str, names: Container[str]) -> str:
    """Leave out the statements of a pattern whose `name` is one of these."""
    return pattern.sub(lambda found: "" if found["name"] in names else found[0], module)


def _drop_unread_fields(module: str) -> str:
    """Leave out names of records' fields that nothing reads."""
    while True:
        names = Counter(_NAME.findall(module))
        assigned = set(_FIELD_VALUE.findall(module))
        # Once declared and once assigned.
        unread = {wire for wire in _FIELD.findall(module) if names[wire] == 2} & assigned
        if not unread:
            return module
        for statement in (_FIELD, _FIELD_VALUE):
            module = _without(statement, module, unread)


def _compute_once(module: str) -> str:
    """Let nameless wires of equal width and value be one, until there are no two alike."""
    while True:
        widths = {wire: width for width, wire in _NAMELESS_WIRE.findall(module)}
        first: dict[tuple[str, str], str] = {}
        same: dict[str, str] = {}
        for wire, value in _NAMELESS_VALUE.findall(module):
            kept = first.setdefault((widths[wire], value), wire)
            if kept != wire:
                same[wire] = kept
        if not same:
            return module
        module = _without(_NAMELESS_VALUE, _without(_NAMELESS_WIRE, module, same), same)
        module = _renamed(_NAMELESS, module, same)


def _declare_together(module: str) -> str:
    """Declare nameless wires of equal width in one statement, where the first of them was."""
    widths: dict[str, list[str]] = {}
    for width, wire in _NAMELESS_WIRE.findall(module):
        widths.setdefault(width, []).append(wire)
    statements = "".join(
        _DECLARATION.fill(f"wire {width}{', '.join(wires)};") + "\n"
        for width, wires in widths.items()
    )
    first = _NAMELESS_WIRE.search(module)
    place = first.start() if first else 0
    return module[:place] + statements + _NAMELESS_WIRE.sub("", module[place:])


def tidy_verilog(verilog: str) -> str:
    """Bring the back end's text into a readable form.

    Parameters
    ----------
    verilog : str
        Text from `amaranth.back.verilog`.

    Returns
    -------
    str
        The same design.
    """
    verilog = _NO_BITS.sub("", _TIME_ZERO.sub("time_zero ", verilog))
    verilog = verilog.replace(*_TIME_ZERO_VALUE)
    verilog = _name_modules_plainly(_number_ports_locally(verilog))
    verilog = _share_equal_modules(_ZEROS.sub(_loop_over_zeros, verilog))
    return _MODULE.sub(
        lambda found: _declare_together(_compute_once(_drop_unread_fields(found[0]))), verilog
    )
