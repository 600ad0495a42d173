"""Carry chains packed, in netlists whose every net is compared for random inputs."""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from egret_hw.ecp5_carries import pack_carries
from egret_hw.yowasp import run_yowasp

Netlist = dict[str, Any]

SUMS = """
module sums(input clk, input [12:0] a, b, c, input s, t, e,
  output reg [12:0] chosen, odd, output reg [11:0] even, count, output reg [11:0] fewer,
  output reg [11:0] gated, output less, output reg [12:0] seen, both, output [12:0] chosen_too);
  wire [12:0] picked = s ? a : b;
  wire [12:0] shown = t ? a : c;
  assign less = a < b;
  assign chosen_too = shown;
  always @(posedge clk) begin
    chosen <= picked + c;
    odd <= a + b;
    even <= a[11:0] + b[11:0];
    fewer <= a[11:0] - c[11:0];
    gated <= (a[11:0] & {12{s}}) + b[11:0];
    seen <= shown + b;
    both <= (s & t ? a : b) + (e ? c : 13'b0);
    if (e) count <= count + 1;
  end
endmodule
"""


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Netlist:
    """Adders as Yosys maps them."""
    folder = tmp_path_factory.mktemp("sums")
    (folder / "sums.v").write_text(SUMS, encoding="utf-8")
    script = "read_verilog sums.v; synth_ecp5 -nowidelut -top sums -json sums.json"
    run_yowasp("yosys", ["-q", "-p", script], Path(folder), "sums")
    module: Netlist = json.loads((folder / "sums.json").read_text("utf-8"))["modules"]["sums"]
    return module


class Gates:
    """Works out nets of a netlist. What floats is drawn anew wherever it is read."""

    def __init__(self, module: Netlist, seed: int) -> None:
        self._drawn = random.Random(seed)
        self._floating = random.Random(seed + 1)
        self._driver = {
            bit: (cell, port)
            for cell in module["cells"].values()
            for port, bits in cell["connections"].items()
            for bit in bits
            if cell["port_directions"][port] == "output" and bit != "x"
        }
        self._known: dict[Any, int] = {"0": 0, "1": 1}

    def give(self, nets: list[Any]) -> None:
        """Draw what registers and ports hold."""
        for net in nets:
            self._known[net] = self._drawn.getrandbits(1)

    def value(self, net: Any) -> int:
        if net == "x":
            return self._floating.getrandbits(1)
        if net not in self._known:
            self._known[net] = self._gate(*self._driver[net])
        return self._known[net]

    def _gate(self, cell: Netlist, port: str) -> int:
        wires = {name: bits[0] for name, bits in cell["connections"].items()}
        if cell["type"] == "LUT4":
            return self._lookup(cell["parameters"]["INIT"], [wires[pin] for pin in "ABCD"])
        # The simulation model of CCU2C in Yosys' share/ecp5, without injection.
        carried = self.value(wires["CIN"])
        for half in "01":
            table = cell["parameters"][f"INIT{half}"]
            pins = [wires[f"{pin}{half}"] for pin in "ABCD"]
            lut4 = self._lookup(table, pins)
            lut2 = self._lookup(table[-4:], pins[:2])
            if port == f"S{half}":
                return lut4 ^ carried
            carried = carried if lut4 else lut2
        return carried

    def _lookup(self, table: str, pins: list[Any]) -> int:
        row = sum(self.value(pin) << place for place, pin in enumerate(pins))
        return int(table[-1 - row])


def check_equal(module: Netlist, packed: Netlist) -> None:
    """All registers take, and all ports show, the same."""
    held = [c["connections"]["Q"][0] for c in module["cells"].values() if c["type"] == "TRELLIS_FF"]
    given: list[Any] = []
    shown: list[Any] = []
    for port in module["ports"].values():
        (given if port["direction"] == "input" else shown).extend(port["bits"])
    taken = [
        (kept["connections"][pin][0], packed["cells"][name]["connections"][pin][0])
        for name, kept in module["cells"].items()
        if kept["type"] == "TRELLIS_FF"
        for pin in ("DI", "CE", "LSR")
        if pin in kept["connections"]
    ] + [(net, net) for net in shown]
    for seed in range(200):
        before, after = Gates(module, seed), Gates(packed, seed)
        for gates in (before, after):
            gates.give(sorted({*held, *(net for net in given if isinstance(net, int))}))
        for old, new in taken:
            assert before.value(old) == after.value(new), f"net {old}, seed {seed}"


def count(module: Netlist, kind: str) -> int:
    return sum(cell["type"] == kind for cell in module["cells"].values())


def chain_heads(module: Netlist) -> list[Any]:
    """Return what the chains' first cells take in."""
    cells = [cell["connections"] for cell in module["cells"].values() if cell["type"] == "CCU2C"]
    carried = {net for wires in cells for net in wires["COUT"] if net != "x"}
    return [wires["CIN"][0] for wires in cells if wires["CIN"][0] not in carried]


def test_chains_do_the_same_with_less(sums: Netlist) -> None:
    packed = deepcopy(sums)
    saved = pack_carries(packed)
    check_equal(sums, packed)
    # A cell of a chain takes two LUTs.
    fewer = {kind: count(sums, kind) - count(packed, kind) for kind in ("LUT4", "CCU2C")}
    assert saved == fewer["LUT4"] + 2 * fewer["CCU2C"]
    # No chain is left with a constant carried in, or with an unread carry at its end.
    assert set(chain_heads(sums)) <= {"0", "1"}
    assert set(chain_heads(packed)) == {"x"}
    # 13 multiplexers, 13 gates, 12 gates of a chain that has a cell more; less a LUT for the first
    # sum of each of two others that have no place left for the constant.
    assert (saved, fewer["CCU2C"]) == (13 + 13 + 12 - 2 - 2, -1)


def test_what_stays(sums: Netlist) -> None:
    """A chain into which a signal is carried, or with another way to inject a constant."""
    module = deepcopy(sums)
    for cell in module["cells"].values():
        if cell["type"] == "CCU2C":
            cell["parameters"]["INJECT1_1"] = "YES"
    packed = deepcopy(module)
    assert pack_carries(packed) == 0
    assert packed == module
    carried = module["ports"]["e"]["bits"][0]
    for cell in module["cells"].values():
        if cell["type"] == "CCU2C":
            cell["parameters"]["INJECT1_1"] = "NO"
            if cell["connections"]["CIN"] in (["0"], ["1"]):
                cell["connections"]["CIN"] = [carried]
    packed = deepcopy(module)
    pack_carries(packed)
    check_equal(module, packed)
    assert set(chain_heads(packed)) == {carried}
