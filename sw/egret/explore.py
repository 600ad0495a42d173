"""Which accelerator suits a model: cycles, area and bandwidth of many configurations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.area import estimate_luts
from egret.code_search import Codes
from egret.errors import EgretError
from egret.estimate import estimate
from egret.image import build_image, build_matrices
from egret.network import IntegerNetwork
from egret.params import AcceleratorParams

__all__ = ["Point", "explore", "plot", "variants"]

LANES = (1, 2, 4, 8, 16, 32)
"""Lanes that a sweep tries."""
PARSER_BITS = (1, 2, 4, 8, 16)
"""Parser bits that a sweep tries."""
_BUSES = (32, 64, 128, 256)
_MICROCODE_BITS = 4


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep.

    Parameters
    ----------
    params : AcceleratorParams
        The configuration.
    cycles : int
        Clock cycles of one pass.
    luts : int
        LUTs on ECP5, estimated.
    bus_bits : float
        Bits a cycle that the weight stream takes, on average.
    is_best : bool
        No other configuration is both as small and as quick, or better.
    """

    params: AcceleratorParams
    cycles: int
    luts: int
    bus_bits: float
    is_best: bool = False


def variants(base: AcceleratorParams) -> Iterator[AcceleratorParams]:
    """Yield a parameter set's variants in lanes, parser bits and bus.

    Parameters
    ----------
    base : AcceleratorParams
        What the variants share. Its parser where that works; of logic below four bits.

    Yields
    ------
    AcceleratorParams
        Each with the narrowest bus that feeds it.
    """
    for lanes in LANES:
        for parser_bits in PARSER_BITS:
            beat = lanes * parser_bits
            if beat > _BUSES[-1]:
                continue
            microcode = base.parser == "microcode" and parser_bits >= _MICROCODE_BITS
            cut = base.parser_cut if microcode else min(parser_bits, base.parser_cut)
            yield replace(
                base,
                name=f"{lanes}x{parser_bits}",
                lanes=lanes,
                parser_bits=parser_bits,
                parser_cut=cut,
                parser="microcode" if microcode else "logic",
                bus_bits=next(bus for bus in _BUSES if bus >= beat),
            )


def explore(
    weights: IntegerNetwork | dict[str, NDArray[np.int32]],
    base: AcceleratorParams,
    *,
    codes: str | Sequence[str] | Codes = "auto",
) -> list[Point]:
    """Try the variants of a parameter set on a model.

    Parameters
    ----------
    weights : IntegerNetwork, or dict of str to ndarray of int32, shape (rows, columns)
        The model, see `egret.estimate.file_weights`.
    base : AcceleratorParams
        What the variants share.
    codes : str, sequence of str, or Codes
        Codes to choose from, as in `egret.packing.pack`.

    Returns
    -------
    list of Point
        By rising LUTs.

    Raises
    ------
    CapacityError
        A layer does not fit any of them.
    EgretError
        A code's name is unknown.
    """
    points = []
    for params in variants(base):
        if isinstance(weights, IntegerNetwork):
            image = build_image(weights, params, codes=codes)
        else:
            image = build_matrices(weights, params, codes=codes)
        found = estimate(image)
        bits = found.words * params.bus_bits / found.cycles
        points.append(Point(params, found.cycles, estimate_luts(params), bits))
    points.sort(key=lambda point: (point.luts, point.cycles))
    least = np.minimum.accumulate([point.cycles for point in points])
    return [
        replace(point, is_best=place == 0 or bool(point.cycles < least[place - 1]))
        for place, point in enumerate(points)
    ]


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """Draw cycles over LUTs, with a line through the configurations that no other beats.

    Parameters
    ----------
    points : sequence of Point
        What `explore` returned.
    path : Path
        File to write; its suffix says which kind, such as .svg or .png.
    title : str
        Title of the drawing.

    Raises
    ------
    EgretError
        The kind of file is unknown, or it cannot be written.

    Notes
    -----
    Needs matplotlib, which the extra `sim` installs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from egret.files import atomic_path

    kind = path.suffix.removeprefix(".")
    figure = Figure(figsize=(7, 5), layout="constrained")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in known:
        raise EgretError(f"{path}: found suffix {path.suffix!r}, expected .svg, .png or .pdf")
    axes: Any = figure.add_subplot()
    best = [point for point in points if point.is_best]
    for chosen, style in ((points, {"color": "0.6"}), (best, {"color": "C0"})):
        axes.plot(
            [point.luts for point in chosen],
            [point.cycles for point in chosen],
            linestyle="-" if chosen is best else "none",
            marker="o",
            **style,
        )
    for point in points:
        axes.annotate(
            point.params.name,
            (point.luts, point.cycles),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("LUTs on ECP5, estimated")
    axes.set_ylabel("clock cycles of a pass")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    with atomic_path(path) as temporary:
        # Without a date, so that equal points give equal files.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(temporary, format=kind, metadata=metadata)
