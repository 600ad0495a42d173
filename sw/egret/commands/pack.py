"""`egret pack`: quantise and code the weights of a file."""

import argparse
from pathlib import Path

from egret.command import Command, refuse_same_file
from egret.errors import EgretError

__all__ = ["command"]

_DESCRIPTION = """\
Pack a network's weights: round them to multiples of 2^-N, rank the values by how often
they occur and write the ranks as exp-Golomb codewords.

    egret pack model.safetensors -o model.egret
    egret pack model.safetensors -o model.egret --step 10 --exclude "*embed*"

IN is a safetensors file, the index of a sharded one (model.safetensors.index.json) or a
PyTorch state dict (needs PyTorch: pip install 'egret[train]').

Floating tensors with two or more dimensions are coded, without further loss after the
rounding. All others (biases, norms, counters) are kept as they are. The packed file is
itself a safetensors file. `egret inspect` shows what it holds, `egret unpack` turns it back.
"""


def _order(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected auto or a number") from error


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", type=Path, help="file with the weights")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    parser.add_argument(
        "--step", metavar="N", type=int, default=8, help="round to multiples of 2^-N (8)"
    )
    parser.add_argument(
        "--bits",
        metavar="N",
        type=int,
        default=16,
        help="refuse weights that need more than N bits as signed integers (16); the "
        "accelerator's default is 12",
    )
    parser.add_argument(
        "--order",
        metavar="K",
        type=_order,
        default=None,
        help="order of the exp-Golomb code, 0 to 7, or auto for each tensor's best (auto)",
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="code the floating tensors whose names match, instead of those with two or more "
        "dimensions; may be repeated",
    )
    parser.add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="keep tensors whose names match as they are; may be repeated",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.checkpoint import read_checkpoint
    from egret.container import read_container
    from egret.errors import QuantizationError
    from egret.packing import pack
    from egret.progress import Progress

    refuse_same_file(arguments.input, arguments.output)
    tensors = read_checkpoint(arguments.input)
    try:
        pack(
            tensors,
            arguments.output,
            step_log2=arguments.step,
            bits=arguments.bits,
            order=arguments.order,
            include=arguments.include,
            exclude=arguments.exclude,
            progress=Progress("packing"),
        )
    except QuantizationError as error:
        raise EgretError(f"{arguments.input}: {error}") from error
    container = read_container(arguments.output)
    records = container.coded_records
    weights = sum(record.size for record in records)
    bits = sum(record.code_bits for record in records)
    rate = f"{bits / weights:.3f} code bits per weight" if weights else "no weights"
    print(
        f"{arguments.output}: {len(records)} of {len(container.names)} tensors coded, "
        f"{weights:,} weights at {rate}; the file has {container.file_bytes:,} bytes, "
        f"unpacked {sum(len(tensor.data) for tensor in tensors.values()):,}"
    )


command = Command(
    name="pack",
    summary="pack the weights of a safetensors file or PyTorch state dict",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
