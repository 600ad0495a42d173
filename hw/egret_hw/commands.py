"""`egret rtl`: a parameter set becomes Verilog."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params
from egret_hw.project_text import DEFAULT_CLOCK_MHZ

__all__ = ["rtl"]


def _configure(parser: argparse.ArgumentParser) -> None:
    add_params_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write into"
    )
    parser.add_argument(
        "--clock",
        type=float,
        default=DEFAULT_CLOCK_MHZ,
        metavar="MHZ",
        help=f"frequency that the constraints ask for (default: {DEFAULT_CLOCK_MHZ:g})",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.errors import EgretError
    from egret.files import write_text
    from egret_hw.rtl import generate_files, top_name

    params = chosen_params(arguments)
    folder = arguments.output
    if folder.suffix in (".v", ".sv") or (folder.exists() and not folder.is_dir()):
        raise EgretError(f"{folder}: found the name of a file, expected a folder for several")
    if not 0 < arguments.clock < 10_000:
        raise EgretError(f"--clock: found {arguments.clock:g}, expected MHz between 0 and 10000")
    files = generate_files(params, clock=arguments.clock)
    for name, text in files.items():
        write_text(folder / name, text)
    verilog = files[f"{top_name(params)}.v"]
    print(
        f"{folder}: top module {top_name(params)}, {params.lanes} lanes x {params.parser_bits} "
        f"bits, {params.bus_bits}-bit bus; {len(files)} files, {len(verilog.splitlines())} lines "
        "of Verilog"
    )


rtl = Command(
    name="rtl",
    summary="generate the accelerator's Verilog and what a project needs beside it",
    description="""Generate an accelerator from a named parameter set or your own file. The same
parameters always give the same texts. Into the folder go, named after the top module:

  .v            the design: AXI4-Stream for weights, activations and results, AXI4-Lite registers
  .lpf .xdc ..  constraints for the parameters' vendor
  .core         a FuseSoC core
  .vlt          Verilator's control file for lint
  _regs.md .h .py   the register map for people, C and Python
  .json         the parameters

docs/fpga.md tells how to bring them into a design.

examples:
  egret rtl --preset m-ddr3 -o build/m-ddr3
  egret rtl --config mine.yml --clock 150 -o build/mine

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
