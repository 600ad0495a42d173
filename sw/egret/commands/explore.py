"""`egret explore`: which accelerator suits a packed file."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["command"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file (.egret)")
    add_params_arguments(parser)
    parser.add_argument(
        "--codes",
        default="auto",
        help="codes to choose from, separated by commas: eg-k, eg-0 to eg-7, eg-run, eg-table "
        "(default: auto, all that the accelerator knows)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw cycles over LUTs (.svg, .png or .pdf); needs matplotlib, which "
        "pip install 'egret[sim]' brings",
    )


def _run(arguments: argparse.Namespace) -> None:
    from importlib.util import find_spec

    from egret.errors import CapacityError, EgretError
    from egret.estimate import file_weights
    from egret.explore import explore, plot

    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise EgretError("--plot needs matplotlib: pip install 'egret[sim]'")
    base = chosen_params(arguments)
    weights = file_weights(arguments.file)
    try:
        points = explore(weights, base, codes=arguments.codes)
    except CapacityError as error:
        raise EgretError(f"{arguments.file}: layer {error}") from error
    print("   lanes  bits a lane    parser    bus     LUTs     cycles  bits a cycle")
    for point in points:
        params = point.params
        print(
            f"{'*' if point.is_best else ' '}  {params.lanes:5}  {params.parser_bits:11}  "
            f"{params.parser:>9}  {params.bus_bits:4}  {point.luts:7}  {point.cycles:9}  "
            f"{point.bus_bits:12.1f}"
        )
    print("* no other is both as small and as quick. LUTs are estimates for ECP5.")
    if arguments.plot is not None:
        plot(points, arguments.plot, arguments.file.name)
        print(f"{arguments.plot}: the drawing")


command = Command(
    name="explore",
    summary="compare accelerators of many sizes for a packed file",
    description="""Compare accelerators of 1 to 32 lanes that read 1 to 16 bits a cycle each, on a
packed file: clock cycles of one pass (as of `egret estimate`), LUTs, and the bits of the weight
stream that are taken in a cycle on average. Everything else is that of the preset or the
parameter file.

examples:
  egret explore model.egret
  egret explore model.egret --config mine.yml --plot model.svg""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
