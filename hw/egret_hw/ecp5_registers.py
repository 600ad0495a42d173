"""Moves registers into ECP5's block RAMs and multipliers.

Both have registers of their own, without which a block RAM takes 5.8 ns to answer and a multiplier
3.9 ns (speed 6). Yosys uses none of them, but leaves registers beside them where the design has
some. A netlist that has passed through here does the same in the same cycles, only faster.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from egret_hw.ecp5_netlist import Bit, Cell, connections, is_constant

__all__ = ["pack_registers"]

_FACTOR_BITS = 18
_PRODUCT_BITS = 36
_DATA_BITS = 18
_WIDE_BITS = 36


class _Netlist:
    """Cells of a module, with who drives and who reads each net."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.cells: dict[str, Cell] = module["cells"]
        self.driver: dict[Bit, str] = {}
        self.readers: dict[Bit, set[str]] = defaultdict(set)
        for name, _, bit, drives in connections(self.cells):
            if drives:
                self.driver[bit] = name
            else:
                self.readers[bit].add(name)
        for port in module["ports"].values():
            for bit in port["bits"]:
                self.readers[bit].add("")

    def control(self, name: str) -> tuple[Bit, Bit, str] | None:
        """Return a plain register's clock, enable and the enable's sense."""
        cell = self.cells[name]
        wires, settings = cell["connections"], cell["parameters"]
        if cell["type"] != "TRELLIS_FF" or wires.get("LSR", ["0"]) != ["0"]:
            return None
        if settings.get("LSRMUX", "LSR") != "LSR" or settings.get("REGSET") != "RESET":
            return None
        if settings.get("CLKMUX", "CLK") != "CLK":
            return None
        enable = settings.get("CEMUX", "CE").strip()
        if enable not in ("1", "CE", "INV"):
            return None
        return wires["CLK"][0], "1" if enable == "1" else wires["CE"][0], enable

    def behind(self, bits: Sequence[Bit]) -> tuple[list[str], tuple[Bit, Bit, str]] | None:
        """Return the registers that alone read the nets, and their control, if it is one."""
        found: list[str] = []
        for bit in bits:
            readers = self.readers[bit]
            if len(readers) != 1 or "" in readers:
                return None
            (name,) = readers
            if self.cells[name]["connections"].get("DI") != [bit]:
                return None
            found.append(name)
        return self._common(found)

    def before(self, bits: Sequence[Bit]) -> tuple[list[str], tuple[Bit, Bit, str]] | None:
        """Return the registers that drive the nets, and their control, if it is one."""
        drivers = [self.driver.get(bit, "") for bit in bits]
        return self._common(drivers) if all(drivers) else None

    def _common(self, names: list[str]) -> tuple[list[str], tuple[Bit, Bit, str]] | None:
        controls = {self.control(name) for name in names}
        if len(controls) != 1:
            return None
        (control,) = controls
        return None if control is None else (names, control)

    def move_output(self, name: str, port: str, register: str) -> None:
        """Let a cell's port drive what a register behind it has driven."""
        output = self.cells.pop(register)["connections"]["Q"]
        self.cells[name]["connections"][port] = output
        self.driver[output[0]] = name

    def remove_unread(self, register: str) -> None:
        """Remove a register that nothing reads any more."""
        cell = self.cells.get(register)
        if cell is not None and not self.readers[cell["connections"]["Q"][0]]:
            del self.cells[register]


