"""What `benchmarks/hardware.py` measured: as tables with verdicts, in a page, and as charts."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.codec_report import Check, format_table
from benchmarks.page import markdown_table, replace_parts
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egret.errors import EgretError
from egret.files import atomic_path, write_text
from egret_sim.report import FIGURE_STYLE

__all__ = [
    "AREA_PARTS",
    "RUN_PARTS",
    "Area",
    "Figures",
    "Run",
    "draw",
    "format_part",
    "read_figures",
    "write_figures",
    "write_page",
]

AREA_PARTS = {
    "parsers": "Parsers",
    "lanes": "Lanes",
    "arrays": "Arrays: lanes, read-out chain and row store, without bus, CRC and requantiser",
    "boards": "The full top, with AXI, CRC and requantiser, on the parts of real boards, with pads",
}
RUN_PARTS = {
    "networks": "Whole networks, their matrices of 4,096 weights and more back to back",
    "singles": "Single matrices, from the first word to the last result",
}
_PICTURES = {
    "parsers": "![Clock, and LUTs for a rate of codewords, of each parser and the textbook decoder]"
    "(images/hardware-parsers.svg)",
    "networks": "![Cycles over the roof for each network and share of zeros, beside plain int8 and "
    "compressed sparse columns](images/hardware-cycles.svg)",
}
"""Charts that belong to a page's tables, in the folder `images` beside it."""
_CODEWORD_BITS = (1, 6)
"""Bits of a codeword for which decoders are set side by side: the shortest, and one of a dense
network in int8."""


