"""The report of a run: one page of HTML, the same as JSON, its figures, and a text summary.

`ReportData` holds what was counted; everything else (percentages, bits per weight, cycles per
inference) is derived here, in one place, so that page, JSON and summary cannot disagree.
"""

import base64
import dataclasses
import io
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from egret.errors import FormatError
from egret.files import write_text
from egret.ggd import density
from egret.params import ACTIVATION_BITS, AcceleratorParams

__all__ = [
    "FIGURE_STYLE",
    "Accuracy",
    "Comparison",
    "HardwareRun",
    "LayerReport",
    "NetworkSize",
    "OperatingPoint",
    "Provenance",
    "ReportData",
    "StorageCost",
    "TrainingCurve",
    "WeightHistogram",
    "csc_cost",
    "dense_int8_cost",
    "draw_figures",
    "format_summary",
    "print_summary",
    "write_report",
]

EIE_INDEX_BITS = 4
"""Width of a relative row index in EIE."""


@dataclass(frozen=True, kw_only=True)
class StorageCost:
    """What another way to store a matrix takes.

    Parameters
    ----------
    bits : int
        Everything stored, in bits.
    mac_cycles : int
        Cycles for one pass over the matrix if nothing but the MACs ever limits it.
    """

    bits: int
    mac_cycles: int


