"""`egret rtl`: a parameter set becomes Verilog."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["rtl"]


def _configure(parser: argparse.ArgumentParser) -> None:
    add_params_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Verilog file to write")


def _run(arguments: argparse.Namespace) -> None:
    from egret.files import write_text
    from egret_hw.rtl import generate_verilog, top_name

    params = chosen_params(arguments)
    verilog = generate_verilog(params)
    write_text(arguments.output, verilog)
    print(
        f"{arguments.output}: top module {top_name(params)}, {params.lanes} lanes x "
        f"{params.parser_bits} bits, {params.bus_bits}-bit bus, {len(verilog.splitlines())} lines"
    )


rtl = Command(
    name="rtl",
    summary="generate the accelerator's Verilog",
    description="""Generate the Verilog of an accelerator from a named parameter set or your own
file. The same parameters always give the same text. One file holds the design; its ports
(AXI4-Stream for weights, activations and results) are listed in docs/hardware.md.

examples:
  egret rtl --preset m-ddr3 -o build/egret_m_ddr3.v
  egret rtl --config mine.yml -o build/mine.v

mine.yml:
  name: mine
  lanes: 8          # lanes that decode and multiply side by side
  parser_bits: 4    # stream bits a lane reads per cycle
  parser_cut: 4     # bits between pipeline registers of the parser
  bus_bits: 32      # width of the weight stream
  batch: 2          # inputs multiplied by each decoded weight""",
    configure=_configure,
    run=_run,
    extra="hw",
)
