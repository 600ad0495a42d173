"""Registers moved into ECP5's block RAMs and multipliers, in netlists run cycle by cycle."""

import random
from copy import deepcopy
from typing import Any

import pytest

from egret_hw.ecp5_registers import pack_registers

CLOCK = 2
Netlist = dict[str, Any]


def cell(kind: str, inputs: dict[str, Any], outputs: dict[str, Any], **settings: str) -> Netlist:
    """Return a cell as Yosys writes it; each port has one net."""
    directions = dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output")
    nets = {port: [net] for port, net in (inputs | outputs).items()}
    return {
        "type": kind,
        "parameters": dict(settings),
        "port_directions": directions,
        "connections": nets,
    }


def register(
    data: Any, output: Any, enable: Any = "1", sense: str = "CE", reset: Any = "0"
) -> Netlist:
    inputs = {"CLK": CLOCK, "DI": data, "LSR": reset}
    if enable != "1":
        inputs["CE"] = enable
    return cell(
        "TRELLIS_FF",
        inputs,
        {"Q": output},
        CEMUX="1 " if enable == "1" else sense,
        CLKMUX="CLK",
        LSRMUX="LSR",
        REGSET="RESET",
    )


class Machine:
    """Runs the cells that the tests use; a RAM reads its address back, upside down."""

    def __init__(self, module: Netlist) -> None:
        self.cells: dict[str, Netlist] = module["cells"]
        self.held: dict[tuple[str, str], int] = {}

    def _net(self, nets: dict[Any, int], part: Netlist, port: str) -> int:
        net = part["connections"].get(port, ["0"])[0]
        return int(net) if net in ("0", "1") else nets.get(net, 0)

    def _word(self, nets: dict[Any, int], part: Netlist, port: str, width: int) -> int:
        return sum(self._net(nets, part, f"{port}{bit}") << bit for bit in range(width))

    def cycle(self, inputs: dict[Any, int]) -> dict[Any, int]:
        """Return all nets of a cycle, and go on to the next one."""
        nets = dict(inputs)
        for name, part in self.cells.items():
            wires, settings = part["connections"], part["parameters"]
            if part["type"] == "TRELLIS_FF":
                nets[wires["Q"][0]] = self.held.get((name, "Q"), 0)
            if part["type"] == "DP16KD":
                inner = "out" if settings.get("REGMODE_B") == "OUTREG" else "read"
                for port in wires:
                    if port.startswith("DO"):
                        # A word of 36 bits begins at port A.
                        bit = int(port[3:]) + (18 if port[2] == "B" and "DOA0" in wires else 0)
                        nets[wires[port][0]] = self.held.get((name, inner), 0) >> bit & 1
        for name, part in self.cells.items():
            if part["type"] != "MULT18X18D":
                continue
            factors = [
                self.held.get((name, port), 0)
                if part["parameters"].get(f"REG_INPUT{port}_CLK") == "CLK0"
                else self._word(nets, part, port, 18)
                for port in "AB"
            ]
            product = factors[0] * factors[1]
            shown = product
            if part["parameters"].get("REG_OUTPUT_CLK") == "CLK0":
                shown = self.held.get((name, "P"), 0)
            self.held[name, "next P"] = product
            for bit in range(36):
                if f"P{bit}" in part["connections"]:
                    nets[part["connections"][f"P{bit}"][0]] = shown >> bit & 1
        after = dict(self.held)
        for name, part in self.cells.items():
            settings = part["parameters"]
            if part["type"] == "TRELLIS_FF":
                enable = self._net(nets, part, "CE")
                moves = {"1": 1, "CE": enable, "INV": 1 - enable}[settings["CEMUX"].strip()]
                if self._net(nets, part, "LSR"):
                    after[name, "Q"] = 0
                elif moves:
                    after[name, "Q"] = self._net(nets, part, "DI")
            if part["type"] == "DP16KD":
                enable = self._net(nets, part, "OCEB")
                if enable != (settings.get("OCEBMUX") == "INV"):
                    after[name, "out"] = self.held.get((name, "read"), 0)
                address = self._word(nets, part, "ADB", 14)
                after[name, "read"] = (address ^ 0x3FFF) | address << 18
            if part["type"] == "MULT18X18D" and self._net(nets, part, "CE0"):
                for port in "AB":
                    after[name, port] = self._word(nets, part, port, 18)
                after[name, "P"] = self.held[name, "next P"]
        self.held = after
        return nets


def module_of(cells: dict[str, Netlist], outputs: list[int]) -> Netlist:
    return {"cells": cells, "ports": {"o": {"direction": "output", "bits": outputs}}}


def check_equal(module: Netlist, packed: Netlist, inputs: list[int], outputs: list[int]) -> None:
    """Both give the same outputs once what they began with has gone."""
    machines = Machine(module), Machine(packed)
    rng = random.Random(1)
    for cycle in range(200):
        given = {net: rng.getrandbits(1) for net in inputs}
        seen = [[machine.cycle(given)[net] for net in outputs] for machine in machines]
        assert cycle < 40 or seen[0] == seen[1], f"cycle {cycle}"


ENABLE, RESET = 3, 4
ADDRESS = list(range(10, 24))
READ = list(range(30, 34))
OUT = list(range(40, 44))


