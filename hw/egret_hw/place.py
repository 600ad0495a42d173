"""Places and routes designs with nextpnr: cells and clock, for a component or for a board's part.

A component is measured out of context, with a register before each of its inputs and behind each
output, so that its paths from and to ports count like those inside. These registers are not
counted, and do not move into block RAMs and multipliers as the design's own do on ECP5. Where pads
are placed too (iCE40, whose nextpnr places nothing without, and boards), the ports hang on two
shift registers instead, so that any number of them fits the package.
"""

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egret.errors import EgretError
from egret_hw.ecp5_carries import pack_carries
from egret_hw.ecp5_floorplan import lock_lanes
from egret_hw.ecp5_registers import pack_registers
from egret_hw.verilog_text import Port, module_ports
from egret_hw.yowasp import run_yowasp, tool_version

__all__ = [
    "BOARDS",
    "ECP5",
    "ICE40",
    "SEEDS",
    "Part",
    "PlacedDesign",
    "XilinxCells",
    "count_xilinx7",
    "place",
]

SEEDS = (1, 2, 3)
"""nextpnr's seeds that figures stand on."""

_TARGET_MHZ = 250
_HARNESS = "egret_harness"
_REGISTERS = {"nextpnr_ecp5": "TRELLIS_FF", "nextpnr_ice40": "SB_DFF"}


@dataclass(frozen=True)
class Part:
    """An FPGA, and on a board the pads that matter.

    Parameters
    ----------
    name : str
        Shown in tables.
    tool : str
        "nextpnr_ecp5" or "nextpnr_ice40".
    options : tuple of str
        Its command line: device, speed, package.
    pads : mapping of str to str
        Pads of `clk`, `data_in` and `data_out`; empty for a component out of context.
    """

    name: str
    tool: str
    options: tuple[str, ...]
    pads: Mapping[str, str] = field(default_factory=dict)


ECP5 = Part("LFE5U-85F-6", "nextpnr_ecp5", ("--85k", "--speed", "6", "--package", "CABGA756"))
"""The part that limits for ECP5 hold on: the slowest of its speeds."""
ICE40 = Part("iCE40HX8K", "nextpnr_ice40", ("--hx8k", "--package", "ct256"))

BOARDS = {
    "ulx3s-85f": Part(
        "ULX3S, LFE5U-85F-6BG381C",
        "nextpnr_ecp5",
        ("--85k", "--speed", "6", "--package", "CABGA381"),
        {"clk": "G2", "data_in": "D6", "data_out": "B2"},
    ),
    "orangecrab-85f": Part(
        "OrangeCrab, LFE5U-85F-8MG285C",
        "nextpnr_ecp5",
        ("--85k", "--speed", "8", "--package", "CSFBGA285"),
        {"clk": "A9", "data_in": "J17", "data_out": "K4"},
    ),
    "hx8k-b-evn": Part(
        "iCE40-HX8K breakout board, iCE40HX8K-CT256",
        "nextpnr_ice40",
        ("--hx8k", "--package", "ct256"),
        {"clk": "J3", "data_in": "B10", "data_out": "B5"},
    ),
}
"""Boards by name, with the pads of their clock, a button and a light."""


@dataclass(frozen=True)
class PlacedDesign:
    """A design that was placed and routed.

    Parameters
    ----------
    part : str
        Name of the part or board.
    luts : int
        ECP5: LUT4 places, those of carry chains and of LUT memories with their write ports among
        them. iCE40: logic cells, a LUT4 and a flip-flop each, either of which may be unused.
    flip_flops : int
        Registers' bits; on ECP5 without those that moved into block RAMs and multipliers.
    block_rams : int
        ECP5: 18 kbit each. iCE40: 4 kbit.
    multipliers : int
        ECP5: 18 × 18. iCE40 has none here.
    memory_slices : int
        ECP5: pairs of LUT places, among those in `luts`, that are LUT memories' write ports.
    mhz : tuple of float
        Fastest clock, for each seed.
    slowest : str
        The slowest path of the slowest seed: from, to, delay.
    tools : tuple of str
        Packages and versions.
    """

    part: str
    luts: int
    flip_flops: int
    block_rams: int
    multipliers: int
    memory_slices: int
    mhz: tuple[float, ...]
    slowest: str
    tools: tuple[str, ...]

    @property
    def median_mhz(self) -> float:
        """Median of the seeds' clocks."""
        return statistics.median(self.mhz)


