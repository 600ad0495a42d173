"""What `benchmarks/codec.py` measured: as tables with verdicts, as JSON and as charts."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.peers import Missing
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egret.files import atomic_path, write_text
from egret_sim.report import FIGURE_STYLE

__all__ = [
    "EGRET",
    "ENTROPY",
    "SPARSE",
    "Check",
    "Results",
    "Sizes",
    "Speed",
    "draw",
    "format_results",
    "format_table",
    "write_json",
]

EGRET = "Egret"
ENTROPY = "entropy"
SPARSE = 0.8
"""Share of zeros, to the nearest hundredth, from which the limits of sparse tensors hold."""


@dataclass(frozen=True)
class Check:
    """One limit and what was found.

    Parameters
    ----------
    limit : str
        What is limited.
    found : float
        The figure.
    bound : float or None
        What it shall reach; None where the figure is only shown.
    at_most : bool
        The bound is the largest good figure; otherwise the smallest.
    """

    limit: str
    found: float
    bound: float | None
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """The figure reaches the bound, if there is one."""
        if self.bound is None:
            return True
        return self.found <= self.bound if self.at_most else self.found >= self.bound

    @property
    def verdict(self) -> str:
        """The figure, and its bound with PASS or MISS."""
        number = f"{self.found:,.0f}" if self.found >= 100 else f"{self.found:.5g}"
        if self.bound is None:
            return number
        sign = "≤" if self.at_most else "≥"
        return f"{number} {sign} {self.bound:g} {'PASS' if self.passed else 'MISS'}"


@dataclass(frozen=True)
class Sizes:
    """What one network takes, rounded in one way and pruned to one share.

    Parameters
    ----------
    network, scheme : str
        Its name, and how it is rounded.
    share : float
        Share of every tensor that was pruned away.
    trained : bool
        The weights come from training.
    weights, tensors, zeros : int
        Coded weights, coded tensors, and weights that are 0.
    bits : dict of str to float
        Payload by codec, in bits; a codec that cannot hold every tensor is absent.
    file_bytes, raw_bytes, index_bytes : int
        The whole `.egret` file; in it the tensors that are not coded, and the index.
    compared : int
        Tensors of values that fit int8, which are each also packed alone, by Egret and by Ethos-U's
        codec.
    larger : list of str
        Those of them that Egret does not make smaller, with the bits of both.
    checks : list of Check
        The limits that hold here.
    """

    network: str
    scheme: str
    share: float
    trained: bool
    weights: int
    tensors: int
    zeros: int
    bits: dict[str, float]
    file_bytes: int
    raw_bytes: int
    index_bytes: int
    compared: int
    larger: list[str]
    checks: list[Check] = field(default_factory=list)

    @property
    def case(self) -> str:
        """Name of the case."""
        pruned = f", {self.share:.0%} pruned" if self.share else ""
        return f"{self.network}, {self.scheme}{pruned}"

    @property
    def is_sparse(self) -> bool:
        """Enough weights are 0 for the limits of sparse tensors."""
        return round(self.zeros / self.weights, 2) >= SPARSE

    def per_weight(self, codec: str) -> float:
        """Return a codec's bits per weight, NaN where it is absent."""
        return self.bits.get(codec, math.nan) / self.weights


@dataclass(frozen=True)
class Speed:
    """One codec on one set of integers.

    Parameters
    ----------
    source, codec : str
        What was coded, and by what.
    weights, zeros : int
        Weights, and those that are 0.
    decode : float
        Median of the repetitions, in millions of weights a second.
    encode : float or None
        Likewise; None where it was not measured.
    decode_seconds, encode_seconds : list of float
        Every repetition.
    checks : list of Check
        The limits that hold here.
    """

    source: str
    codec: str
    weights: int
    zeros: int
    decode: float
    encode: float | None
    decode_seconds: list[float]
    encode_seconds: list[float]
    checks: list[Check] = field(default_factory=list)

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.source

    @property
    def is_sparse(self) -> bool:
        """Enough weights are 0 for the limits of sparse tensors."""
        return round(self.zeros / self.weights, 2) >= SPARSE