def dense_int8_cost(rows: int, columns: int, macs: int) -> StorageCost:
    """Cost of a matrix as plain int8, every weight multiplied.

    Parameters
    ----------
    rows, columns : int
        Shape of the matrix.
    macs : int
        MACs that work on different weights at the same time: the lanes of the accelerator
        compared with. (Vectors of a batch share a weight and add no cycles.)

    Returns
    -------
    StorageCost
        bits = 8 · rows · columns; mac_cycles = ⌈rows · columns / macs⌉, as if the work
        could always be shared out evenly.
    """
    weights = rows * columns
    return StorageCost(bits=8 * weights, mac_cycles=-(-weights // macs))


def csc_cost(
    weights: np.ndarray, macs: int, *, value_bits: int = 8, index_bits: int = EIE_INDEX_BITS
) -> StorageCost:
    """Cost of a matrix in the compressed sparse column form of EIE, only non-zeros multiplied.

    The rows are interleaved over the MACs: MAC k holds rows k, k + macs, …. For each of its
    columns it keeps an entry for every non-zero: the value and the number of zeros
    since the entry before. Where that number does not fit, entries of value 0 are put between,
    each standing for 2^index_bits positions. A pointer to the first entry of every column, and
    one behind the last column, complete the slice.

    Parameters
    ----------
    weights : np.ndarray
        Integers of shape (rows, columns).
    macs : int
        MACs that work on different weights at the same time, as in `dense_int8_cost`.
    value_bits : int
        Bits of a stored value. With 8, values beyond int8 are taken to fit all the same: a
        favour to this format.
    index_bits : int
        Bits of a stored number of zeros; 4 in EIE.

    Returns
    -------
    StorageCost
        bits = entries · (value_bits + index_bits) + slices · (columns + 1) · p, where entries
        counts the zeros put between, slices = min(macs, rows), and p is the fewest bits
        that hold the entries of the fullest slice (EIE uses 16). mac_cycles = entries of the
        fullest slice: one entry a cycle, uneven columns smoothed out by unlimited queues.

    Notes
    -----
    Source: S. Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network",
    ISCA 2016 (arXiv 1602.01528), section III. Its 4-bit shared values are 8-bit ones here, and
    its skipping of zero activations is left out on both sides.
    """
    rows, columns = weights.shape
    slices = min(macs, rows)
    entries = [0] * slices
    for k in range(slices):
        for column in weights[k::slices].T:
            places = np.flatnonzero(column)
            zeros_before = np.diff(places, prepend=-1) - 1
            entries[k] += len(places) + int(np.sum(zeros_before >> index_bits))
    pointer_bits = max(1, max(entries).bit_length())
    return StorageCost(
        bits=sum(entries) * (value_bits + index_bits) + slices * (columns + 1) * pointer_bits,
        mac_cycles=max(entries),
    )


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How many test samples one form of the network classifies correctly.

    Parameters
    ----------
    label : str
        Which form, for example "plain, float".
    correct, total : int
        Samples classified correctly, and all samples.
    """

    label: str
    correct: int
    total: int

    @property
    def percent(self) -> float:
        """Correct samples in percent."""
        return 100 * self.correct / self.total


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Size of a network's weights under several codes.

    Parameters
    ----------
    label : str
        Which network, for example "rate-trained".
    weights : int
        Number of coded weights, biases not counted.
    zeros : int
        Those whose quantised value is 0.
    fixed_length_bits : int
        All weights at one width, just enough to number the values that occur.
    exp_golomb_0_bits : int
        Codewords alone with order k = 0, the paper's choice.
    exp_golomb_bits : int
        Codewords alone with the order chosen for each tensor.
    huffman_bits : int
        Codewords alone of a Huffman code made for each tensor, without its table.
    entropy_bits : float
        Empirical entropy of the quantised values, tensor by tensor.
    file_bytes : int
        Every byte of the packed file: header, maps, codewords, biases.
    """

    label: str
    weights: int
    zeros: int
    fixed_length_bits: int
    exp_golomb_0_bits: int
    exp_golomb_bits: int
    huffman_bits: int
    entropy_bits: float
    file_bytes: int

    def bits_per_weight(self) -> dict[str, float]:
        """Return bits per weight for each code, by its name in the report."""
        return {
            "fixed length": self.fixed_length_bits / self.weights,
            "exp-Golomb k = 0": self.exp_golomb_0_bits / self.weights,
            "exp-Golomb, best k": self.exp_golomb_bits / self.weights,
            "Huffman": self.huffman_bits / self.weights,
            "entropy": self.entropy_bits / self.weights,
            "whole file": 8 * self.file_bytes / self.weights,
        }


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(Accuracy):
    """What one packed network takes, and what it is worth once it is unpacked.

    Parameters
    ----------
    label : str
        What was set to come there, for example "2^-4".
    series : str
        How its bits were saved, for example "plain, coarser steps".
    payload_bits : float
        Codewords, codes and maps of the packed file, in bits per weight.
    """

    series: str
    payload_bits: float


@dataclass(frozen=True, kw_only=True)
class WeightHistogram:
    """Distribution of quantised weights of one step and the generalized Gaussian fitted to it.

    Parameters
    ----------
    label : str
        Which network, or which layer of it.
    step_log2 : int
        n of the step 2^-n: an integer v stands for the weight v · 2^-n.
    values : tuple of int
        Quantised values that occur, ascending.
    counts : tuple of int
        How often each occurs.
    shape : float
        ν of the fitted distribution.
    scale : float
        Its standard deviation σ, in units of the weights; above 0.
    """

    label: str
    step_log2: int
    values: tuple[int, ...]
    counts: tuple[int, ...]
    shape: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """What was recorded while a network was trained; all tuples but empty ones are equally long.

    Parameters
    ----------
    label : str
        Which network.
    epochs : tuple of int
        Epoch numbers, ascending.
    shape : tuple of float
        ν estimated from the weights.
    rate : tuple of float
        R(θ), the mean of (|θ| + ε)^ν. Empty where it was not recorded.
    code_bits_per_weight : tuple of float
        Exp-Golomb (k = 0) bits per weight, had the weights been coded then. Empty
        where it was not recorded.
    validation_accuracy : tuple of float
        Share of validation samples classified correctly, 0 to 1. Empty where not recorded.
    """

    label: str
    epochs: tuple[int, ...]
    shape: tuple[float, ...]
    rate: tuple[float, ...] = ()
    code_bits_per_weight: tuple[float, ...] = ()
    validation_accuracy: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer of the network that the hardware ran.

    Parameters
    ----------
    name : str
        Name of the layer.
    rows, columns : int
        Shape of its matrix.
    non_zeros : int
        Weights that are not 0.
    code : str
        Its code in the hardware image.
    map_entries : int
        Entries of its value map; 0 where values are the zigzag of the index.
    code_bits : int
        Codewords alone.
    packet_bytes : int
        Its whole packet in the hardware image, without tables that stay.
    cycles : int or None
        Clock cycles of this layer, summed over all passes; None where not measured apart.
    mac_cycles : int or None
        Cycles in which a lane's MACs worked, summed over lanes and passes; None likewise.
    dense : StorageCost
        The same matrix as dense int8, on as many MACs.
    csc : StorageCost
        The same matrix as compressed sparse columns, on as many MACs.
    """

    name: str
    rows: int
    columns: int
    non_zeros: int
    code: str
    map_entries: int
    code_bits: int
    packet_bytes: int
    cycles: int | None
    mac_cycles: int | None
    dense: StorageCost
    csc: StorageCost

    @property
    def weights(self) -> int:
        """Weights of the matrix."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class HardwareRun:
    """What the simulated hardware did, over the whole run.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator simulated.
    images : int
        Inputs classified.
    passes : int
        Times the whole network was streamed, each for up to `params.batch` inputs.
    cycles : int
        Clock cycles of all passes.
    cycles_meaning : str
        From when to when cycles are counted, as a clause for the reader.
    mac_cycles : int
        Cycles in which a lane's MACs worked, summed over the lanes: at most lanes · cycles.
    bus_words : int
        Words taken from the weight stream: at most `cycles`.
    """

    params: AcceleratorParams
    images: int
    passes: int
    cycles: int
    cycles_meaning: str
    mac_cycles: int
    bus_words: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of simulated hardware and golden model for one output stream.

    Parameters
    ----------
    layer : str
        Name of the layer.
    quantity : str
        What was compared, for example "results (int32)".
    images : int
        Inputs compared.
    values : int
        Numbers compared.
    mismatches : int
        Numbers that differed.
    """

    layer: str
    quantity: str
    images: int
    values: int
    mismatches: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the report comes from.

    Parameters
    ----------
    command : str
        Command line that makes it again.
    seed : int
        Seed of the data split and of training.
    versions : dict of str to str
        Versions by the name of the tool, Egret's own first.
    created : str or None
        Date and time, or None. Nothing else in the report depends on when it was made.
    """

    command: str
    seed: int
    versions: dict[str, str]
    created: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report is made from; plain data.

    Parameters
    ----------
    title : str
        Heading of the report.
    dataset : str
        The data, its split and the network, in a sentence or two.
    accuracies : tuple of Accuracy
        Accuracy on the test set, from the plain float network (first), which the others are
        compared with, to the simulated hardware (last).
    sizes : tuple of NetworkSize
        The plain network first; last the one that the hardware ran.
    operating_points : tuple of OperatingPoint
        Accuracy over bits, series after series; empty where none were measured.
    histograms : tuple of WeightHistogram
        One or more networks, in the order of `sizes`.
    curves : tuple of TrainingCurve
        Training of the same networks; one or more.
    image_bytes : int
        The whole hardware image, with tables that stay.
    layers : tuple of LayerReport
        Layers in the order in which they run.
    hardware : HardwareRun
        Counts of the simulation.
    comparisons : tuple of Comparison
        One for each output stream compared.
    provenance : Provenance
        Seed, parameters and versions.
    """

    title: str
    dataset: str
    accuracies: tuple[Accuracy, ...]
    sizes: tuple[NetworkSize, ...]
    operating_points: tuple[OperatingPoint, ...]
    histograms: tuple[WeightHistogram, ...]
    curves: tuple[TrainingCurve, ...]
    image_bytes: int
    layers: tuple[LayerReport, ...]
    hardware: HardwareRun
    comparisons: tuple[Comparison, ...]
    provenance: Provenance

    def derived(self) -> dict[str, Any]:
        """Return the figures computed from the counts, by name, as they stand in the JSON."""
        run = self.hardware
        weights = sum(layer.weights for layer in self.layers)
        return {
            "accuracy_percent": {row.label: row.percent for row in self.accuracies},
            "accuracy_change_points": self.accuracies[-1].percent - self.accuracies[0].percent,
            "bits_per_weight": {row.label: row.bits_per_weight() for row in self.sizes},
            "zero_percent": {row.label: 100 * row.zeros / row.weights for row in self.sizes},
            "cycles_per_inference": run.cycles / run.images,
            "cycles_per_pass": run.cycles / run.passes,
            "weights_per_cycle": weights * run.passes / run.cycles,
            "mac_cycles_per_pass": run.mac_cycles / (run.params.lanes * run.passes),
            "mac_busy_percent": 100 * run.mac_cycles / (run.params.lanes * run.cycles),
            "bus_busy_percent": 100 * run.bus_words / run.cycles,
            "streamed_weights": weights,
            "image_bytes": self.image_bytes,
            "image_code_bits": sum(layer.code_bits for layer in self.layers),
            "dense_int8": _total([layer.dense for layer in self.layers]),
            "csc": _total([layer.csc for layer in self.layers]),
            "values_compared": sum(row.values for row in self.comparisons),
            "mismatches": sum(row.mismatches for row in self.comparisons),
        }

    def to_json(self) -> str:
        """Return data and derived figures as JSON text; the same data give the same text."""
        document = {"data": dataclasses.asdict(self), "derived": self.derived()}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ReportData":
        """Read back what `to_json` wrote.

        Raises
        ------
        FormatError
            No JSON, or a field missing, unknown or of another type; the message names it.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise FormatError(f"report: found no JSON: {error}") from error
        if not isinstance(document, dict) or "data" not in document:
            raise FormatError("report: found no field 'data', expected a report's JSON")
        report: ReportData = _restore(cls, document["data"], "data")
        return report


def _total(costs: Sequence[StorageCost]) -> dict[str, int]:
    return {
        "bits": sum(cost.bits for cost in costs),
        "mac_cycles": sum(cost.mac_cycles for cost in costs),
    }


def _restore(kind: Any, value: Any, where: str) -> Any:
    """Make the dataclass, tuple, mapping or plain value of type `kind` from parsed JSON."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            field = min(set(value) ^ set(hints))
            raise FormatError(f"report: field {where}.{field} is missing or unknown")
        restored = {name: _restore(hints[name], value[name], f"{where}.{name}") for name in hints}
        return typing.cast(Callable[..., Any], kind)(**restored)
    if origin is tuple and isinstance(value, list):
        return tuple(_restore(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _restore(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    allowed = arguments if origin is types.UnionType else (kind,)
    if type(value) in allowed or (type(value) is int and float in allowed):
        return value
    raise FormatError(f"report: field {where}: found {value!r}, expected {kind}")


# --- figures ---------------------------------------------------------------------------------

_COLOURS = ("#8c96a8", "#0b7285", "#c2571a", "#6741a5")
_INK = "#1f2933"
FIGURE_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    # Fixed names for the parts of an SVG: the same data give the same bytes.
    "svg.hashsalt": "egret",
}
"""Matplotlib's settings for every figure of the project."""


def _bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    form: str,
    colours: Sequence[str] = _COLOURS,
) -> None:
    """Draw groups of horizontal bars from the top down, each with its number."""
    height = 0.8 / len(series)
    for place, (label, numbers) in enumerate(series.items()):
        at = np.arange(len(names)) + (place - (len(series) - 1) / 2) * height
        bars = axes.barh(at, numbers, 0.9 * height, label=label, color=colours[place])
        axes.bar_label(bars, [format(number, form) for number in numbers], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.14 * max(max(numbers) for numbers in series.values()))


def _draw_sizes(data: ReportData) -> Figure:
    figure = Figure(figsize=(7.6, 3.7), layout="constrained")
    axes = figure.add_subplot()
    names = list(data.sizes[0].bits_per_weight())
    _bars(
        axes,
        names,
        {row.label: list(row.bits_per_weight().values()) for row in data.sizes},
        ".2f",
    )
    axes.set_xlabel("bits per weight")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(data.sizes))
    return figure