@dataclass(frozen=True)
class XilinxCells:
    """Cells of a design on Xilinx' 7 series, counted by Yosys.

    Parameters
    ----------
    luts : int
        LUTs of any size, those of LUT memories and shift registers among them.
    flip_flops : int
    block_rams : float
        36 kbit each.
    multipliers : int
        DSP48E1.
    tool : str
        Package and version.
    """

    luts: int
    flip_flops: int
    block_rams: float
    multipliers: int
    tool: str


_PRIMITIVES = {
    "nextpnr_ecp5": """
module egret_register(input clk, input d, output q);
  TRELLIS_FF #(.CEMUX("1"), .CLKMUX("CLK"), .GSR("DISABLED"), .LSRMUX("LSR"), .REGSET("RESET"))
    register (.CLK(clk), .LSR(1'b0), .DI(d), .Q(q));
endmodule
module egret_fold(input a, input b, output y);
  LUT4 #(.INIT(16'h6666)) fold (.A(a), .B(b), .C(1'b0), .D(1'b0), .Z(y));
endmodule
""",
    "nextpnr_ice40": """
module egret_register(input clk, input d, output q);
  SB_DFF register (.C(clk), .D(d), .Q(q));
endmodule
module egret_fold(input a, input b, output y);
  SB_LUT4 #(.LUT_INIT(16'h6666)) fold (.I0(a), .I1(b), .I2(1'b0), .I3(1'b0), .O(y));
endmodule
""",
}
"""What the harness is made of. As cells of the part, it neither takes nor gives logic."""


def _width(ports: Sequence[Port]) -> int:
    return sum(port.width for port in ports)


def _harness(ports: Sequence[Port], top: str, clock: str, tool: str, *, pads: bool) -> str:
    """Return modules that hold the design between registers."""
    inputs = [port for port in ports if port.is_input and port.name != clock]
    outputs = [port for port in ports if not port.is_input]
    connections = [f".{clock}(clk)"]
    for group, wire in ((inputs, "given"), (outputs, "found")):
        place = 0
        for port in group:
            connections.append(f".{port.name}({wire}[{place + port.width - 1}:{place}])")
            place += port.width
    give, find = max(1, _width(inputs)), max(1, _width(outputs))
    if pads:
        # The inputs are one shift register, the outputs another, into which they are folded.
        heads = ("input data_in", "output data_out")
        taken = "i ? given[i - 1] : data_in"
        tail = (
            f"wire [{find - 1}:0] folded, moved; assign data_out = moved[{find - 1}];\n"
            f"for (i = 0; i < {find}; i = i + 1) begin : fold\n"
            "  egret_fold fold (held[i], i ? moved[i - 1] : 1'b0, folded[i]);\n"
            "  egret_register move (clk, folded[i], moved[i]); end"
        )
    else:
        heads = (f"input [{give - 1}:0] data_in", f"output [{find - 1}:0] data_out")
        taken = "data_in[i]"
        tail = "assign data_out = held;"
    return (
        f"{_PRIMITIVES[tool]}module {_HARNESS}(input clk, {', '.join(heads)});\n"
        f"wire [{give - 1}:0] given; wire [{find - 1}:0] found, held; genvar i;\n"
        f"{top} design ({', '.join(connections)});\n"
        f"for (i = 0; i < {give}; i = i + 1) begin : give\n"
        f"  egret_register give (clk, {taken}, given[i]); end\n"
        f"for (i = 0; i < {find}; i = i + 1) begin : find\n"
        f"  egret_register find (clk, found[i], held[i]); end\n"
        f"{tail}\n"
        "endmodule\n"
    )


