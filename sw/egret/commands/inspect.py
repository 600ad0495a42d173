"""`egret inspect`: show what a file's weights take in each code."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from egret.command import Command

if TYPE_CHECKING:
    from egret.inspection import FileReport

__all__ = ["command"]

_DESCRIPTION = """\
Show each weight tensor's statistics: the shape ν of the generalized Gaussian that fits it,
the share of zeros, and the bits per weight that each code takes.

    egret inspect model.egret
    egret inspect model.safetensors --step 8 --plot weights.png

FILE is a packed file, a safetensors file, or a PyTorch state dict (needs PyTorch: pip
install 'egret[train]'). Weights that are not packed are rounded to multiples of 2^-N first.

Columns: fixed = all values numbered with equally long codewords; EG = exp-Golomb of order k
over the values' ranks; Huffman; entropy. These count codewords alone; the line about the
file counts every byte of it.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="packed or unpacked weights")
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        default=8,
        help="step 2^-N for weights that are not packed (8)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")
    parser.add_argument(
        "--plot",
        metavar="OUT.png",
        type=Path,
        help="draw the weights' histogram and the fitted generalized Gaussian (needs "
        "Matplotlib: pip install 'egret[sim]')",
    )


def _run(arguments: argparse.Namespace) -> None:
    from egret.inspection import inspect_file

    report = inspect_file(arguments.file, step_log2=arguments.step)
    if arguments.json:
        import json

        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(_format(report))
    if arguments.plot is not None:
        _plot(arguments.file, arguments.plot)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_HEADINGS = [
    "tensor",
    "shape",
    "ν",
    "zeros",
    "values",
    "step",
    "k",
    "fixed",
    "EG",
    "Huffman",
    "entropy",
]


def _format(report: "FileReport") -> str:
    state = "packed" if report.packed else "not packed"
    lines = [f"{report.file}: {state}, {report.file_bytes:,} bytes", ""]
    rows = [_HEADINGS]
    for tensor in report.tensors:
        count = max(1, tensor.weights)
        rows.append(
            [
                tensor.name,
                "×".join(map(str, tensor.shape)) or "scalar",
                "-" if tensor.ggd_shape is None else f"{tensor.ggd_shape:.2f}",
                f"{100 * tensor.zeros / count:.1f} %",
                str(tensor.distinct),
                f"2^-{tensor.step_log2}" if tensor.step_log2 >= 0 else f"2^{-tensor.step_log2}",
                str(tensor.order),
                f"{tensor.fixed_length_bits / count:.3f}",
                f"{tensor.exp_golomb_bits / count:.3f}",
                f"{tensor.huffman_bits / count:.3f}",
                f"{tensor.entropy_bits / count:.3f}",
            ]
        )
    weights = report.total("weights")
    if weights:
        sums = ("fixed_length_bits", "exp_golomb_bits", "huffman_bits", "entropy_bits")
        rows.append(
            ["all", f"{weights:,}", "", f"{100 * report.total('zeros') / weights:.1f} %"]
            + ["", "", ""]
            + [f"{report.total(field) / weights:.3f}" for field in sums]
        )
    lines += _align(rows)
    raw_bytes = sum(entry["bytes"] for entry in report.raw)
    lines += ["", f"other tensors: {len(report.raw)}, {raw_bytes:,} bytes, kept as they are"]
    if report.map_bytes is not None:
        rate = f", {8 * report.file_bytes / weights:.3f} bits per weight" if weights else ""
        lines += [f"value maps: {report.map_bytes:,} bytes"]
        lines += [f"whole file: {report.file_bytes:,} bytes{rate}"]
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
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        from egret.errors import EgretError

        raise EgretError("--plot needs Matplotlib: pip install 'egret[sim]'") from error
    import numpy as np

    from egret.errors import EgretError
    from egret.files import atomic_path
    from egret.ggd import density, estimate_scale, estimate_shape
    from egret.inspection import weights_of

    tensors = [np.asarray(weights, np.float64) for weights in weights_of(source)]
    weights = np.concatenate(tensors) if tensors else np.empty(0)
    scale = estimate_scale(weights) if weights.size else 0.0
    if scale == 0.0:
        raise EgretError(f"{source}: there are no weights other than 0 to plot")
    shape = estimate_shape(weights)
    limit = 6 * scale
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(weights, bins=201, range=(-limit, limit), density=True, label="weights")
    # An even number of points: the density of a small shape is infinitely steep at 0.
    x = np.linspace(-limit, limit, 1000)
    axes.plot(x, density(x, shape, scale), label=f"generalized Gaussian, ν = {shape:.2f}")
    axes.set(yscale="log", xlabel="weight", ylabel="density", title=source.name)
    axes.set_ylim(bottom=0.5 / (weights.size * 2 * limit / 201))
    axes.legend()
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


command = Command(
    name="inspect",
    summary="show the statistics and code lengths of a file's weights",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
)
