"""What the experiments found: as tables, in a page, and as charts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.codec_report import Check, format_table
from benchmarks.experiments.measure import ORDERS
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.results import Result
from benchmarks.experiments.studies import OURS, REACH, SHARES, STEPS, STUDIES
from benchmarks.experiments.tasks import TASKS
from benchmarks.page import markdown_table, replace_parts
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from egret.errors import EgretError
from egret.files import atomic_path
from egret.ggd import density
from egret_sim.report import FIGURE_STYLE

__all__ = ["draw", "format_study", "table", "write_page"]

Row = list[str]
Point = Mapping[str, Any]


# --- tables ------------------------------------------------------------------------------------


def _spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and standard deviation over the seeds."""
    if len(values) < 2:
        return format(fmean(values), form)
    return f"{fmean(values):{form}} ± {stdev(values):{form}}"


def _of(point: Point, name: str) -> list[float]:
    return [measured[name] for measured in point["measured"]]


def _mean(point: Point, name: str) -> str:
    return f"{fmean(_of(point, name)):.2f}"


def _golomb(point: Point, order: int) -> list[float]:
    return [measured["golomb"][order] for measured in point["measured"]]


def _differences(point: Point, plain: Point) -> list[float]:
    """Return what is added to the plain network's test quality, seed by seed."""
    theirs = {measured["seed"]: measured["test"] for measured in plain["measured"]}
    return [measured["test"] - theirs[measured["seed"]] for measured in point["measured"]]


def _quality_form(result: Result) -> str:
    return ".3f" if TASKS[result.task].predicts_text else ".2f"


def _test(result: Result, point: Point) -> str:
    return f"{_spread(_of(point, 'test'), _quality_form(result))} {TASKS[result.task].unit}"


def _difference(result: Result, point: Point, plain: Point) -> str:
    if point is plain:
        return ""
    return _spread(_differences(point, plain), "+" + _quality_form(result)).replace("± +", "± ")


def _setting(point: Point) -> str:
    """Return the value of a point's knob."""
    method = METHODS[point["method"]]
    if method.knob == "step":
        return f"2^-{point['step_log2']}"
    value = point["value"]
    return {
        "λ": f"λ = {value:g}",
        "pruned": f"{value:.0%}",
        "target": f"{value:g} bits",
    }[method.knob]


def _title(row: Mapping[str, Any]) -> str:
    return METHODS[row["method"]].title


def _tuning(result: Result) -> Iterable[Row]:
    for row in result.figures["rows"]:
        yield [
            _title(row),
            str(row["epochs"]),
            f"{row['learning_rate']:g}",
            f"{row['validation']:{_quality_form(result)}} {TASKS[result.task].unit}",
            f"{row['payload']:.2f}",
            "chosen" if row["chosen"] else "",
        ]


def _codes(result: Result) -> Iterable[Row]:
    points = result.figures["points"]
    for point in points:
        yield [
            _title(point),
            "" if point["value"] is None else f"{point['value']:g}",
            _mean(point, "fixed_length"),
            f"{fmean(_golomb(point, 0)):.2f}",
            _mean(point, "huffman"),
            _mean(point, "entropy"),
            _mean(point, "payload"),
            _test(result, point),
            _difference(result, point, points[0]),
        ]


def _orders(result: Result) -> Iterable[Row]:
    for point in result.figures["points"]:
        yield [_title(point), *(_spread(_golomb(point, order)) for order in ORDERS)]


def _over(values: Sequence[float], name: str) -> Callable[[Result], Iterable[Row]]:
    """Return what makes a row for each method, with a column for each value of a field."""

    def rows(result: Result) -> Iterable[Row]:
        for method, points in _by_method(result).items():
            found = {point[name]: _number(result, point) for point in points}
            yield [METHODS[method].title, *(found.get(value, "") for value in values)]

    return rows


def _number(result: Result, point: Point) -> str:
    return _spread(_of(point, "test"), _quality_form(result))


def _by_method(result: Result) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in result.figures["points"]:
        groups.setdefault(point["method"], []).append(point)
    return groups