def _bin_shares(values: np.ndarray, shape: float, scale: float, step: float) -> np.ndarray:
    """Return the fitted distribution's share of each quantised value's interval."""
    parts = (np.arange(256) + 0.5) / 256
    shares = np.empty(len(values))
    for i, value in enumerate(values):
        if value == 0:
            # For ν < 1 the density has a cusp at 0: with x = t^8 the samples crowd there.
            x, widths = 0.5 * step * parts**8, 0.5 * step * 8 * parts**7 / 256
            shares[i] = 2 * np.sum(density(x, shape, scale) * widths)
        else:
            shares[i] = np.mean(density((value - 0.5 + parts) * step, shape, scale)) * step
    return shares


def _draw_histograms(data: ReportData) -> Figure:
    count = len(data.histograms)
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    least = min(1 / sum(row.counts) for row in data.histograms)
    for place, (axes, row) in enumerate(zip(panels, data.histograms, strict=True)):
        step = 2.0**-row.step_log2
        every = np.arange(min(row.values), max(row.values) + 1)
        share = np.zeros(len(every))
        share[np.array(row.values) - every[0]] = np.array(row.counts) / sum(row.counts)
        weights = axes.stairs(
            share,
            np.append(every - 0.5, every[-1] + 0.5) * step,
            fill=True,
            baseline=least / 2,
            color=_COLOURS[place],
        )
        (fit,) = axes.plot(
            every * step,
            _bin_shares(every, row.shape, row.scale, step),
            color=_COLOURS[2],
            linewidth=1.3,
        )
        axes.set_yscale("log")
        axes.set_ylim(least / 2, 1.5)
        axes.set_title(f"{row.label}: ν = {row.shape:.2f}, σ = {row.scale:.3f}")
        axes.set_xlabel(f"weight (steps of 2$^{{-{row.step_log2}}}$)")
        axes.locator_params(axis="x", nbins=6)
        if place == 0:
            figure.legend(
                [weights, fit],
                ["quantised weights", "fitted generalized Gaussian"],
                loc="outside upper center",
                ncols=2,
            )
    panels[0].set_ylabel("share of the weights")
    return figure