@dataclass(frozen=True)
class Results:
    """Everything that was measured, and on what.

    Parameters
    ----------
    machine : dict
        What speeds depend on.
    codecs : dict of str to str
        Version, settings and what is counted, by codec.
    missing : list of Missing
        Codecs that could not run.
    networks : list of Sizes
        Networks.
    sources : list of Sizes
        Synthetic sources: `network` names the distribution, `scheme` the entropy aimed at.
    speeds : list of Speed
        Speeds; those of one source follow each other, Egret's first.
    """

    machine: dict[str, str | int]
    codecs: dict[str, str]
    missing: list[Missing]
    networks: list[Sizes]
    sources: list[Sizes]
    speeds: list[Speed]

    @property
    def judged(self) -> list[Sizes | Speed]:
        """All that limits hold for."""
        return [*self.networks, *self.sources, *self.speeds]


# --- text --------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out columns: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _verdicts(label: str, cases: Sequence[tuple[str, Sequence[Check]]]) -> str:
    """Lay out the checks of several cases, a column for every limit."""
    # Where cases differ in their limits, those with the most give the order.
    longest = sorted((checks for _, checks in cases), key=len, reverse=True)
    limits = list(dict.fromkeys(check.limit for checks in longest for check in checks))
    rows = []
    for name, checks in cases:
        found = {check.limit: check.verdict for check in checks}
        rows.append([name, *(found.get(limit, "") for limit in limits)])
    return format_table([label, *limits], rows)


def _bits_table(label: str, cases: Sequence[tuple[str, Sizes]]) -> str:
    fullest = sorted((sizes for _, sizes in cases), key=lambda s: len(s.bits), reverse=True)
    names = list(dict.fromkeys(name for sizes in fullest for name in sizes.bits))
    rows = [
        [label, *(_number(sizes.per_weight(name), ".3f") for name in names)]
        for label, sizes in cases
    ]
    return format_table([label, *names], rows)


def _format_networks(networks: Sequence[Sizes]) -> Iterable[str]:
    for (network, scheme), group in groupby(networks, lambda s: (s.network, s.scheme)):
        cases = list(group)
        first = cases[0]
        yield (
            f"{network}, {scheme}: {first.weights:,} weights in {first.tensors} tensors; "
            "payload in bits per weight"
        )
        zeros = [f"{sizes.zeros / sizes.weights:.1%}" for sizes in cases]
        yield _bits_table("zeros", list(zip(zeros, cases, strict=True)))
        yield ""
        yield _verdicts("zeros", [(z, s.checks) for z, s in zip(zeros, cases, strict=True)])
        for label, sizes in zip(zeros, cases, strict=True):
            yield from (f"{label} zeros, not below Ethos-U: {name}" for name in sizes.larger)
        yield ""


def _format_sources(sources: Sequence[Sizes]) -> Iterable[str]:
    yield f"Synthetic sources, {sources[0].weights:,} weights each; payload in bits per weight"
    cases = [(sizes.case, sizes) for sizes in sources]
    yield _bits_table("source", cases)
    yield ""
    yield _verdicts("source", [(label, sizes.checks) for label, sizes in cases])
    yield ""


def _format_files(networks: Sequence[Sizes]) -> Iterable[str]:
    yield (
        "The file in bytes: payload, tensors kept as they were, index, everything; the overhead is "
        "the last less the first two, in per cent of them"
    )
    rows = []
    for sizes in networks:
        payload = round(sizes.bits[EGRET] / 8)
        over = sizes.file_bytes - payload - sizes.raw_bytes
        numbers = (payload, sizes.raw_bytes, sizes.index_bytes, sizes.file_bytes, over)
        rows.append(
            [
                sizes.case,
                *(f"{number:,}" for number in numbers),
                f"{over / (payload + sizes.raw_bytes):.2%}",
            ]
        )
    header = ("network", "payload", "kept", "index", "file", "overhead", "")
    yield format_table(header, rows)
    yield ""