def ram_cells(sense: str, enable: Any = ENABLE, wide: bool = False) -> dict[str, Netlist]:
    """Return a RAM that is read at port B, with registers behind it."""
    wires = {f"ADB{bit}": net for bit, net in enumerate(ADDRESS)}
    outputs = ["DOA0", "DOA1", "DOB0", "DOB1"] if wide else ["DOB0", "DOB1", "DOB2", "DOB3"]
    ram = cell(
        "DP16KD",
        {"CLKA": 5, "CLKB": CLOCK, "RSTB": "0", "OCEA": "0", "OCEB": "1", **wires},
        dict(zip(outputs, READ, strict=True)),
        CLKBMUX="CLKB",
        DATA_WIDTH_A=f"{36 if wide else 18:032b}",
        DATA_WIDTH_B=f"{36 if wide else 18:032b}",
        REGMODE_A="NOREG",
        REGMODE_B="NOREG",
    )
    registers = {
        f"register_{bit}": register(READ[bit], OUT[bit], enable, sense) for bit in range(4)
    }
    return {"ram": ram, **registers}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("sense", "enable"), [("CE", ENABLE), ("INV", ENABLE), ("CE", "1")])
def test_registers_behind_a_ram_move_into_it(sense: str, enable: Any, wide: bool) -> None:
    """A word of 36 bits is held by both ports' registers."""
    module = module_of(ram_cells(sense, enable, wide), OUT)
    packed = deepcopy(module)
    assert pack_registers(packed) == 4
    ram = packed["cells"]["ram"]
    modes = [ram["parameters"][f"REGMODE_{side}"] for side in "AB"]
    assert modes == ["OUTREG" if wide else "NOREG", "OUTREG"]
    if wide:
        assert ram["connections"]["OCEA"] == ram["connections"]["OCEB"] == [enable]
    check_equal(module, packed, [*ADDRESS, ENABLE], OUT)


def test_a_multiplier_behind_a_register_that_has_moved() -> None:
    cells = ram_cells("CE")
    factors = {f"A{bit}": net for bit, net in enumerate(OUT)} | {"B0": "1", "B1": "1"}
    cells["product"] = cell("MULT18X18D", factors, {f"P{bit}": 60 + bit for bit in range(6)})
    module = module_of(cells, list(range(60, 66)))
    packed = deepcopy(module)
    assert pack_registers(packed) == 4
    check_equal(module, packed, [*ADDRESS, ENABLE], list(range(60, 66)))


def test_registers_that_stay() -> None:
    """What something else reads, or has a reset, or another enable, does not move."""
    for change in ("port", "reader", "reset", "always reset", "set", "enable", "edge", "clock"):
        cells = ram_cells("CE")
        outputs = list(OUT)
        if change == "port":
            outputs.append(READ[0])
        if change == "reader":
            cells["other"] = register(READ[0], 50)
        if change == "reset":
            cells["register_1"] = register(READ[1], OUT[1], ENABLE, reset=RESET)
        if change == "always reset":
            cells["register_1"]["parameters"]["LSRMUX"] = "INV"
        if change == "set":
            cells["register_1"]["parameters"]["REGSET"] = "SET"
        if change == "edge":
            cells["ram"]["parameters"]["CLKBMUX"] = "INV"
        if change == "clock":
            cells["ram"]["connections"]["CLKB"] = [5]
        if change == "enable":
            cells["register_2"] = register(READ[2], OUT[2], ENABLE, "INV")
        module = module_of(cells, outputs)
        packed = deepcopy(module)
        assert pack_registers(packed) == 0, change
        assert packed == module, change


FACTORS = list(range(100, 106))
HELD = list(range(110, 116))
PRODUCT = list(range(120, 126))
DONE = list(range(130, 136))


def multiplier_cells(sense: str, enable: Any = ENABLE) -> dict[str, Netlist]:
    a = {f"A{bit}": HELD[min(bit, 2)] for bit in range(4)}
    b = {f"B{bit}": HELD[3 + bit] for bit in range(3)} | {"B3": "0"}
    return {
        "product": cell("MULT18X18D", a | b, {f"P{bit}": net for bit, net in enumerate(PRODUCT)}),
        **{f"factor_{bit}": register(FACTORS[bit], HELD[bit], enable, sense) for bit in range(6)},
        **{f"done_{bit}": register(PRODUCT[bit], DONE[bit], enable, sense) for bit in range(6)},
    }


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("enable", [ENABLE, "1"])
def test_registers_around_a_multiplier_move_into_it(enable: Any, shared: bool) -> None:
    """A factor's register that something else reads too stays besides."""
    outputs = [*DONE, HELD[0]] if shared else DONE
    module = module_of(multiplier_cells("CE", enable), outputs)
    packed = deepcopy(module)
    assert pack_registers(packed) == 12 - shared
    settings = packed["cells"]["product"]["parameters"]
    assert [settings[f"REG_{kind}_CLK"] for kind in ("INPUTA", "INPUTB", "OUTPUT")] == ["CLK0"] * 3
    check_equal(module, packed, [*FACTORS, ENABLE], outputs)


def test_a_multiplier_takes_no_inverted_enable() -> None:
    module = module_of(multiplier_cells("INV"), DONE)
    packed = deepcopy(module)
    assert pack_registers(packed) == 0
    assert packed == module
