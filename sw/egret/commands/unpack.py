"""`egret unpack`: turn a packed file back into floating weights."""

import argparse
from pathlib import Path

from egret.command import Command, refuse_same_file

__all__ = ["command"]

_DESCRIPTION = """\
Turn a packed file back into a plain safetensors file.

    egret unpack model.egret -o model.safetensors

Every tensor has its original name, shape and dtype. Coded weights are the rounded ones:
packing the result again with the same step gives the same integers.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE.egret", type=Path, help="packed file")
    parser.add_argument("-o", "--output", metavar="OUT.safetensors", type=Path, required=True)


def _run(arguments: argparse.Namespace) -> None:
    from egret import safetensors_file
    from egret.container import read_container
    from egret.progress import Progress

    refuse_same_file(arguments.input, arguments.output)
    container = read_container(arguments.input)
    progress = Progress("unpacking")
    tensors = {}
    for name in container.names:
        progress(name, len(container.names))
        tensors[name] = container.restored(name)
    safetensors_file.write(arguments.output, tensors)
    total = sum(len(tensor.data) for tensor in tensors.values())
    print(f"{arguments.output}: {len(tensors)} tensors, {total:,} bytes of data")


command = Command(
    name="unpack",
    summary="turn a packed file back into a safetensors file",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
