"""Size of the presets' full top on ECP5, counted by Yosys.

The whole design is counted: lanes, CRC, requantiser, read-out, buffers. Not placed and routed, so
no clock is claimed.

    python benchmarks/synthesis.py --presets s m-ddr3
"""

import argparse
from collections.abc import Sequence

from egret.params import PRESETS
from egret_hw.rtl import generate_verilog, top_name
from egret_hw.synthesis import synthesize_ecp5


def main(arguments: Sequence[str] | None = None) -> None:
    """Synthesise the presets and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=sorted(PRESETS))
    parsed = parser.parse_args(arguments)
    print(f"{'preset':>10}{'lanes':>7}{'W':>4}{'bus':>5}{'LUT4':>8}{'FF':>8}{'EBR':>6}{'DSP':>6}")
    tool = ""
    for name in parsed.presets:
        params = PRESETS[name]
        cells = synthesize_ecp5(generate_verilog(params), top_name(params))
        tool = cells.tool
        print(
            f"{name:>10}{params.lanes:>7}{params.parser_bits:>4}{params.bus_bits:>5}"
            f"{cells.luts:>8}{cells.flip_flops:>8}{cells.block_rams:>6}{cells.multipliers:>6}",
            flush=True,
        )
    print(f"{tool}, synth_ecp5; EBR: 18 kbit block RAMs; DSP: 18 x 18 multipliers")


if __name__ == "__main__":
    main()
