"""About how many LUTs an accelerator takes, without synthesis.

From components synthesised by Yosys `synth_ecp5`, before placement. What lies between their widths
is interpolated. It is for comparing configurations; `egret_hw.synthesis` counts.
"""

import numpy as np

from egret.params import CODE_NAMES, AcceleratorParams

__all__ = ["estimate_luts"]

_WIDTHS = (1, 2, 4, 8, 16)
_LANE_LUTS = {
    "eg-k": (429, 563, 747, 1236, 2295),
    "logic": (749, 891, 1234, 2120, 9465),
    "microcode": (713, 713, 713, 1409, 3996),
}
"""LUTs of a lane of one vector by `_WIDTHS`: of logic for eg-k alone, of logic for all codes, and
of microcode, which takes four bits or more. A cut of four bits where there are so many."""
_VECTOR_LUTS = 182
"""More of lane and link for each further vector of the batch."""
_LINK_LUTS = 197
"""A lane's link of the read-out chain, of one vector."""
_CENTRAL_LUTS = 4173
"""Everything but the lanes and their links, with a bus of 32 bits."""
_BUS_LUTS = 9.8
"""More for each further bit of the bus: packet reader, dealer and gearbox."""


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
    lane = np.interp(params.parser_bits, _WIDTHS, _LANE_LUTS[kind])
    lane += _LINK_LUTS + _VECTOR_LUTS * (params.batch - 1)
    return round(_CENTRAL_LUTS + _BUS_LUTS * (params.bus_bits - 32) + params.lanes * float(lane))