def _pack_ram(netlist: _Netlist, name: str) -> None:
    ram = netlist.cells[name]
    wires, settings = ram["connections"], ram["parameters"]
    widths = {side: int(str(settings.get(f"DATA_WIDTH_{side}", "0")), 2) for side in "AB"}
    # A word of 36 bits is written at port A, and read at port B from both ports' outputs.
    wide = _WIDE_BITS in widths.values()
    for side, outputs in (("B", "AB"),) if wide else (("A", "A"), ("B", "B")):
        ports = [
            port
            for output in outputs
            for port in (f"DO{output}{index}" for index in range(_DATA_BITS))
            if wires.get(port) and netlist.readers[wires[port][0]]
        ]
        found = netlist.behind([wires[port][0] for port in ports])
        if found is None:
            continue
        registers, (clock, enable, sense) = found
        if wires[f"CLK{side}"] != [clock] or settings.get(f"CLK{side}MUX") != f"CLK{side}":
            continue
        if wires.get(f"RST{side}", ["0"]) != ["0"] or settings[f"REGMODE_{side}"] != "NOREG":
            continue
        for port, register in zip(ports, registers, strict=True):
            netlist.move_output(name, port, register)
        for output in outputs:
            settings[f"REGMODE_{output}"] = "OUTREG"
            settings[f"OCE{output}MUX"] = "INV" if sense == "INV" else f"OCE{output}"
            wires[f"OCE{output}"] = [enable]


def _pack_multiplier(netlist: _Netlist, name: str) -> None:
    multiplier = netlist.cells[name]
    wires, settings = multiplier["connections"], multiplier["parameters"]
    kinds = {
        "A": ("INPUTA", [f"A{index}" for index in range(_FACTOR_BITS)]),
        "B": ("INPUTB", [f"B{index}" for index in range(_FACTOR_BITS)]),
        "P": ("OUTPUT", [f"P{index}" for index in range(_PRODUCT_BITS)]),
    }
    used: tuple[Bit, Bit, str] | None = None
    for kind, (register_kind, every) in kinds.items():
        ports = [port for port in every if wires.get(port) and not is_constant(wires[port][0])]
        if kind == "P":
            ports = [port for port in ports if netlist.readers[wires[port][0]]]
            found = netlist.behind([wires[port][0] for port in ports])
        else:
            found = netlist.before([wires[port][0] for port in ports])
        # nextpnr does not invert a multiplier's enable.
        if found is None or found[1][2] == "INV" or used not in (None, found[1]):
            continue
        registers, used = found
        for port, register in zip(ports, registers, strict=True):
            if kind == "P":
                netlist.move_output(name, port, register)
                continue
            source = netlist.cells[register]["connections"]["DI"]
            wires[port] = list(source)
            netlist.readers[source[0]].add(name)
        if kind != "P":
            for register in set(registers):
                output = netlist.cells[register]["connections"]["Q"][0]
                if not any(output in wires[port] for port in every if port in wires):
                    netlist.readers[output].discard(name)
                netlist.remove_unread(register)
        settings[f"REG_{register_kind}_CLK"] = "CLK0"
        settings[f"REG_{register_kind}_CE"] = "CE0"
        settings[f"REG_{register_kind}_RST"] = "RST0"
    if used is not None:
        clock, enable, _ = used
        wires.update(CLK0=[clock], CE0=[enable], RST0=["0"])
        multiplier["port_directions"].update(CLK0="input", CE0="input", RST0="input")


def pack_registers(module: dict[str, Any]) -> int:
    """Move registers into the block RAMs and multipliers of a module.

    A register moves if it has neither a set nor a reset, and if all the registers behind a RAM's
    port, before a factor or behind a product have one clock and one enable, those of a multiplier
    an enable that is not inverted. Those behind are moved only if nothing else reads what is
    between.

    Parameters
    ----------
    module : dict
        A flat module of Yosys' JSON netlist, mapped by `synth_ecp5`. It is changed.

    Returns
    -------
    int
        Registers that the module has fewer.
    """
    netlist = _Netlist(module)
    before = len(netlist.cells)
    for name in list(netlist.cells):
        kind = netlist.cells[name]["type"] if name in netlist.cells else ""
        if kind == "DP16KD":
            _pack_ram(netlist, name)
        elif kind == "MULT18X18D":
            _pack_multiplier(netlist, name)
    return before - len(netlist.cells)