@dataclass(frozen=True)
class Area:
    """A design, placed and routed.

    Parameters
    ----------
    part : str
        Of `AREA_PARTS`.
    design, fpga : str
        What it is, and on what.
    source : str
        Fingerprint of its Verilog.
    bits : int
        Stream bits a cycle; 0 for the textbook decoder, which takes a codeword a cycle.
    luts, flip_flops, block_rams, multipliers, memory_slices : int
        Cells, see `egret_hw.place.PlacedDesign`.
    mhz : list of float
        Clock, for each seed.
    slowest : str
        The slowest path of the slowest seed.
    xilinx : dict of str to float
        LUTs, flip-flops, block RAMs and multipliers on Xilinx' 7 series.
    tools : list of str
        Packages and versions.
    checks : list of Check
        Limits.
    """

    part: str
    design: str
    fpga: str
    source: str
    bits: int
    luts: int
    flip_flops: int
    block_rams: int
    multipliers: int
    memory_slices: int
    mhz: list[float]
    slowest: str
    xilinx: dict[str, float]
    tools: list[str]
    checks: list[Check] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name for messages."""
        return self.design

    @property
    def median_mhz(self) -> float:
        """Median of the seeds' clocks; of an even number the lower of the two in the middle."""
        return sorted(self.mhz)[(len(self.mhz) - 1) // 2]

    def codewords(self, bits: int) -> float:
        """Return millions of codewords a second, each of so many bits."""
        return self.median_mhz * (self.bits / bits if self.bits else 1)


@dataclass(frozen=True)
class Run:
    """Matrices that ran on the Verilated top.

    Parameters
    ----------
    part : str
        Of `RUN_PARTS`.
    network, preset, codes : str
        What ran, on what, with which codes.
    share : float
        Share of the weights that was pruned away.
    matrices, weights, zeros : int
        Sizes.
    bus_bits, macs : int
        Of the accelerator: bits of a bus word, weights multiplied a cycle at most.
    cycles : int
        The hardware's own counter: for a network the cycles of a pass between others, for single
        matrices from the first header to the last result.
    alone : int
        From the first header to the last result, with fill and drain.
    code_bits, multiplied : int
        Bits of codewords, and weights that are multiplied.
    roof : float
        Sum over the matrices of max(code bits / bus bits, multiplied / MACs).
    balance : float
        Work of the mean lane over that of the busiest, in cycles, summed over the matrices.
    columns, rows : int
        Columns of activations that were loaded and rows of results that were sent meanwhile.
    activation_columns : int
        Columns that come in a cycle; of rows, one leaves.
    dense_bits, dense_cycles, csc_bits, csc_cycles : int
        The same matrices as plain int8 and as compressed sparse columns, at the roof.
    checks : list of Check
        Limits.
    """

    part: str
    network: str
    preset: str
    codes: str
    share: float
    matrices: int
    weights: int
    zeros: int
    bus_bits: int
    macs: int
    cycles: int
    alone: int
    code_bits: int
    multiplied: int
    roof: float
    balance: float
    columns: int
    rows: int
    activation_columns: int
    dense_bits: int
    dense_cycles: int
    csc_bits: int
    csc_cycles: int
    checks: list[Check] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name for messages."""
        return f"{self.network}, {self.zeros / self.weights:.0%} zeros, {self.codes}, {self.preset}"

    @property
    def ratio(self) -> float:
        """Cycles over the roof."""
        return self.cycles / self.roof

    @property
    def port_ratio(self) -> float:
        """Cycles over the roof, or over what the other ports need, if that is more."""
        return self.cycles / max(self.roof, self.rows, self.columns / self.activation_columns)

    @property
    def bus_busy(self) -> float:
        """Share of the cycles in which the bus would bring the codewords' bits alone."""
        return self.code_bits / self.bus_bits / self.cycles

    @property
    def macs_busy(self) -> float:
        """Share of the MACs' cycles in which they multiply."""
        return self.multiplied / self.macs / self.cycles


@dataclass
class Figures:
    """All that was measured, by part.

    Parameters
    ----------
    areas : dict of str to list of Area
    runs : dict of str to list of Run
    """

    areas: dict[str, list[Area]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)


def read_figures(path: Path) -> Figures:
    """Read what `write_figures` wrote; nothing where there is no file.

    Raises
    ------
    EgretError
        It is no such file.
    """
    if not path.exists():
        return Figures()

    def build(kind: type[Any], entry: Mapping[str, Any]) -> Any:
        return kind(**{**entry, "checks": [Check(**check) for check in entry["checks"]]})

    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return Figures(
            **{
                name: {
                    part: [build(kind, entry) for entry in entries]
                    for part, entries in read[name].items()
                }
                for name, kind in (("areas", Area), ("runs", Run))
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EgretError(f"{path}: not figures of this bench; remove it: {error}") from error


def write_figures(figures: Figures, path: Path) -> None:
    """Write all figures as JSON."""
    write_text(path, json.dumps(dataclasses.asdict(figures), indent=1) + "\n")


# --- tables ------------------------------------------------------------------------------------

_Table = tuple[list[str], list[list[str]]]


def _limits(checks: Iterable[Check]) -> str:
    return "; ".join(f"{c.limit} {c.verdict}" for c in checks if c.bound is not None)


def _per_bit(area: Area) -> str:
    return f"{area.luts / area.bits:.1f}" if area.bits else "–"


def _area_table(areas: Sequence[Area]) -> _Table:
    header = ["design", "on", "bits a cycle", "LUT", "a bit", "FF", "RAM", "DSP", "MHz"]
    header += ["7 series LUT", "FF", "RAM", "DSP", "limits"]
    rows = []
    for area in areas:
        cells = [f"{area.bits}" if area.bits else "a codeword", f"{area.luts:,}", _per_bit(area)]
        cells += [f"{n:,}" for n in (area.flip_flops, area.block_rams, area.multipliers)]
        cells.append(" ".join(f"{mhz:.0f}" for mhz in area.mhz))
        names = ("luts", "flip_flops", "block_rams", "multipliers")
        cells += [f"{area.xilinx[name]:,g}" if area.xilinx else "–" for name in names]
        rows.append([area.design, area.fpga, *cells, _limits(area.checks)])
    return header, rows


def _decoder_table(areas: Sequence[Area]) -> _Table:
    """Set decoders side by side: codewords a second, and what they cost."""
    header = ["decoder", "LUT", "MHz"]
    for bits in _CODEWORD_BITS:
        plural = "s" if bits > 1 else ""
        header += [f"M codewords/s of {bits} bit{plural}", "LUT for 100 M/s"]
    rows = []
    for area in areas:
        row = [area.design, f"{area.luts:,}", f"{area.median_mhz:.0f}"]
        for bits in _CODEWORD_BITS:
            rate = area.codewords(bits)
            row += [f"{rate:,.0f}", f"{100 * area.luts / rate:.1f}"]
        rows.append(row)
    return header, rows


def _run_table(runs: Sequence[Run]) -> _Table:
    header = ["matrices", "on", "codes", "zeros", "alone", "cycles", "roof", "ratio"]
    header += ["with ports", "bus busy", "MACs busy", "balance", "columns", "rows"]
    header += ["bits", "int8 bits", "CSC bits", "int8 cycles", "CSC cycles", "limits"]
    rows = [
        [
            f"{run.network} ({run.matrices}, {run.weights:,} weights)",
            run.preset,
            run.codes,
            f"{run.zeros / run.weights:.0%}",
            f"{run.alone:,}",
            f"{run.cycles:,}",
            f"{run.roof:,.0f}",
            f"{run.ratio:.3f}",
            f"{run.port_ratio:.3f}",
            f"{run.bus_busy:.3f}",
            f"{run.macs_busy:.3f}",
            f"{run.balance:.3f}",
            f"{run.columns:,}",
            f"{run.rows:,}",
            f"{run.code_bits:,}",
            f"{run.dense_bits:,}",
            f"{run.csc_bits:,}",
            f"{run.dense_cycles:,}",
            f"{run.csc_cycles:,}",
            _limits(run.checks),
        ]
        for run in runs
    ]
    return header, rows


def _tables(figures: Figures, part: str) -> list[_Table]:
    if part in RUN_PARTS:
        return [_run_table(figures.runs[part])]
    areas = figures.areas[part]
    return [_area_table(areas), *([_decoder_table(areas)] if part == "parsers" else [])]


def _summary(items: Sequence[Area | Run]) -> list[str]:
    bound = [(item.title, c) for item in items for c in item.checks if c.bound is not None]
    misses = [(title, check) for title, check in bound if not check.passed]
    lines = [f"Limits: {len(bound) - len(misses)} of {len(bound)} reached"]
    return lines + [f"{title}: {check.limit} {check.verdict}" for title, check in misses]


def _items(figures: Figures, part: str) -> Sequence[Area | Run]:
    return figures.runs[part] if part in RUN_PARTS else figures.areas[part]


def _tool_lines(figures: Figures, part: str) -> list[str]:
    tools = {tool: None for area in figures.areas.get(part, []) for tool in area.tools}
    return [f"Tools: {', '.join(tools)}"] if tools else []


def format_part(figures: Figures, part: str) -> str:
    """Return a part's tables as text, with a summary of its limits.

    Parameters
    ----------
    figures : Figures
        What was measured.
    part : str
        Of `AREA_PARTS` or `RUN_PARTS`.
    """
    lines = [(AREA_PARTS | RUN_PARTS)[part]]
    for header, rows in _tables(figures, part):
        lines += [format_table(header, rows), ""]
    lines += [
        f"slowest path of {area.design}: {area.slowest}" for area in figures.areas.get(part, [])
    ]
    lines += _tool_lines(figures, part)
    summary, *misses = _summary(_items(figures, part))
    return "\n".join([*lines, summary, *(f"  {miss}" for miss in misses)])


def write_page(figures: Figures, path: Path) -> list[str]:
    """Replace the tables of a page by those of the figures.

    What lies between `<!-- PART -->` and `<!-- end -->` is replaced, for every part that was
    measured.

    Parameters
    ----------
    figures : Figures
        What was measured.
    path : Path
        A Markdown file.

    Returns
    -------
    list of str
        The parts that were replaced.

    Raises
    ------
    EgretError
        The page cannot be read.
    """
    parts = {}
    for part in [*figures.areas, *figures.runs]:
        tables = [markdown_table(*table) for table in _tables(figures, part)]
        summary, *misses = _summary(_items(figures, part))
        notes = "\n".join([f"{summary}.", *(f"- {miss}" for miss in misses)])
        tools = [f"{line}." for line in _tool_lines(figures, part)]
        pictures = [_PICTURES[part]] if part in _PICTURES else []
        parts[part] = [*tables, notes, *tools, *pictures]
    return replace_parts(path, parts)


# --- charts ------------------------------------------------------------------------------------

_STYLE: Any = FIGURE_STYLE | {"font.size": 8.5, "axes.titlesize": 9, "svg.fonttype": "none"}
_OURS, _BASELINE, _THIRD = "#0b7285", "#c2571a", "#8c96a8"


def _bars(axes: Axes, names: Sequence[str], numbers: Sequence[float], colours: Any) -> None:
    bars = axes.barh(range(len(names)), numbers, color=colours, height=0.65)
    axes.bar_label(bars, [f"{n:,.0f}" if n >= 20 else f"{n:.1f}" for n in numbers], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(visible=False, axis="y")


def _draw_parsers(figures: Figures) -> Figure | None:
    """Clock, and LUTs for a rate, of the parsers beside the textbook decoder."""
    areas = figures.areas.get("parsers")
    if not areas:
        return None
    figure = Figure(figsize=(9.4, 0.28 * len(areas) + 1.0), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    colours = [_OURS if area.bits else _BASELINE for area in areas]
    names = [area.design for area in areas]
    few, many = _CODEWORD_BITS
    _bars(panels[0], names, [area.median_mhz for area in areas], colours)
    panels[0].set_title("clock, MHz")
    for axes, bits in zip(panels[1:], (many, few), strict=True):
        _bars(axes, names, [100 * a.luts / a.codewords(bits) for a in areas], colours)
        axes.set_title(f"LUTs for 100 M\ncodewords/s of {bits} bit{'s' if bits > 1 else ''}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
    # The panels share an axis, which every one of them has turned over.
    panels[0].set_ylim(len(areas) - 0.5, -0.5)
    return figure


def _draw_cycles(figures: Figures) -> Figure | None:
    """Cycles over the roof: the accelerator, plain int8, compressed sparse columns."""
    runs = [run for run in figures.runs.get("networks", []) if run.codes == "auto"]
    panels = [(name, list(group)) for name, group in groupby(runs, lambda r: (r.preset, r.network))]
    if not panels:
        return None
    columns = max(len(list(group)) for _, group in groupby(panels, lambda panel: panel[0][0]))
    presets = list(dict.fromkeys(name[0] for name, _ in panels))
    figure = Figure(figsize=(2.3 * columns + 0.6, 2.5 * len(presets) + 0.5), layout="constrained")
    grid = figure.subplots(len(presets), columns, squeeze=False, sharey=True)
    for row, preset in zip(grid, presets, strict=True):
        own = [panel for panel in panels if panel[0][0] == preset]
        for axes in row[len(own) :]:
            axes.set_visible(False)
        for axes, ((_, network), cases) in zip(row, own, strict=False):
            kinds: dict[str, tuple[str, Callable[[Run], float]]] = {
                "Egret, measured": (_OURS, lambda run: run.cycles),
                "plain int8, at its roof": (_THIRD, lambda run: run.dense_cycles),
                "CSC, at its roof": (_BASELINE, lambda run: run.csc_cycles),
            }
            for place, (label, (colour, cycles)) in enumerate(kinds.items()):
                at = [number + 0.27 * (place - 1) for number in range(len(cases))]
                axes.bar(at, [cycles(c) / c.roof for c in cases], 0.25, color=colour, label=label)
            axes.axhline(1, color="#1f2933", linewidth=0.8, linestyle="--")
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(range(len(cases)), [f"{c.zeros / c.weights:.0%}" for c in cases])
            axes.set_title(f"{network}\n{preset}")
            axes.set_xlabel("zeros")
        row[0].set_ylabel("cycles / roof")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Draw the charts as SVG.

    Parameters
    ----------
    figures : Figures
        What was measured; a chart without figures is left out.
    folder : Path
        Where they go: `hardware-parsers.svg`, `hardware-cycles.svg`.

    Returns
    -------
    list of Path
        The files.
    """
    drawings = {"parsers": _draw_parsers, "cycles": _draw_cycles}
    paths = []
    with rc_context(_STYLE):
        for name, drawing in drawings.items():
            figure = drawing(figures)
            if figure is None:
                continue
            paths.append(folder / f"hardware-{name}.svg")
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
    return paths
