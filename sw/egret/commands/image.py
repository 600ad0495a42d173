"""`egret image`: a compiled network becomes the hardware image of an accelerator."""

import argparse
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["command"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file of a compiled network (.egret)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="image file to write: .hex for $readmemh, with a bus word on each line; any other "
        "name for the bytes. The list of its packets goes beside it, as .json",
    )
    add_params_arguments(parser)
    parser.add_argument(
        "--emit",
        choices=("last", "all"),
        default="last",
        help="send the last layer's results, or every layer's results and activations",
    )
    parser.add_argument(
        "--codes",
        default="auto",
        help="codes to choose from, separated by commas: eg-k, eg-0 to eg-7, eg-run, eg-table "
        "(default: auto, all that the accelerator knows)",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.command import refuse_same_file
    from egret.errors import CapacityError, EgretError
    from egret.files import write_bytes, write_text
    from egret.image import build_image
    from egret.network import IntegerNetwork

    params = chosen_params(arguments)
    output: Path = arguments.output
    listing = output.with_suffix(".json")
    if listing == output:
        raise EgretError(f"{output}: is the name of the list of packets, expected another one")
    refuse_same_file(arguments.file, output)
    refuse_same_file(arguments.file, listing)
    network = IntegerNetwork.load(arguments.file)
    try:
        image = build_image(network, params, emit=arguments.emit, codes=arguments.codes)
    except CapacityError as error:
        raise EgretError(f"{arguments.file}: layer {error}") from error
    if output.suffix == ".hex":
        write_text(output, image.hex)
    else:
        write_bytes(output, image.data)
    write_text(listing, image.listing)
    print(f"{output}: {len(image.data)} bytes for {params.name}")
    words = [len(packet.data) * 8 // params.bus_bits for packet in image.setup]
    print(f"  setup, once after a reset: {len(words)} packets, {sum(words)} bus words")
    for packet in image.packets:
        print(f"  {packet.summary}, {len(packet.data) * 8 // params.bus_bits} bus words")
    print(f"{listing}: where each packet begins; TLAST goes with its last word")


command = Command(
    name="image",
    summary="turn a compiled network into the stream of one accelerator",
    description="""Turn a compiled network (the .egret file that `egret train` writes) into the
hardware image of one accelerator: the words to stream into its s_axis_weight port, packet by
packet. The first packets are the setup, sent once after a reset; the others are sent for every
pass of inputs. The format is chapter 2 of docs/format.md.

example:
  egret image model.egret --preset m-ddr3 -o model.bin""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