def _fits(result: Result) -> Iterable[Row]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in result.figures["rows"]:
        groups.setdefault(row["method"], []).append(row)
    for rows in groups.values():
        yield [
            _title(rows[0]),
            *(_spread([row[name] for row in rows]) for name in ("shape",)),
            *(_spread([row[name] for row in rows], ".4f") for name in ("scale",)),
            *(
                _spread([row[name] for row in rows], ".3f")
                for name in ("excess", "gaussian_excess")
            ),
        ]


def _course(result: Result) -> Iterable[Row]:
    for row in result.figures["rows"]:
        if row["seed"] != result.seeds[0]:
            continue
        history = row["history"]
        picked = {round(n * (len(history) - 1) / 4) for n in range(5)}
        for state in (history[place] for place in sorted(picked)):
            yield [
                _title(row),
                str(state["epoch"]),
                f"{state['loss']:.4f}",
                f"{state['lam'] * state['rate']:.4f}",
                f"{state['nu']:.2f}",
                f"{state['bits']:.2f}",
            ]


def _lambdas(result: Result) -> Iterable[Row]:
    points = result.figures["points"]
    for point in points:
        yield [
            "0" if point["value"] is None else f"{point['value']:g}",
            _mean(point, "fixed_length"),
            _spread(_golomb(point, 0)),
            _mean(point, "huffman"),
            f"{fmean(_of(point, 'zeros')):.1f} %",
            _test(result, point),
            _difference(result, point, points[0]),
        ]


def _histograms(result: Result) -> Iterable[Row]:
    for row in result.figures["rows"]:
        shares = row["histogram"]
        near = [sum(shares[REACH - n : REACH + n + 1]) for n in (0, 1, 4, 16)]
        value = "0" if row["value"] is None else f"{row['value']:g}"
        yield [value, *(f"{share:.1%}" for share in near)]


def _sized(result: Result) -> Iterable[Row]:
    points = result.figures["points"]
    for point in points:
        yield [
            _title(point),
            _setting(point),
            _spread(_of(point, "payload"), ".3f"),
            f"{fmean(_of(point, 'file_bytes')):,.0f}",
            f"{fmean(_of(point, 'zeros')):.1f} %",
            f"{fmean(_golomb(point, 0)):.2f}",
            _test(result, point),
            _difference(result, point, points[0]),
        ]


def target_checks(result: Result) -> list[Check]:
    """Return the limits of a task, with what was found."""
    figures = result.figures
    plain, ours = figures["points"]
    worse = fmean(
        TASKS[result.task].shortfall(theirs["test"] + difference, theirs["test"])
        for theirs, difference in zip(plain["measured"], _differences(ours, plain), strict=True)
    )
    checks = []
    if figures["most_bits"] is not None:
        checks.append(Check("payload bits", fmean(_of(ours, "payload")), figures["most_bits"]))
        checks.append(Check("worse by", round(worse, 6), figures["tolerance"]))
    if figures["most_golomb_bits"] is not None:
        found = fmean(_golomb(ours, 0))
        checks.append(Check("EG-0 bits", found, figures["most_golomb_bits"]))
    return checks


_SETTINGS = ("method", "setting")
_TABLES: dict[str, tuple[tuple[str, ...], Callable[[Result], Iterable[Row]]]] = {
    "tuning": (("method", "epochs", "step size", "validation", "payload", ""), _tuning),
    "codes": (
        ("training", "λ", "FL", "EG-0", "Huffman", "entropy", "payload", "test", "difference"),
        _codes,
    ),
    "orders": (("training", *(f"k = {order}" for order in ORDERS)), _orders),
    "rates": (
        (*_SETTINGS, "payload", "file bytes", "zeros", "EG-0", "test", "difference"),
        _sized,
    ),
    "steps": (("training", *(f"2^-{step}" for step in STEPS)), _over(STEPS, "step_log2")),
    "pruning": (("training", *(f"{share:.0%}" for share in SHARES)), _over(SHARES, "pruned")),
    "fits": (("training", "ν", "σ", "GG loses", "Gaussian loses"), _fits),
    "course": (("training", "epoch", "D", "λR", "ν", "entropy"), _course),
    "lambdas": (("λ", "FL", "EG-0", "Huffman", "zeros", "test", "difference"), _lambdas),
    "histograms": (("λ", "0", "to ±1 step", "to ±4", "to ±16"), _histograms),
    "curves": (
        (*_SETTINGS, "payload", "file bytes", "zeros", "EG-0", "test", "difference"),
        _sized,
    ),
    "targets": (
        (*_SETTINGS, "payload", "file bytes", "zeros", "EG-0", "test", "difference"),
        _sized,
    ),
}