def _format_speeds(speeds: Sequence[Speed]) -> Iterable[str]:
    yield "Speed in millions of weights a second, medians; threads: one where none are named"
    groups = [(name, list(group)) for name, group in groupby(speeds, lambda s: s.source)]
    # Where a source is beyond a codec, the fullest group gives the order.
    longest = sorted((group for _, group in groups), key=len, reverse=True)
    codecs = list(dict.fromkeys(speed.codec for group in longest for speed in group))
    for title in ("decode", "encode"):
        rows = []
        for name, group in groups:
            found = {speed.codec: getattr(speed, title) for speed in group}
            zeros = f"{group[0].zeros / group[0].weights:.1%}"
            rows.append([name, zeros, *(_number(found.get(codec), ",.1f") for codec in codecs)])
        yield format_table([title, "zeros", *codecs], rows)
        yield ""
    yield _verdicts("limits", [(name, group[0].checks) for name, group in groups])
    yield ""


def _format_summary(results: Results) -> Iterable[str]:
    checks = [
        (item.case, check)
        for item in results.judged
        for check in item.checks
        if check.bound is not None
    ]
    misses = [(case, check) for case, check in checks if not check.passed]
    yield f"Limits: {len(checks) - len(misses)} of {len(checks)} reached"
    for case, check in misses:
        yield f"  {case}: {check.limit}: {check.verdict}"
    for peer in results.missing:
        yield f"  not judged against {peer.name}: {peer.reason}"


def format_results(results: Results) -> str:
    """Return all tables as text, sizes first, every limit's verdict, and a summary."""
    lines = ["Codecs"]
    lines += [f"  {name}: {text}" for name, text in results.codecs.items()]
    lines += [f"  {peer.name}: NOT RUN, {peer.reason}" for peer in results.missing]
    lines += ["Machine", "  " + ", ".join(f"{k} {v}" for k, v in results.machine.items()), ""]
    if results.networks:
        lines += _format_networks(results.networks)
        lines += _format_files(results.networks)
    if results.sources:
        lines += _format_sources(results.sources)
    if results.speeds:
        lines += _format_speeds(results.speeds)
    lines += _format_summary(results)
    return "\n".join(lines)


def write_json(results: Results, path: Path) -> None:
    """Write every figure, with the verdict of every limit."""

    def checked(item: Sizes | Speed) -> dict[str, Any]:
        checks = [dataclasses.asdict(check) | {"passed": check.passed} for check in item.checks]
        return dataclasses.asdict(item) | {"checks": checks}

    figures = dataclasses.asdict(results) | {
        name: [checked(item) for item in getattr(results, name)]
        for name in ("networks", "sources", "speeds")
    }
    write_text(path, json.dumps(figures, indent=2) + "\n")


# --- charts ------------------------------------------------------------------------------------

_STYLE: Any = FIGURE_STYLE | {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlepad": 6,
    # Text as text keeps the files small.
    "svg.fonttype": "none",
}
_COLOURS = {
    ENTROPY: "#1f2933",
    EGRET: "#0b7285",
    "Huffman": "#c2571a",
    "ANS": "#6741a5",
    "DeepCABAC": "#2b8a3e",
    "Ethos-U": "#c92a6b",
    "zstd -1": "#c9a227",
    "zstd -19": "#8a6d00",
    "dense": "#8c96a8",
    "CSC, EIE": "#5b7fb5",
    "CSC": "#3b5b8c",
}


