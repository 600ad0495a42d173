"""Which accelerator suits a model: cycles, area and bandwidth of many configurations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
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
from egret.params import MICROCODE_BITS, AcceleratorParams

__all__ = ["BUSES", "LANES", "PARSER_BITS", "Point", "explore", "plot", "variants"]

LANES = (1, 2, 4, 8, 16, 32)
"""Lanes that a sweep tries."""
PARSER_BITS = (1, 2, 4, 8, 16)
"""Parser bits that a sweep tries."""
BUSES = (32, 64, 128, 256)
"""Widths of the bus that a sweep tries, where the lanes' bits fit."""
_LABEL_STEP = 1.08
"""How much farther than the last label on the drawing's LUTs there is room for the next one."""


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


def variants(
    base: AcceleratorParams,
    *,
    lanes: Sequence[int] = LANES,
    parser_bits: Sequence[int] = PARSER_BITS,
    buses: Sequence[int] = BUSES,
) -> list[AcceleratorParams]:
    """Return a parameter set's variants in lanes, parser bits and bus.

    Parameters
    ----------
    base : AcceleratorParams
        What the variants share. Its parser where that works; of logic below four bits.
    lanes, parser_bits, buses : sequence of int
        What is tried; combinations whose lanes read more than a bus word are left out.

    Returns
    -------
    list of AcceleratorParams

    Raises
    ------
    EgretError
        A value is none that the accelerator can have, or no combination is left.
    """
    made = []
    for count, bits, bus in product(lanes, parser_bits, buses):
        if count * bits > bus:
            continue
        microcode = base.parser == "microcode" and bits >= MICROCODE_BITS
        made.append(
            replace(
                base,
                name=f"{count}x{bits}-{bus}",
                lanes=count,
                parser_bits=bits,
                parser_cut=base.parser_cut if microcode else min(bits, base.parser_cut),
                parser="microcode" if microcode else "logic",
                bus_bits=bus,
            )
        )
    if not made:
        raise EgretError("no bus is as wide as all lanes' bits together, expected at least one")
    return made


def explore(
    weights: IntegerNetwork | dict[str, NDArray[np.int32]],
    tried: Sequence[AcceleratorParams],
    *,
    codes: str | Sequence[str] | Codes = "auto",
) -> list[Point]:
    """Try parameter sets on a model.

    Parameters
    ----------
    weights : IntegerNetwork, or dict of str to ndarray of int32, shape (rows, columns)
        The model, see `egret.estimate.file_weights`.
    tried : sequence of AcceleratorParams
        The parameter sets, at least one; see `variants`.
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
    for params in tried:
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
    from matplotlib.ticker import LogLocator, NullFormatter

    from egret.files import atomic_path

    kind = path.suffix.removeprefix(".")
    figure = Figure(figsize=(7, 5), layout="constrained")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in known:
        raise EgretError(f"{path}: found suffix {path.suffix!r}, expected .svg, .png or .pdf")
    axes: Any = figure.add_subplot()
    best = [point for point in points if point.is_best]
    for place, bus in enumerate(sorted({point.params.bus_bits for point in points})):
        own = [point for point in points if point.params.bus_bits == bus]
        axes.scatter(
            [point.luts for point in own],
            [point.cycles for point in own],
            s=14,
            color=f"C{place}",
            label=f"bus of {bus} bits",
        )
    axes.plot(
        [point.luts for point in best],
        [point.cycles for point in best],
        color="0.5",
        linewidth=1,
        zorder=0,
        label="no other is as small and as quick",
    )
    # Of points side by side, the first one's name.
    named = 0
    for point in best:
        if point.luts < _LABEL_STEP * named:
            continue
        named = point.luts
        axes.annotate(
            f"{point.params.lanes} × {point.params.parser_bits}",
            (point.luts, point.cycles),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8)
    axes.set_xlabel("LUTs on ECP5, estimated (points: lanes × bits a lane)")
    axes.set_ylabel("clock cycles of a pass")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    with atomic_path(path) as temporary:
        # Without a date, so that equal points give equal files.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(temporary, format=kind, metadata=metadata)