def table(name: str, results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """Return the header and the rows of an experiment's table.

    Parameters
    ----------
    name : str
        The experiment.
    results : sequence of Result
        What it found on each task.
    """
    header, rows = _TABLES[name]
    return (
        ["task", *header],
        [[TASKS[result.task].title, *row] for result in results for row in rows(result)],
    )


def _verdicts(name: str, results: Sequence[Result]) -> list[str]:
    if name != "targets":
        return []
    return [
        f"{TASKS[result.task].title}: "
        + "; ".join(f"{check.limit} {check.verdict}" for check in target_checks(result))
        for result in results
        if target_checks(result)
    ]


def _provenance(result: Result) -> str:
    samples = result.data["samples"]
    epochs = sorted({settings["epochs"] for settings in result.settings})
    return (
        f"{TASKS[result.task].title}: {result.network['parameters']:,} parameters, "
        f"{result.network['weights']:,} weights; {samples['train']:,} training, "
        f"{samples['validation']:,} validation and {samples['test']:,} test samples; seeds "
        f"{', '.join(map(str, result.seeds))}; epochs {', '.join(map(str, epochs))}; torch "
        f"{result.versions['torch']}"
    )


def format_study(name: str, results: Sequence[Result]) -> str:
    """Return an experiment's table as text, with what it depends on."""
    study = STUDIES[name]
    title = f"{study.title} ({study.paper})" if study.paper else study.title
    lines = [title, format_table(*table(name, results)), *_verdicts(name, results)]
    lines += map(_provenance, results)
    if any(result.quick for result in results):
        lines.append("A QUICK RUN: it shows that the programs work, and nothing else.")
    return "\n".join(lines) + "\n"


# --- the page ----------------------------------------------------------------------------------


def write_page(results: Mapping[str, Sequence[Result]], path: Path) -> list[str]:
    """Replace the tables of a page.

    What lies between `<!-- EXPERIMENT -->` and `<!-- end -->` is replaced, for every experiment
    that was run.

    Parameters
    ----------
    results : mapping of str to sequence of Result
        By experiment.
    path : Path
        A Markdown file.

    Returns
    -------
    list of str
        The experiments whose tables were replaced.

    Raises
    ------
    EgretError
        The page cannot be read, or a result comes from a quick run.
    """
    page = {}
    for name, found in results.items():
        if any(result.quick for result in found):
            raise EgretError(
                f"{path}: found results of a quick run for {name}, expected those of a whole one"
            )
        parts = [markdown_table(*table(name, found))]
        if name in _CHARTS:
            parts.append(f"![{STUDIES[name].title}](images/experiments-{name}.svg)")
        verdicts = _verdicts(name, found)
        if verdicts:
            parts.append("\n".join(f"- {verdict}." for verdict in verdicts))
        parts.append("\n".join(f"- {_provenance(result)}." for result in found))
        page[name] = parts
    return replace_parts(path, page)


# --- charts ------------------------------------------------------------------------------------

_STYLE: Any = FIGURE_STYLE | {"font.size": 8.5, "axes.titlesize": 9, "svg.fonttype": "none"}
_COLOURS = {
    "plain": "#8c96a8",
    "coarse": "#8c96a8",
    "prune": "#c2571a",
    "l2": "#6741a5",
    "l1": "#c9a227",
    "l0.5": "#2b8a3e",
    OURS: "#5b7fb5",
    "qat": "#c92a6b",
    "proximal": "#6741a5",
    "egret": "#0b7285",
}
_LEAST_WIDTH = 7.2
_SCALES = ("#1f2933", "#0b7285", "#2b8a3e", "#c9a227", "#c2571a", "#c92a6b")


def _panels(results: Sequence[Result], rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a column for each task, wide enough for the legend below."""
    width = max(_LEAST_WIDTH, 3.2 * len(results) + 0.8)
    figure = Figure(figsize=(width, 2.7 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, len(results), squeeze=False)
    for axes, result in zip(grid[0], results, strict=True):
        axes.set_title(TASKS[result.task].title)
    return figure, [list(row) for row in grid]


def _unit(result: Result) -> str:
    return "test, nats" if TASKS[result.task].predicts_text else "test accuracy, %"


def _curve(
    axes: Axes,
    method: str,
    x: Sequence[float],
    points: Sequence[Point],
    shown: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    values = [_of(point, "test") for point in points]
    # A bar of a point that is not shown would cross the whole chart.
    deviations = [
        stdev(each) if len(each) > 1 and shown[0] <= fmean(each) <= shown[1] else 0.0
        for each in values
    ]
    axes.errorbar(
        x,
        list(map(fmean, values)),
        deviations,
        color=_COLOURS[method],
        marker="o" if method == "egret" else ".",
        markersize=4.5,
        linewidth=2.0 if method == "egret" else 1.2,
        elinewidth=0.7,
        capsize=1.5,
        label=METHODS[method].title,
    )


def _legend(figure: Figure, grid: Sequence[Sequence[Axes]], columns: int) -> None:
    found: dict[str, Any] = {}
    for axes in (axes for row in grid for axes in row):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=min(columns, len(found)),
    )


def _draw_over(x: Callable[[Point], float], label: str) -> Callable[..., Figure]:
    def drawing(results: Sequence[Result]) -> Figure:
        figure, grid = _panels(results)
        for axes, result in zip(grid[0], results, strict=True):
            for method, points in _by_method(result).items():
                _curve(axes, method, [x(point) for point in points], points)
            axes.set_xlabel(label)
            axes.set_ylabel(_unit(result))
        _legend(figure, grid, 2)
        return figure

    return drawing


def _draw_fits(results: Sequence[Result]) -> Figure:
    figure, grid = _panels(results, 2)
    reach = [n / 2**8 for n in range(-REACH + 1, REACH)]
    for column, result in enumerate(results):
        rows = {row["method"]: row for row in reversed(result.figures["rows"])}
        for axes, method in zip((grid[0][column], grid[1][column]), ("plain", OURS), strict=True):
            row = rows[method]
            axes.bar(reach, row["histogram"][1:-1], 1 / 2**8, color="#cfd8e3", label="weights")
            for shape, colour, label in (
                (row["shape"], "#0b7285", "generalized Gaussian"),
                (2.0, "#c2571a", "Gaussian"),
            ):
                heights = density(reach, shape, row["scale"]) / 2**8
                axes.plot(reach, heights, color=colour, linewidth=1.4, label=label)
            # The end bars, which hold everything beyond, would dwarf the rest.
            axes.set_yscale("log")
            axes.set_ylim(1e-5, 1)
            axes.set_xlabel(f"weight; {METHODS[method].title}, ν = {row['shape']:.2f}")
            axes.set_ylabel("share in steps of 2^-8")
    _legend(figure, grid, 3)
    return figure


def _draw_course(results: Sequence[Result]) -> Figure:
    figure, grid = _panels(results, 2)
    for column, result in enumerate(results):
        above, below = grid[0][column], grid[1][column]
        first = result.seeds[0]
        for row in (row for row in result.figures["rows"] if row["seed"] == first):
            history, colour = row["history"], _COLOURS[row["method"]]
            epochs = [state["epoch"] for state in history]
            above.plot(epochs, [s["loss"] for s in history], color=colour, label=_title(row))
            if row["method"] == OURS:
                rates = [state["lam"] * state["rate"] for state in history]
                above.plot(epochs, rates, color=colour, linestyle="--", label="its λR")
            below.plot(epochs, [state["nu"] for state in history], color=colour)
        above.set_yscale("log")
        above.set_ylabel("cross-entropy D, nats")
        below.set_ylabel("shape ν")
        below.set_xlabel("epoch")
    _legend(figure, grid, 3)
    return figure


def _draw_lambdas(results: Sequence[Result]) -> Figure:
    figure, grid = _panels(results, 2)
    for column, result in enumerate(results):
        points = [point for point in result.figures["points"] if point["value"] is not None]
        values = [point["value"] for point in points]
        above, below = grid[0][column], grid[1][column]
        lengths = {
            "fixed length": [fmean(_of(point, "fixed_length")) for point in points],
            "exp-Golomb, k = 0": [fmean(_golomb(point, 0)) for point in points],
            "Huffman": [fmean(_of(point, "huffman")) for point in points],
        }
        for (label, bits), colour in zip(lengths.items(), _SCALES, strict=False):
            above.plot(values, bits, color=colour, marker=".", label=label)
        _curve(below, OURS, values, points)
        for axes in (above, below):
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        above.set_ylabel("code bits per weight")
        below.set_ylabel(_unit(result))
        below.set_xlabel("λ")
    _legend(figure, grid, 4)
    return figure


def _draw_histograms(results: Sequence[Result]) -> Figure:
    figure, grid = _panels(results)
    steps = list(range(-REACH + 1, REACH))
    for axes, result in zip(grid[0], results, strict=True):
        for row, colour in zip(result.figures["rows"], _SCALES, strict=False):
            label = f"λ = {row['value'] or 0:g}"
            axes.plot(
                steps, row["histogram"][1:-1], color=colour, drawstyle="steps-mid", label=label
            )
        axes.set_yscale("log")
        axes.set_xlabel("weight, in steps of 2^-8")
        axes.set_ylabel("share of the weights")
        axes.legend(fontsize=7)
    return figure


def _draw_curves(results: Sequence[Result]) -> Figure:
    figure, grid = _panels(results)
    for axes, result in zip(grid[0], results, strict=True):
        groups = _by_method(result)
        plain = fmean(_of(groups["plain"][0], "test"))
        # Methods that have broken down would flatten what matters.
        if TASKS[result.task].predicts_text:
            low, high = plain - 0.05, plain + 0.5
        else:
            low, high = plain - 6, min(100.5, plain + 2)
        for method, points in groups.items():
            if method != "plain":
                sizes = [fmean(_of(point, "payload")) for point in points]
                _curve(axes, method, sizes, points, (low, high))
        axes.axhline(plain, color="#1f2933", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low, high)
        every = [point for points in groups.values() for point in points]
        shown = [point for point in every if low <= fmean(_of(point, "test")) <= high]
        sizes = [fmean(_of(point, "payload")) for point in shown]
        axes.set_xlim(min(sizes) / 1.2, 1.2 * max(sizes))
        axes.set_xlabel("payload, bits per weight")
        axes.set_ylabel(_unit(result))
    _legend(figure, grid, 3)
    return figure


_CHARTS: dict[str, Callable[[Sequence[Result]], Figure]] = {
    "steps": _draw_over(lambda point: -point["step_log2"], "log2 of the step"),
    "pruning": _draw_over(lambda point: 100 * point["pruned"], "pruned, %"),
    "fits": _draw_fits,
    "course": _draw_course,
    "lambdas": _draw_lambdas,
    "histograms": _draw_histograms,
    "curves": _draw_curves,
}


def draw(results: Mapping[str, Sequence[Result]], folder: Path) -> list[Path]:
    """Draw the charts as SVG, `experiments-NAME.svg`.

    Parameters
    ----------
    results : mapping of str to sequence of Result
        By experiment.
    folder : Path
        Where they go.

    Returns
    -------
    list of Path
        The files.
    """
    paths = []
    with rc_context(_STYLE):
        for name in (name for name in results if name in _CHARTS):
            figure = _CHARTS[name](results[name])
            paths.append(folder / f"experiments-{name}.svg")
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
    return paths