class _Flow:
    """A folder with a design, in which the tools run."""

    def __init__(self, folder: Path, verilog: str, top: str, part: Part) -> None:
        self._folder = folder
        self.top = top
        self._part = part
        (folder / "design.v").write_text(verilog, encoding="utf-8")

    def yosys(self, script: str) -> None:
        """Run Yosys."""
        run_yowasp("yosys", ["-q", "-p", script], self._folder, self.top)

    def change(self, name: str, top: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a module of a netlist that Yosys wrote."""
        path = self._folder / name
        netlist = json.loads(path.read_text(encoding="utf-8"))
        change(netlist["modules"][top])
        path.write_text(json.dumps(netlist), encoding="utf-8")

    def cells(self, name: str) -> dict[str, int]:
        """Read what `stat` wrote: cells by type."""
        stat = json.loads((self._folder / name).read_text(encoding="utf-8"))
        return {kind: int(count) for kind, count in stat["design"]["num_cells_by_type"].items()}

    def nextpnr(self, *options: str) -> str:
        """Run nextpnr."""
        return run_yowasp(self._part.tool, [*self._part.options, *options], self._folder, self.top)

    def report(self, name: str) -> Any:
        """Read nextpnr's report."""
        return json.loads((self._folder / name).read_text(encoding="utf-8"))


def _slowest(report: Any) -> str:
    """Describe the slowest path between registers."""
    paths = [p for p in report["critical_paths"] if "<async>" not in (p["from"], p["to"])]
    if not paths:
        return ""
    steps = max(paths, key=lambda p: sum(step["delay"] for step in p["path"]))["path"]
    delay = sum(step["delay"] for step in steps)
    levels = sum(step["type"] == "logic" for step in steps)
    first, last = steps[0]["from"]["cell"], steps[-1]["to"]["cell"]
    return f"{first} to {last}: {delay:.2f} ns, {levels} cells between"


def _keep(modules: Sequence[str]) -> str:
    """Return Yosys commands that hold modules apart from what is around them."""
    return "".join(f"setattr -mod -set keep_hierarchy 1 {module}; " for module in modules)


def place(
    verilog: str,
    top: str,
    part: Part = ECP5,
    *,
    clock: str = "clk",
    seeds: Sequence[int] = SEEDS,
    wide_luts: bool = False,
    once: Sequence[str] = (),
    target_mhz: float = _TARGET_MHZ,
    floorplan: bool = False,
    progress: Callable[[str], None] | None = None,
) -> PlacedDesign:
    """Synthesise, place and route a design.

    Parameters
    ----------
    verilog : str
        Text of the design, as `egret_hw.rtl` writes it.
    top : str
        Top module.
    part : Part
        The FPGA; one with pads is placed with them.
    clock : str
        Port of the clock.
    seeds : sequence of int
        nextpnr's seeds, one run each.
    wide_luts : bool
        Let Yosys join LUT4s by multiplexers (ECP5). Without, components are smaller.
    once : sequence of str
        Modules that are synthesised once, apart from what is around them, where a design has many
        of them.
    target_mhz : float
        Clock that nextpnr aims at.
    floorplan : bool
        Give the lanes' block RAMs and multipliers sites beside each other
        (`egret_hw.ecp5_floorplan`); the part is an LFE5U-85F.
    progress : callable, optional
        Called with a line for each step.

    Returns
    -------
    PlacedDesign

    Raises
    ------
    EgretError
        A tool failed, or the design has no clock.
    CapacityError
        The floor plan has too few sites for the lanes.
    """
    say = progress or (lambda _: None)
    ports = module_ports(verilog, top)
    if clock not in {port.name for port in ports}:
        raise EgretError(f"{top}: found no port {clock!r}, expected the clock")
    for module in once:
        # A module that is not there is refused.
        module_ports(verilog, module)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flow = _Flow(folder, verilog, top, part)
        is_ecp5 = part.tool == "nextpnr_ecp5"
        pads = bool(part.pads) or not is_ecp5
        text = _harness(ports, top, clock, part.tool, pads=pads)
        (folder / "harness.v").write_text(text, encoding="utf-8")
        say(f"{top}: Yosys")
        command = "synth_ecp5" if is_ecp5 else "synth_ice40"
        command += " -nowidelut" if is_ecp5 and not wide_luts else ""
        flow.yosys(f"read_verilog design.v; {_keep(once)}{command} -top {top} -json alone.json")
        if is_ecp5:
            # Before the harness is there: only the design's own registers may move.
            for module in (top, *once):
                flow.change("alone.json", module, pack_registers)
        flow.yosys(
            "read_json alone.json; setattr -mod -unset keep_hierarchy *; "
            f"hierarchy -top {top}; flatten; tee -q -o stat.json stat -json; "
            f"read_verilog harness.v; hierarchy -top {_HARNESS}; proc; flatten; "
            "opt_clean; write_json routed.json"
        )
        if is_ecp5:
            flow.change("routed.json", _HARNESS, pack_carries)
        if floorplan:
            flow.change("routed.json", _HARNESS, lambda module: lock_lanes(module["cells"]))
        cells = flow.cells("stat.json")
        command_line = ["--json", "routed.json", "--freq", f"{target_mhz:g}"]
        command_line.append("--timing-allow-fail")
        if not pads:
            command_line.append("--out-of-context")
        elif is_ecp5:
            lines = [f'LOCATE COMP "{port}" SITE "{pad}";' for port, pad in part.pads.items()]
            (folder / "pads.lpf").write_text("\n".join(lines) + "\n", encoding="utf-8")
            command_line += ["--lpf", "pads.lpf"]
        else:
            lines = [f"set_io {port} {pad}" for port, pad in part.pads.items()]
            (folder / "pads.pcf").write_text("\n".join(lines) + "\n", encoding="utf-8")
            command_line += ["--pcf", "pads.pcf", "--pcf-allow-unconstrained"]
        reports = []
        for seed in seeds:
            flow.nextpnr("-q", *command_line, "--seed", str(seed), "--report", "report.json")
            reports.append(flow.report("report.json"))
            clocks = [float(found["achieved"]) for found in reports[-1]["fmax"].values()]
            if not clocks:
                raise EgretError(f"{top}: nextpnr found no path between registers")
            reports[-1]["mhz"] = min(clocks)
            say(f"{top}: seed {seed}: {min(clocks):.0f} MHz")
        used = {kind: int(n["used"]) for kind, n in reports[0]["utilization"].items()}
        if is_ecp5:
            # The harness folds every output with a LUT of its own.
            outputs = _width([port for port in ports if not port.is_input])
            luts = used["TRELLIS_COMB"] - (outputs if pads else 0)
        else:
            luts = _ice40_cells(flow)
        flip_flops = sum(n for kind, n in cells.items() if kind.startswith(_REGISTERS[part.tool]))
    worst = min(reports, key=lambda report: float(report["mhz"]))
    return PlacedDesign(
        part=part.name,
        luts=luts,
        flip_flops=flip_flops,
        block_rams=used["DP16KD"] if is_ecp5 else used["ICESTORM_RAM"],
        multipliers=used.get("MULT18X18D", 0),
        memory_slices=used.get("TRELLIS_RAMW", 0),
        mhz=tuple(float(report["mhz"]) for report in reports),
        slowest=_slowest(worst),
        tools=(tool_version("yosys"), tool_version(part.tool)),
    )


def _ice40_cells(flow: _Flow) -> int:
    """Count the logic cells that the design takes by itself, its pads without a place."""
    printed = flow.nextpnr("--json", "alone.json", "--pack-only")
    found = re.search(r"ICESTORM_LC: *(\d+)/", printed)
    if found is None:
        raise EgretError(f"{flow.top}: nextpnr-ice40 named no number of logic cells")
    return int(found[1])


# LUTs of each LUT memory (Xilinx UG474, table 2-2).
_XILINX_MEMORY_LUTS = {
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM32M": 4,
    "RAM64M": 4,
}


def _xilinx_memory_luts(cells: Mapping[str, int], top: str) -> int:
    kinds = [kind for kind in cells if kind.startswith("RAM") and not kind.startswith("RAMB")]
    unknown = sorted(set(kinds) - set(_XILINX_MEMORY_LUTS))
    if unknown:
        raise EgretError(f"{top}: Yosys made memories {unknown[0]}, whose LUTs are not known here")
    return sum(_XILINX_MEMORY_LUTS[kind] * cells[kind] for kind in kinds)


def count_xilinx7(verilog: str, top: str, *, once: Sequence[str] = ()) -> XilinxCells:
    """Synthesise a design for Xilinx' 7 series and count its cells.

    Parameters
    ----------
    verilog : str
        Text of the design.
    top : str
        Top module.
    once : sequence of str
        See `place`.

    Raises
    ------
    EgretError
        Yosys failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "design.v").write_text(verilog, encoding="utf-8")
        script = (
            f"read_verilog design.v; {_keep(once)}"
            f"synth_xilinx -family xc7 -flatten -noiopad -noclkbuf -top {top}; "
            "tee -q -o stat.json stat -json"
        )
        run_yowasp("yosys", ["-q", "-p", script], folder, top)
        stat = json.loads((folder / "stat.json").read_text(encoding="utf-8"))
    cells: dict[str, int] = stat["design"]["num_cells_by_type"]

    def total(pattern: str) -> int:
        return sum(count for kind, count in cells.items() if re.fullmatch(pattern, kind))

    return XilinxCells(
        luts=total(r"LUT\d") + total(r"SRL\w+") + _xilinx_memory_luts(cells, top),
        flip_flops=total(r"FD[RSCP]E(_1)?"),
        block_rams=total(r"RAMB36\w*") + total(r"RAMB18\w*") / 2,
        multipliers=total(r"DSP48\w*"),
        tool=tool_version("yosys"),
    )
