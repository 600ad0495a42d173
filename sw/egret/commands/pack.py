"""`egret pack`: quantise and code the weights of a file."""

import argparse
import re
import sys
from pathlib import Path

from egret.command import Command, refuse_same_file
from egret.errors import EgretError

__all__ = ["add_coding_arguments", "add_work_arguments", "command"]

_DESCRIPTION = """\
Pack a network's weights: round them to multiples of 2^-N and write them in the code that
takes the fewest bits for each tensor.

    egret pack model.safetensors -o model.egret
    egret pack model.safetensors -o model.egret --step 10 --exclude "*embed*"
    egret pack model.safetensors.index.json -o model.egret --bits 8 --threads 4

IN is a safetensors file, the index of a sharded one (model.safetensors.index.json) or a
PyTorch state dict (needs PyTorch: pip install 'egret[train]').

Floating tensors with two or more dimensions are coded, without further loss after the
rounding; so are integer tensors (int8, uint8, int16, uint16, int32), without any loss. All
others (biases, norms, counters), and those that coding would not make smaller, are kept as
they are. Equal tensors are stored once. The packed file is itself a safetensors file.
`egret inspect` shows what it holds, `egret unpack` turns it back.

When packing is interrupted, the same command goes on where it ended; until then, what is done
lies beside OUT in a folder called .OUT.partial.
"""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _memory(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected bytes such as 512M or 2G")
    return int(found[1]) << 10 * _UNITS[found[2]]


def add_coding_arguments(parser: argparse.ArgumentParser, bits_default: str) -> None:
    """Add `--step`, `--bits` and `--codes`."""
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        help="round to multiples of 2^-N, N from -64 to 64 (8, unless --bits is given)",
    )
    parser.add_argument(
        "--bits",
        metavar="N",
        type=int,
        help="without --step: round each tensor to the finest step at which it fits N bits as "
        "signed integers; with --step: refuse weights that need more. 2 to 24 "
        f"({bits_default}); the accelerator's default is 12",
    )
    parser.add_argument(
        "--codes",
        metavar="LIST",
        default="auto",
        help="codes to choose from, separated by commas: eg-k (exp-Golomb of any order), eg-0 to "
        "eg-7 (of one), eg-run (with runs of zeros), eg-table (fitted to the tensor), or auto "
        "for all (auto)",
    )


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--memory` and `--threads`."""
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        type=_memory,
        default="1G",
        help="memory to stay within, not counting the largest tensor: bytes, or with K, M, G "
        "or T, such as 512M; at least 256M (1G)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=1, help="threads, 1 or more (1)"
    )


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", type=Path, help="file with the weights")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    add_coding_arguments(parser, "16")
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="code the tensors whose names match, instead of those with two or more "
        "dimensions; may be repeated",
    )
    parser.add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="keep tensors whose names match as they are; may be repeated",
    )
    parser.add_argument(
        "--rdo",
        metavar="LAMBDA",
        type=float,
        default=0.0,
        help="round weights for their bits too: to the next multiple towards 0, or to 0, where "
        "that adds less than LAMBDA squared steps of error for each bit saved, such as 0.1 "
        "(0: to the nearest)",
    )
    add_work_arguments(parser)


def _run(arguments: argparse.Namespace) -> None:
    from egret.checkpoint import read_checkpoint
    from egret.container import CodedRecord, read_container
    from egret.errors import QuantizationError
    from egret.packing import pack
    from egret.progress import Progress

    refuse_same_file(arguments.input, arguments.output)
    checkpoint = read_checkpoint(arguments.input)

    def notice(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with Progress("packing") as progress:
            pack(
                checkpoint,
                arguments.output,
                step_log2=arguments.step,
                bits=arguments.bits,
                codes=arguments.codes,
                include=arguments.include,
                exclude=arguments.exclude,
                rdo=arguments.rdo,
                threads=arguments.threads,
                memory=arguments.memory,
                progress=progress,
                notice=notice,
            )
    except QuantizationError as error:
        raise EgretError(f"{arguments.input}: {error}") from error
    except KeyboardInterrupt:
        notice("  the same command goes on from here")
        raise
    with read_container(arguments.output) as container:
        records = [container.record(name) for name in container.coded_names]
        weights = sum(record.size for record in records)
        bits = sum(record.code_bits for record in records if isinstance(record, CodedRecord))
        rate = f", {weights:,} weights at {bits / weights:.3f} code bits" if weights else ""
        aliases = sum(map(container.is_alias, container.names))
        ties = f", {aliases} tied to others" if aliases else ""
        print(
            f"{arguments.output}: {len(records)} of {len(container.names)} tensors coded{ties}"
            f"{rate}; the file has {container.file_bytes:,} bytes, "
            f"unpacked {checkpoint.data_bytes:,}"
        )


command = Command(
    name="pack",
    summary="pack the weights of a safetensors file or PyTorch state dict",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
