"""`egret image`: a compiled network becomes the hardware image of an accelerator."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["command"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file of a compiled network (.egret)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="image file to write")
    add_params_arguments(parser)
    parser.add_argument(
        "--emit",
        choices=("last", "all"),
        default="last",
        help="send the last layer's results, or every layer's results and activations",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.errors import CapacityError, EgretError
    from egret.files import write_bytes
    from egret.image import build_image
    from egret.network import IntegerNetwork

    params = chosen_params(arguments)
    network = IntegerNetwork.load(arguments.file)
    try:
        image = build_image(network, params, emit=arguments.emit)
    except CapacityError as error:
        raise EgretError(f"{arguments.file}: layer {error}") from error
    write_bytes(arguments.output, image.data)
    print(f"{arguments.output}: {len(image.data)} bytes for {params.name}")
    for packet in image.matrices:
        print(
            f"  {packet.name}: {packet.rows} x {packet.columns}, {packet.code}, "
            f"{packet.code_bits / (packet.rows * packet.columns):.3f} code bits per weight, "
            f"{len(packet.data) * 8 // params.bus_bits} bus words with TLAST on the last"
        )


command = Command(
    name="image",
    summary="turn a compiled network into the stream of one accelerator",
    description="""Turn a compiled network (the .egret file that `egret train` writes) into the
hardware image of one accelerator: the words to stream into its s_axis_weight port, packet by
packet.
The format is chapter 2 of docs/format.md.

example:
  egret image model.egret --preset m-ddr3 -o model.bin""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