def _draw_training(data: ReportData) -> Figure:
    panels: list[tuple[str, Callable[[TrainingCurve], Sequence[float]]]] = [
        ("shape ν of the weights", lambda curve: curve.shape),
        ("rate R(θ)", lambda curve: curve.rate),
        ("code bits per weight (k = 0)", lambda curve: curve.code_bits_per_weight),
        (
            "validation accuracy, %",
            lambda curve: [100 * share for share in curve.validation_accuracy],
        ),
    ]
    panels = [panel for panel in panels if any(panel[1](curve) for curve in data.curves)]
    lines = -(-len(panels) // 2)
    columns = min(2, len(panels))
    figure = Figure(figsize=(7.6, 0.4 + 2.4 * lines), layout=ConstrainedLayoutEngine(h_pad=0.1))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, pick) in zip(grid, panels, strict=False):
        for place, curve in enumerate(data.curves):
            numbers = pick(curve)
            if numbers:
                axes.plot(curve.epochs, numbers, color=_COLOURS[place], label=curve.label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw_storage(data: ReportData) -> Figure:
    derived = data.derived()
    weights = derived["streamed_weights"]
    figure = Figure(figsize=(7.6, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    bits = {
        "dense int8": derived["dense_int8"]["bits"] / weights,
        "CSC (EIE)": derived["csc"]["bits"] / weights,
        "Egret image, whole": 8 * derived["image_bytes"] / weights,
        "Egret codewords": derived["image_code_bits"] / weights,
    }
    cycles = {
        "dense int8, MACs only": derived["dense_int8"]["mac_cycles"],
        "CSC (EIE), MACs only": derived["csc"]["mac_cycles"],
        "Egret, MACs only": derived["mac_cycles_per_pass"],
        "Egret, every cycle": derived["cycles_per_pass"],
    }
    for axes, title, numbers, form in (
        (left, "bits per weight", bits, ".2f"),
        (right, "cycles per pass", cycles, ",.0f"),
    ):
        _bars(axes, list(numbers), {title: list(numbers.values())}, form, _COLOURS[1:])
        for bar, name in zip(axes.patches, numbers, strict=True):
            bar.set_facecolor(_COLOURS[1 if name.startswith("Egret") else 0])
        axes.set_title(title)
        axes.set_xlim(0, 1.25 * max(numbers.values()))
        axes.locator_params(axis="x", nbins=4)
    right.xaxis.set_major_formatter("{x:,.0f}")
    return figure


_SHOWN_POINTS = 4.0
"""Percentage points below the best accuracy that the curve shows; the table has the rest."""
_SERIES_COLOURS = tuple(_COLOURS[place] for place in (0, 2, 1, 3))


def _draw_operating_points(data: ReportData) -> Figure:
    points = data.operating_points
    figure = Figure(figsize=(7.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    best = max(point.percent for point in points)
    floor = max(0.0, best - _SHOWN_POINTS)
    for place, series in enumerate(dict.fromkeys(point.series for point in points)):
        own = sorted(
            (point for point in points if point.series == series and point.percent >= floor),
            key=lambda point: point.payload_bits,
        )
        colour = _SERIES_COLOURS[place % len(_SERIES_COLOURS)]
        axes.plot(
            [point.payload_bits for point in own],
            [point.percent for point in own],
            color=colour,
            marker="osD^"[place % 4],
            markersize=5,
            label=series,
        )
        for point in own:
            axes.annotate(
                point.label,
                (point.payload_bits, point.percent),
                xytext=(0, 6 if place % 2 else -12),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=colour,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(floor - 0.5, min(100.5, best + 0.7))
    axes.set_xlabel("bits per weight in the packed file: codewords, codes and maps")
    axes.set_ylabel("test accuracy, %")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


_FIGURES: dict[str, Callable[[ReportData], Figure]] = {
    "bits_per_weight": _draw_sizes,
    "accuracy_over_bits": _draw_operating_points,
    "weights": _draw_histograms,
    "training": _draw_training,
    "storage": _draw_storage,
}


def draw_figures(data: ReportData) -> dict[str, str]:
    """Draw the report's figures.

    Parameters
    ----------
    data : ReportData
        What to draw.

    Returns
    -------
    dict of str to str
        SVG text by the figure's name: `bits_per_weight`, `accuracy_over_bits` (where operating
        points were measured), `weights`, `training`, `storage`. The same data give the same text.
    """
    drawn = {}
    with rc_context(FIGURE_STYLE):
        for name, draw in _FIGURES.items():
            if draw is _draw_operating_points and not data.operating_points:
                continue
            buffer = io.StringIO()
            draw(data).savefig(buffer, format="svg", metadata={"Date": None})
            drawn[name] = buffer.getvalue()
    return drawn


# --- page and summary ------------------------------------------------------------------------


def _data_address(svg: str) -> str:
    # As an image of its own: names inside one figure cannot clash with those of another.
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def write_report(data: ReportData, folder: str | Path) -> Path:
    """Write `report.html`, `report.json` and `figures/*.svg`.

    Parameters
    ----------
    data : ReportData
        What the report says.
    folder : str or Path
        Where to write; created when missing.

    Returns
    -------
    Path
        The page. It holds its figures and needs no other file.

    Raises
    ------
    EgretError
        The folder cannot be written to.
    """
    folder = Path(folder)
    figures = draw_figures(data)
    environment = Environment(
        loader=PackageLoader("egret_sim", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = _whole
    environment.filters["signed"] = _signed
    page = environment.get_template("report.html").render(
        data=data,
        derived=data.derived(),
        figures={name: _data_address(svg) for name, svg in figures.items()},
        params=dataclasses.asdict(data.hardware.params),
        activation_bits=ACTIVATION_BITS,
    )
    for name, svg in figures.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    write_text(folder / "report.json", data.to_json())
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table: the first column to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _format_points(data: ReportData) -> list[str]:
    if not data.operating_points:
        return []
    return [
        "Accuracy over bits (codewords, codes and maps of the packed file)",
        *_table(
            ["", "setting", "bits/weight", "percent"],
            [
                [point.series, point.label, f"{point.payload_bits:.2f}", f"{point.percent:.2f}"]
                for point in data.operating_points
            ],
        ),
        "",
    ]


def format_summary(data: ReportData) -> str:
    """Return the report's main figures as text for a terminal, with a newline at its end."""
    derived = data.derived()
    run = data.hardware
    weights = derived["streamed_weights"]
    names = list(data.sizes[0].bits_per_weight())
    lines = [
        data.title,
        "",
        f"Accuracy on the test set ({data.accuracies[0].total:,} samples)",
        *_table(
            ["", "correct", "percent"],
            [[row.label, f"{row.correct:,}", f"{row.percent:.2f}"] for row in data.accuracies],
        ),
        "",
        "Bits per weight",
        *_table(
            ["", *(row.label for row in data.sizes)],
            [
                [name, *(f"{row.bits_per_weight()[name]:.2f}" for row in data.sizes)]
                for name in names
            ]
            + [["file, bytes", *(f"{row.file_bytes:,}" for row in data.sizes)]],
        ),
        "",
        *_format_points(data),
        f"Simulated hardware ({run.params.name}: {run.params.lanes} lanes, "
        f"{run.params.parser_bits} bits a cycle each, batch {run.params.batch})",
        *_table(
            ["", ""],
            [
                ["cycles per inference", f"{derived['cycles_per_inference']:,.0f}"],
                ["weights per cycle", f"{derived['weights_per_cycle']:.2f}"],
                ["MACs worked", f"{derived['mac_busy_percent']:.1f} %"],
                ["bus busy", f"{derived['bus_busy_percent']:.1f} %"],
            ],
        )[1:],
        "",
        "The same layers stored otherwise, on as many MACs",
        *_table(
            ["", "bits/weight", "cycles/pass"],
            [
                [
                    name,
                    f"{derived[key]['bits'] / weights:.2f}",
                    f"{derived[key]['mac_cycles']:,}",
                ]
                for name, key in (
                    ("dense int8 (MAC cycles)", "dense_int8"),
                    ("CSC (MAC cycles)", "csc"),
                )
            ]
            + [
                [
                    "Egret image (MAC cycles)",
                    f"{8 * derived['image_bytes'] / weights:.2f}",
                    f"{derived['mac_cycles_per_pass']:,.0f}",
                ],
                [
                    "Egret image (all cycles)",
                    f"{8 * derived['image_bytes'] / weights:.2f}",
                    f"{derived['cycles_per_pass']:,.0f}",
                ],
            ],
        ),
        "",
        f"Hardware against golden model: {derived['values_compared']:,} values compared, "
        f"{derived['mismatches']:,} differ",
    ]
    return "\n".join(lines) + "\n"


def print_summary(data: ReportData, file: TextIO | None = None) -> None:
    """Print `format_summary` to `file`, standard output when absent."""
    (file or sys.stdout).write(format_summary(data))
