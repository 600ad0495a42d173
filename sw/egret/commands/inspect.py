"""`egret inspect`: show what a file's weights take in each code."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from egret.command import Command, refuse_same_file
from egret.commands.pack import add_coding_arguments, add_work_arguments
from egret.errors import EgretError

if TYPE_CHECKING:
    from egret.inspection import FileReport

__all__ = ["command"]

_DESCRIPTION = """\
Show each weight tensor's statistics: the shape ν of the generalized Gaussian that fits it,
the share of zeros, and the bits per weight that each code takes.

    egret inspect model.egret
    egret inspect model.safetensors --step 8 --plot weights.png

FILE is a packed file, or anything that `egret pack` takes. Of what is not packed yet, this
shows what packing it would give.

Columns: ν; zeros; values = how many different ones there are; step; code = the one in the file,
or the one that packing would choose, and its bits; for comparison EG = exp-Golomb of the best
order over the values' ranks, Huffman, and the entropy. These count codewords alone; the lines
below the table count everything else.
"""

_FORMATS = (".png", ".svg", ".pdf")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="packed or unpacked weights")
    add_coding_arguments(parser, "24")
    add_work_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")
    parser.add_argument(
        "--plot",
        metavar="OUT",
        type=Path,
        help="draw the weights' histogram and the fitted generalized Gaussian, as PNG, SVG or "
        "PDF by the name's ending (needs Matplotlib: pip install 'egret[sim]')",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.inspection import inspect_file
    from egret.progress import Progress

    if arguments.plot is not None:
        _check_plot(arguments.file, arguments.plot)
    with Progress("inspecting") as progress:
        report = inspect_file(
            arguments.file,
            step_log2=arguments.step,
            bits=arguments.bits,
            codes=arguments.codes,
            threads=arguments.threads,
            memory=arguments.memory,
            progress=progress,
        )
    if arguments.json:
        import json

        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(_format(report))
    if arguments.plot is not None:
        _plot(arguments.file, arguments.plot)


def _check_plot(source: Path, target: Path) -> None:
    """Refuse before the work what would fail after it."""
    if target.suffix.lower() not in _FORMATS:
        raise EgretError(
            f"--plot: found {target.name!r}, expected a name that ends in {', '.join(_FORMATS)}"
        )
    refuse_same_file(source, target)
    if find_spec("matplotlib") is None:
        raise EgretError("--plot needs Matplotlib: pip install 'egret[sim]'")


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_HEADINGS = ["tensor", "shape", "ν", "zeros", "values", "step", "code", "bits", "EG", "k"]
_HEADINGS += ["Huffman", "entropy"]


def _printable(name: str) -> str:
    """Write out what a terminal would obey instead of show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _format(report: "FileReport") -> str:
    state = "packed" if report.packed else "not packed; what packing would give"
    lines = [f"{report.file}: {state}, {report.file_bytes:,} bytes", ""]
    rows = [_HEADINGS]
    for tensor in report.tensors:
        count = max(1, tensor.weights)
        rows.append(
            [
                _printable(tensor.name),
                "×".join(map(str, tensor.shape)) or "scalar",
                "-" if tensor.ggd_shape is None else f"{tensor.ggd_shape:.2f}",
                f"{100 * tensor.zeros / count:.1f} %",
                str(tensor.distinct),
                f"2^-{tensor.step_log2}" if tensor.step_log2 >= 0 else f"2^{-tensor.step_log2}",
                tensor.code,
                f"{tensor.code_bits / count:.3f}",
                f"{tensor.exp_golomb_bits / count:.3f}",
                str(tensor.order),
                f"{tensor.huffman_bits / count:.3f}",
                f"{tensor.entropy_bits / count:.3f}",
            ]
        )
    weights = report.total("weights")
    if weights:

        def mean(field: str) -> str:
            return f"{report.total(field) / weights:.3f}"

        rows.append(
            [
                *("all", f"{weights:,}", "", f"{100 * report.total('zeros') / weights:.1f} %"),
                *("", "", "", mean("code_bits"), mean("exp_golomb_bits"), ""),
                *(mean("huffman_bits"), mean("entropy_bits")),
            ]
        )
    lines += [*_align(rows), ""]
    if weights:
        ratio = report.payload_ratio
        lines.append(
            f"codewords {report.code_bytes:,} bytes, maps and tables {report.book_bytes:,}: "
            f"{report.payload_bits / weights:.3f} bits per weight"
            + (f", {ratio:.4f} times the entropy" if ratio is not None else "")
        )
        lines.append(f"lengths and checksums of chunks: {report.chunk_index_bytes:,} bytes")
    lines.append(f"other tensors: {len(report.raw)}, {report.raw_bytes:,} bytes, kept as they are")
    if report.aliases:
        lines.append(f"tied tensors, stored under another name: {len(report.aliases)}")
    if report.other_bytes is not None:
        rate = f", {8 * report.file_bytes / weights:.3f} bits per weight" if weights else ""
        lines.append(f"names, shapes and the rest: {report.other_bytes:,} bytes")
        lines.append(f"whole file: {report.file_bytes:,} bytes{rate}")
    if report.layers is not None:
        table = [["layer", "rows", "columns", "bias", "input scale", "multiplier", "shift", "ReLU"]]
        for layer in report.layers:
            table.append(
                [
                    layer["name"],
                    str(layer["rows"]),
                    str(layer["columns"]),
                    "yes" if layer["bias"] else "no",
                    f"{layer['input_scale']:.6g}",
                    str(layer["multiplier"]),
                    str(layer["shift"]),
                    "yes" if layer["relu"] else "no",
                ]
            )
        lines += ["", "network:", *_align(table)]
    return "\n".join(lines)


def _plot(source: Path, target: Path) -> None:
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from egret.files import atomic_path
    from egret.ggd import Moments, density
    from egret.inspection import weight_blocks

    moments = sum(map(Moments.of, weight_blocks(source)), Moments())
    shape, scale = moments.shape, moments.scale
    if shape is None or scale == 0.0:
        raise EgretError(f"{source}: there are no weights other than 0 to plot")
    limit = 6 * scale
    edges = np.linspace(-limit, limit, 202)
    counts = np.zeros(edges.size - 1)
    for weights in weight_blocks(source):
        counts += np.histogram(weights, edges)[0]
    per_unit = 1 / (moments.count * (edges[1] - edges[0]))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts * per_unit, edges, fill=True, label="weights")
    # An even number of points: the density of a small shape is infinitely steep at 0.
    x = np.linspace(-limit, limit, 1000)
    axes.plot(
        x, density(x, shape, scale), color="C1", label=f"generalized Gaussian, ν = {shape:.2f}"
    )
    axes.set(yscale="log", xlabel="weight", ylabel="density", title=source.name)
    axes.set_ylim(bottom=0.5 * per_unit)
    axes.legend()
    kind = target.suffix.lower().removeprefix(".")
    # Neither the date nor the random names that Matplotlib writes: equal input, equal bytes.
    metadata = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with rc_context({"svg.hashsalt": "egret"}), atomic_path(target) as temporary:
        figure.savefig(temporary, format=kind, dpi=120, metadata=metadata)


command = Command(
    name="inspect",
    summary="show the statistics and code lengths of a file's weights",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
