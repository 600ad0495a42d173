"""`egret explore`: which accelerator suits a packed file."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egret.command import Command, add_params_arguments, chosen_params

if TYPE_CHECKING:
    from egret.explore import Point

__all__ = ["command"]


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers separated by commas")
    return [int(part) for part in parts]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file (.egret)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder for explore.json, the table, and explore.svg or .png, the drawing (needs "
        "Matplotlib: pip install 'egret[sim]')",
    )
    add_params_arguments(parser)
    for name, what in (
        ("lanes", "lanes (default: 1,2,4,8,16,32)"),
        ("parser-bits", "bits a cycle that each lane reads (default: 1,2,4,8,16)"),
        ("bus", "bits of the bus (default: 32,64,128,256)"),
    ):
        parser.add_argument(f"--{name}", metavar="N,N,..", type=_numbers, help=what)
    parser.add_argument(
        "--codes",
        default="auto",
        help="codes to choose from, separated by commas: eg-k, eg-0 to eg-7, eg-run, eg-table "
        "(default: auto, all that the accelerator knows)",
    )
    parser.add_argument(
        "--format", choices=("svg", "png"), default="svg", help="of the drawing (default: svg)"
    )


def _run(arguments: argparse.Namespace) -> None:
    import json
    from importlib.util import find_spec

    from egret.area import area_source
    from egret.errors import CapacityError, EgretError
    from egret.estimate import file_weights
    from egret.explore import BUSES, LANES, PARSER_BITS, explore, plot, variants
    from egret.files import check_folder, write_text

    if find_spec("matplotlib") is None:
        raise EgretError("the drawing needs Matplotlib: pip install 'egret[sim]'")
    folder: Path = arguments.output
    check_folder(folder)
    tried = variants(
        chosen_params(arguments),
        lanes=arguments.lanes or LANES,
        parser_bits=arguments.parser_bits or PARSER_BITS,
        buses=arguments.bus or BUSES,
    )
    weights = file_weights(arguments.file)
    try:
        points = explore(weights, tried, codes=arguments.codes)
    except CapacityError as error:
        raise CapacityError(f"{arguments.file}: layer {error}") from error
    print(_table(points))
    print(
        "* no other is both as small and as quick\n"
        f"LUTs are estimated, for ECP5, from figures of {area_source()}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EgretError(f"{folder}: cannot be made: {error.strerror}") from error
    drawing = folder / f"explore.{arguments.format}"
    write_text(folder / "explore.json", json.dumps(_object(points), indent=2) + "\n")
    plot(points, drawing, arguments.file.name)
    print(f"{drawing}")


def _object(points: "Sequence[Point]") -> dict[str, Any]:
    from egret.area import area_source

    return {
        "luts_from": area_source(),
        "points": [
            {
                "lanes": point.params.lanes,
                "parser_bits": point.params.parser_bits,
                "parser": point.params.parser,
                "bus_bits": point.params.bus_bits,
                "estimated_luts": point.luts,
                "cycles": point.cycles,
                "bits_per_cycle": point.bus_bits,
                "is_best": point.is_best,
            }
            for point in points
        ],
    }


def _table(points: "Sequence[Point]") -> str:
    lines = ["   lanes  bits a lane     parser   bus  LUTs (est.)      cycles  bits a cycle"]
    lines += [
        f"{'*' if point.is_best else ' '}  {point.params.lanes:5}  {point.params.parser_bits:11}  "
        f"{point.params.parser:>9}  {point.params.bus_bits:4}  {point.luts:11,}  "
        f"{point.cycles:10,}  {point.bus_bits:12.1f}"
        for point in points
    ]
    return "\n".join(lines)


command = Command(
    name="explore",
    summary="compare accelerators of many sizes for a packed file",
    description="""Compare accelerators of 1 to 32 lanes that read 1 to 16 bits a cycle each from
buses of 32 to 256 bits, on a packed file: LUTs, estimated; clock cycles of one pass, as of `egret
estimate`; and the bits of the weight stream that are taken in a cycle on average. Everything
else is that of the preset or the parameter file.

examples:
  egret explore model.egret -o build/explore
  egret explore model.egret -o build/explore --lanes 8,16 --bus 64 --format png""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
