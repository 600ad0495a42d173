"""Makes generated Verilog readable: plain names, one module for equal copies, loops over zeros.

The back end elaborates every instance into a module of its own, with escaped names. The text
is brought into the form a person would write; the design stays the same.
"""

import re

__all__ = ["tidy_verilog"]

_MODULE = re.compile(r"^module .*?^endmodule\n", re.MULTILINE | re.DOTALL)
_MODULE_NAME = re.compile(r"^module (\\\S+ |\w+)", re.MULTILINE)
# A register that only makes `always @*` blocks run at time 0; its number counts over the file.
_TIME_ZERO = re.compile(r"\\\$auto\$verilog_backend\S+ ")
# A port without a name of its own; its numbers count over the file.
_NUMBERED_PORT = re.compile(r"\\port\$\d+\$\d+ ")
_INSTANCE = re.compile(r"^  (\\\S+ |\w+) +[\w\\][^\n]* \(\n(?:    \.[^\n]*\n)+  \);\n", re.MULTILINE)
_CONNECTED_PORT = re.compile(r"(?<=^    \.)\\port\$\d+\$\d+ ", re.MULTILINE)
# A memory of zeros, one statement an entry: thousands of lines that say nothing.
_ZEROS = re.compile(
    r"^( *)initial begin\n(?:\1  (?P<name>\w+)\[\d+\] = (?P<zero>\d+'[dh]0+);\n)"
    r"(?:\1  (?P=name)\[\d+\] = (?P=zero);\n)+\1end\n",
    re.MULTILINE,
)
# A field of no bits, which nothing refers to; Verilog has no such thing, [-1:0] means two bits.
_NO_BITS = re.compile(r"^ *(?:wire|reg) \[-1:0\] [^;]*;\n", re.MULTILINE)


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
    """Number each module's nameless ports anew, so that equal modules have equal text."""
    modules = {_module_names(module)[0]: module for module in _MODULE.findall(verilog)}
    names: dict[str, dict[str, str]] = {}
    for module, text in modules.items():
        # Where a module is instantiated, its ports' names are its own, not those of the parent.
        ports = _NUMBERED_PORT.findall(_CONNECTED_PORT.sub("", text))
        names[module] = {
            port: f"port_{number} " for number, port in enumerate(dict.fromkeys(ports))
        }

    def connected(found: re.Match[str]) -> str:
        ports = names.get(found[1], {})
        return _CONNECTED_PORT.sub(lambda port: ports[port[0]], found[0])

    def renamed(found: re.Match[str]) -> str:
        own = names[_module_names(found[0])[0]]
        text = _INSTANCE.sub(connected, found[0])
        return _NUMBERED_PORT.sub(lambda port: own[port[0]], text)

    return _MODULE.sub(renamed, verilog)


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
    verilog = _name_modules_plainly(_number_ports_locally(verilog))
    return _share_equal_modules(_ZEROS.sub(_loop_over_zeros, verilog))