def _line(axes: Axes, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    ours = name == EGRET
    axes.plot(
        x,
        y,
        color=_COLOURS.get(name, "#868e96"),
        linewidth=2.4 if ours else 1.1,
        linestyle="--" if name == ENTROPY else "-",
        marker="o" if ours else ".",
        markersize=4.5,
        label=name,
        zorder=3 if ours else 2,
    )


def _legend(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    found: dict[str, Artist] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def _draw_networks(results: Results) -> Figure | None:
    """Bits per weight over the share of zeros, and the same over the entropy."""
    scheme = "int8 2^-n"
    chosen = [s for s in results.networks if s.scheme == scheme and s.trained]
    panels = [(name, list(group)) for name, group in groupby(chosen, lambda s: s.network)]
    if not panels:
        return None
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, sharey="row", sharex=True)
    for column, (name, cases) in enumerate(panels):
        above, below = grid[0][column], grid[1][column]
        x = [float(place) for place in range(len(cases))]
        for codec in dict.fromkeys(codec for sizes in cases for codec in sizes.bits):
            bits = [sizes.per_weight(codec) for sizes in cases]
            _line(above, codec, x, bits)
            ratios = [b / sizes.per_weight(ENTROPY) for b, sizes in zip(bits, cases, strict=True)]
            _line(below, codec, x, ratios)
        above.set_yscale("log", base=2)
        above.yaxis.set_major_formatter("{x:g}")
        above.set_title(name)
        below.set_ylim(0.95, 1.4)
        below.set_xticks(x, [f"{sizes.share:.0%}" if sizes.share else "none" for sizes in cases])
        below.set_xlabel("pruned")
    grid[0][0].set_ylabel("bits per weight")
    grid[1][0].set_ylabel("payload / entropy")
    _legend(figure, grid.flat, 3 * len(panels) - 1)
    figure.suptitle("int8, a power of two for each tensor: code, maps and tables", fontsize=10)
    return figure


def _draw_sources(results: Results) -> Figure | None:
    """Payload over entropy for every synthetic source."""
    panels = [(name, list(group)) for name, group in groupby(results.sources, lambda s: s.network)]
    if not panels:
        return None
    columns = min(3, len(panels))
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    grid = figure.subplots(
        math.ceil(len(panels) / columns), columns, squeeze=False, sharex=True, sharey=True
    )
    for axes, (name, cases) in zip(grid.flat, panels, strict=False):
        x = [sizes.per_weight(ENTROPY) for sizes in cases]
        for codec in (EGRET, "Huffman", "ANS", "DeepCABAC", "Ethos-U", "zstd -1", "zstd -19"):
            y = [sizes.per_weight(codec) / e for sizes, e in zip(cases, x, strict=True)]
            if not all(map(math.isnan, y)):
                _line(axes, codec, x, y)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{entropy:.2g}" for entropy in x])
        axes.minorticks_off()
        axes.set_ylim(0.98, 1.25)
        axes.set_title(name)
    for axes in grid[-1]:
        axes.set_xlabel("entropy, bits per weight")
    for row in grid:
        row[0].set_ylabel("payload / entropy")
    _legend(figure, grid.flat, 7)
    return figure


def _draw_speeds(results: Results) -> Figure | None:
    """Speeds of all codecs on the last dense and on the last sparse source."""
    if not results.speeds:
        return None
    last = {speed.is_sparse: speed.source for speed in results.speeds}
    ends = [last[is_sparse] for is_sparse in sorted(last)]
    groups = [[speed for speed in results.speeds if speed.source == end] for end in ends]
    codecs = list(dict.fromkeys(speed.codec for group in groups for speed in group))
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, attribute in zip(panels, ("decode", "encode"), strict=True):
        for place, (end, group) in enumerate(zip(ends, groups, strict=True)):
            found = {speed.codec: getattr(speed, attribute) for speed in group}
            numbers = [found.get(codec) or math.nan for codec in codecs]
            at = [row + 0.4 * place - 0.2 for row in range(len(codecs))]
            colour = ("#0b7285", "#e08e45")[place]
            bars = axes.barh(at, numbers, 0.36, color=colour, label=end)
            axes.bar_label(
                bars, [_number(n, ",.0f" if n >= 10 else ".2g") for n in numbers], padding=3
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlim(0.3, 2e4)
        axes.set_title(f"{attribute}, millions of weights a second")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(codecs)), codecs)
    panels[0].invert_yaxis()
    _legend(figure, panels[:1], 2)
    return figure


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the charts as SVG.

    Parameters
    ----------
    results : Results
        What was measured; a chart without figures is left out.
    folder : Path
        Where they go: `codec-bits.svg`, `codec-sources.svg`, `codec-speed.svg`.

    Returns
    -------
    list of Path
        The files.
    """
    drawings = {"bits": _draw_networks, "sources": _draw_sources, "speed": _draw_speeds}
    paths = []
    with rc_context(_STYLE):
        for name, drawing in drawings.items():
            figure = drawing(results)
            if figure is None:
                continue
            paths.append(folder / f"codec-{name}.svg")
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
    return paths
