"""`egret estimate`: how long an accelerator takes for a packed file."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["command"]


def _passes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 1 to 1000")
    return int(text)


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
        "--passes",
        metavar="N",
        type=_passes,
        default=1,
        help="passes of inputs, one behind the other (default: 1)",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.estimate import estimate, file_image

    params = chosen_params(arguments)
    image = file_image(arguments.file, params, codes=arguments.codes)
    found = estimate(image, passes=arguments.passes)
    width = max(len(matrix.name) for matrix in found.matrices)
    print(f"{'':{width}}  {'size':>12}  code          bits/weight    cycles      roof")
    for packet, matrix in zip(image.matrices * arguments.passes, found.matrices, strict=True):
        size = f"{packet.rows} x {packet.columns}"
        print(
            f"{matrix.name:{width}}  {size:>12}  {packet.code:12}  "
            f"{packet.code_bits / (packet.rows * packet.columns):11.3f}  {matrix.cycles:8}  "
            f"{matrix.roof:8.0f}"
        )
    print(
        f"{found.cycles} cycles on {params.name}, {found.cycles / found.roof:.3f} times the roof "
        f"of {found.roof:.0f}\n"
        f"bus: {found.bus_use:.1%} of its bits are codewords; multipliers: busy in "
        f"{found.multiplier_use:.1%} of the cycles"
    )


command = Command(
    name="estimate",
    summary="predict the clock cycles that a packed file takes, without simulating",
    description="""Predict how many clock cycles one accelerator takes for a packed file, matrix by
matrix, how busy its bus and its multipliers are, and how far that is from the roof: the code
bits at the rate of the bus, or the multiplications spread over all lanes. The streams are taken
not to pause. Of a file with a network, its layers run one behind the other; of any other file,
each tensor of two or more axes is a matrix that takes its own activations.

examples:
  egret estimate model.egret --preset m-ddr3
  egret estimate model.egret --config mine.yml --passes 10""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
