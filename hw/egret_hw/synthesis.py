"""Synthesis with Yosys for ECP5: the check that the Verilog is a circuit, and its size."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from egret_hw.yowasp import run_yowasp

__all__ = ["Ecp5Cells", "check_circuit", "synthesize_ecp5"]

_LUTS_OF_RAM = 4
"""A TRELLIS_DPR16X4 takes the four LUTs of two slices as memory."""
_LUTS_OF_CARRY = 2
"""A CCU2C takes the two LUTs of its slice."""


@dataclass(frozen=True)
class Ecp5Cells:
    """Cells of a design on ECP5.

    Parameters
    ----------
    luts : int
        LUT4 places taken: logic, carry chains (two each) and LUT memories (four each).
    flip_flops : int
        TRELLIS_FF.
    block_rams : int
        DP16KD, 18 kbit each.
    multipliers : int
        MULT18X18D.
    tool : str
        Version line of the Yosys that counted.
    """

    luts: int
    flip_flops: int
    block_rams: int
    multipliers: int
    tool: str


_CIRCUIT = "select -assert-none t:$dlatch t:$_DLATCH_*; check -assert"


def check_circuit(verilog: str, top: str) -> None:
    """Check that a design, flat, is a circuit: no latch, loop, second driver or undriven wire.

    Parameters
    ----------
    verilog : str
        Text of the design.
    top : str
        Top module.

    Raises
    ------
    EgretError
        Yosys found a fault; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.v").write_text(verilog, encoding="utf-8")
        script = (
            f"read_verilog design.v; hierarchy -check -top {top}; proc; flatten; opt_clean; "
            f"{_CIRCUIT}"
        )
        run_yowasp("yosys", ["-q", "-p", script], Path(folder), top)


def synthesize_ecp5(verilog: str, top: str, *, wide_luts: bool = True) -> Ecp5Cells:
    """Synthesise a design and count its cells.

    Yosys' own checks (multiple drivers, combinational loops, undriven wires) must find nothing,
    and no latch may be inferred.

    Parameters
    ----------
    verilog : str
        Text of the design.
    top : str
        Top module.
    wide_luts : bool
        Yosys may join LUTs by the multiplexers beside them, which takes more of them.

    Returns
    -------
    Ecp5Cells

    Raises
    ------
    EgretError
        Yosys found a fault; its last lines are in the message.
    """
    options = "" if wide_luts else " -nowidelut"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.v").write_text(verilog, encoding="utf-8")
        script = (
            f"read_verilog design.v; hierarchy -check -top {top}; proc; opt_clean; "
            f"{_CIRCUIT}; "
            f"synth_ecp5{options} -top {top}; check -assert; tee -q -o stat.json stat -json"
        )
        run_yowasp("yosys", ["-q", "-p", script], Path(folder), top)
        stat = json.loads((Path(folder) / "stat.json").read_text(encoding="utf-8"))
    cells = stat["design"]["num_cells_by_type"]
    return Ecp5Cells(
        luts=cells.get("LUT4", 0)
        + _LUTS_OF_CARRY * cells.get("CCU2C", 0)
        + _LUTS_OF_RAM * cells.get("TRELLIS_DPR16X4", 0),
        flip_flops=cells.get("TRELLIS_FF", 0),
        block_rams=cells.get("DP16KD", 0),
        multipliers=cells.get("MULT18X18D", 0),
        tool=str(stat["creator"]),
    )
