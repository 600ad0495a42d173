"""About how many LUTs an accelerator takes, without synthesis.

The figures come from Yosys: `python -m benchmarks.area` synthesises lanes of several widths and
whole tops, and writes them to `area.json` beside this module. What lies between is interpolated,
and wider buses cost for each bit what the measured ones do. It is for comparing configurations;
`make bench-hw` places and counts.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from egret.params import CODE_NAMES, AcceleratorParams

__all__ = ["FIGURES", "area_source", "estimate_luts"]

FIGURES = Path(__file__).with_name("area.json")
"""The measured figures: LUTs of a lane of one vector by kind of parser and its bits; of a read-out
link; more of both for each further vector; of everything else by the bus's bits."""


@cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def area_source() -> str:
    """Return what the figures were measured with, in words."""
    return str(_figures()["source"])


def estimate_luts(params: AcceleratorParams) -> int:
    """Estimate an accelerator's LUTs on ECP5, bus wrapper included.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.

    Returns
    -------
    int
        LUT4s. Memories in block RAM, flip-flops and multipliers are not counted.
    """
    kind = params.parser
    if kind == "logic" and params.codes == CODE_NAMES[:1]:
        kind = CODE_NAMES[0]
    figures = _figures()
    widths = figures["lanes"][kind]
    lane = float(np.interp(params.parser_bits, [int(key) for key in widths], list(widths.values())))
    lane += figures["link"] + figures["vector"] * (params.batch - 1)
    (narrow, least), (wide, most) = ((int(key), n) for key, n in figures["central"].items())
    central = least + (most - least) * (params.bus_bits - narrow) / (wide - narrow)
    return round(central + params.lanes * lane)
