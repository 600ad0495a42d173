"""`egret unpack`: turn a packed file back into plain weights."""

import argparse
from pathlib import Path

from egret.command import Command, refuse_same_file

__all__ = ["command"]

_DESCRIPTION = """\
Turn a packed file back into a plain safetensors file.

    egret unpack model.egret -o model.safetensors
    egret unpack model.egret -o part.safetensors --include "layers.0.*"

Every tensor has its original name, shape and dtype. Coded weights are the rounded ones:
packing the result again with the same step gives the same integers. One tensor at a time
lies in memory.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE.egret", type=Path, help="packed file")
    parser.add_argument("-o", "--output", metavar="OUT.safetensors", type=Path, required=True)
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="unpack only the tensors whose names match; may be repeated",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=1, help="threads, 1 or more (1)"
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.packed import unpack
    from egret.progress import Progress

    refuse_same_file(arguments.input, arguments.output)
    with Progress("unpacking") as progress:
        count, total = unpack(
            arguments.input,
            arguments.output,
            include=arguments.include,
            threads=arguments.threads,
            progress=progress,
        )
    print(f"{arguments.output}: {count} tensors, {total:,} bytes of data")


command = Command(
    name="unpack",
    summary="turn a packed file back into a safetensors file",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
