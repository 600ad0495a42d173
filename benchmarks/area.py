"""The figures that `egret explore` estimates LUTs from: components synthesised by Yosys for ECP5.

    python -m benchmarks.area

writes them to sw/egret/area.json, half an hour or so of Yosys. Lanes are those of the preset
`m-ddr3` with other parsers; nothing is placed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amaranth.lib import wiring

from egret.area import FIGURES
from egret.files import write_text
from egret.params import CODE_NAMES, MICROCODE_BITS, PRESETS, AcceleratorParams
from egret_hw.lane import Lane
from egret_hw.readout import ReadoutNode
from egret_hw.rtl import component_verilog, generate_verilog, top_name
from egret_hw.synthesis import synthesize_ecp5
from egret_hw.yowasp import tool_version

__all__ = ["main", "variant"]

_KINDS = {
    "eg-k": ("logic", CODE_NAMES[:1], (1, 2, 4, 8, 16)),
    "logic": ("logic", CODE_NAMES, (1, 2, 4, 8, 16)),
    "microcode": ("microcode", CODE_NAMES, (4, 8, 16)),
}
"""Parsers by their names in the file: how they are built, codes, bits."""
_BUSES = (32, 64)
"""What lies beyond takes Yosys far longer, and grows with the bus."""


def variant(kind: str, bits: int) -> AcceleratorParams:
    """Return one lane with a parser of `_KINDS`."""
    parser, codes, _ = _KINDS[kind]
    base = PRESETS["m-ddr3"]
    return replace(
        base,
        lanes=1,
        parser=parser,
        codes=codes,
        parser_bits=bits,
        parser_cut=min(bits, base.parser_cut),
    )


def _component(component: wiring.Component, name: str) -> int:
    luts = synthesize_ecp5(component_verilog(component, name), name, wide_luts=False).luts
    print(f"{name}: {luts} LUT", file=sys.stderr, flush=True)
    return luts


def _top(params: AcceleratorParams) -> int:
    luts = synthesize_ecp5(generate_verilog(params), top_name(params), wide_luts=False).luts
    print(f"top, bus of {params.bus_bits}: {luts} LUT", file=sys.stderr, flush=True)
    return luts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the figures.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; `sys.argv` when absent.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.area",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", type=Path, default=FIGURES, help="file to write")
    output: Path = parser.parse_args(arguments).output
    small = variant("microcode", MICROCODE_BITS)
    lanes = {
        kind: {
            str(bits): _component(Lane(variant(kind, bits)), f"lane_{kind}_{bits}".replace("-", ""))
            for bits in widths
        }
        for kind, (_, _, widths) in _KINDS.items()
    }
    lane = lanes["microcode"][str(MICROCODE_BITS)]
    link = _component(ReadoutNode(small, 1), "link")
    double = replace(small, batch=2)
    both = _component(Lane(double), "lane_batch") + _component(ReadoutNode(double, 1), "link_batch")
    figures = {
        "source": f"{tool_version('yosys')}, synth_ecp5 -nowidelut, not placed",
        "lanes": lanes,
        "link": link,
        "vector": both - lane - link,
        "central": {str(bus): _top(replace(small, bus_bits=bus)) - lane - link for bus in _BUSES},
    }
    write_text(output, json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
