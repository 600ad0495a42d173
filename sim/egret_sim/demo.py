"""The whole chain on scikit-learn's digits: train, pack, generate, simulate, compare, report."""

import dataclasses
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch

from egret.compiler import compile_network
from egret.errors import EgretError
from egret.files import atomic_path, write_bytes, write_text
from egret.ggd import estimate_scale, estimate_shape
from egret.golomb import best_order, golomb_bits
from egret.image import build_image
from egret.network import IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import DEFAULT_STEP_LOG2
from egret.recipes.digits import (
    DEFAULT_SEED,
    PLAIN_TARGET_OPTIONS,
    TARGET_OPTIONS,
    load_digits_split,
    train_digits,
)
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits
from egret.training import (
    EpochRecord,
    Splits,
    TrainedModel,
    TrainingOptions,
    accuracy,
    measure_packed,
)
from egret.value_map import count_values
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.golden import read_header
from egret_sim.report import (
    Accuracy,
    Comparison,
    HardwareRun,
    LayerReport,
    NetworkSize,
    OperatingPoint,
    Provenance,
    ReportData,
    TrainingCurve,
    WeightHistogram,
    csc_cost,
    dense_int8_cost,
    print_summary,
    write_report,
)
from egret_sim.simulation import Simulation, simulate

__all__ = ["run_demo"]

_PLAIN, _EGRET = "plain", "Egret"
_STEPS = 6

_COARSER = (8, 6, 5, 4, 3, 2)
"""n of the steps 2^-n that the plain network is packed in."""
_QAT_STEPS = (4, 3, 2)
"""n of the steps that are trained with, without a rate."""
_TARGETS = (1.0, 0.4, 0.2)
"""Bits per weight that Egret is asked for, besides the recipe's, which is run in hardware."""


def _announce(step: int, what: str) -> None:
    print(f"[{step}/{_STEPS}] {what}", file=sys.stderr, flush=True)


def _series(options: TrainingOptions) -> tuple[str, str]:
    """Return how a training saves bits, and what was set for it."""
    if options.target_bits is not None:
        return _EGRET, f"{options.target_bits:g} bits"
    if options.step_log2 is not None:
        return "QAT", f"2^-{options.step_log2}"
    return _PLAIN, ""


def _report_epoch(record: EpochRecord, options: TrainingOptions) -> None:
    if record.epoch % max(1, options.epochs // 3) == 0:
        label = " ".join(_series(options)).strip()
        print(
            f"  {label:>14}: epoch {record.epoch:3d} of {options.epochs}, validation "
            f"{100 * record.validation_accuracy:.1f} %, {record.bits_per_weight:.2f} code bits per "
            f"weight, ν {record.nu:.2f}",
            file=sys.stderr,
            flush=True,
        )


def _train(seed: int, options: TrainingOptions) -> TrainedModel:
    return train_digits(seed, options=options, progress=_report_epoch)


def _train_all(seed: int) -> list[TrainedModel]:
    """Train the network of the hardware, the plain one, and those of the curve, in this order."""
    every = [
        TARGET_OPTIONS,
        PLAIN_TARGET_OPTIONS,
        *(dataclasses.replace(TARGET_OPTIONS, target_bits=bits) for bits in _TARGETS),
        *(dataclasses.replace(PLAIN_TARGET_OPTIONS, step_log2=step) for step in _QAT_STEPS),
    ]
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(_train, [seed] * len(every), every))


def _operating_points(
    trained: Sequence[TrainedModel], splits: Splits, folder: Path
) -> tuple[OperatingPoint, ...]:
    """Pack every network and look what it is worth, the plain one in steps of several sizes."""
    points = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:

        def add(
            series: str, setting: str, model: TrainedModel, steps: int | Mapping[str, int]
        ) -> None:
            packed = measure_packed(model, splits, Path(scratch) / "w.egret", step_log2=steps)
            total = len(splits.test.x)
            points.append(
                OperatingPoint(
                    series=series,
                    label=setting,
                    payload_bits=packed.payload_bits,
                    correct=round(packed.accuracy["test"] * total),
                    total=total,
                )
            )

        for model in trained:
            series, setting = _series(model.options)
            if model.step_log2 is not None:
                add(series, setting, model, model.step_log2)
            else:
                for step in _COARSER:
                    add("plain, coarser steps", f"2^-{step}", model, step)
    order = ("plain, coarser steps", "QAT", _EGRET)
    return tuple(sorted(points, key=lambda p: (order.index(p.series), -p.payload_bits)))


def _network_size(label: str, network: IntegerNetwork, path: Path) -> NetworkSize:
    counts = [count_values(layer.weight.values)[1] for layer in network.layers]
    return NetworkSize(
        label=label,
        weights=network.weights,
        zeros=sum(int((layer.weight.values == 0).sum()) for layer in network.layers),
        fixed_length_bits=sum(map(fixed_length_bits, counts)),
        exp_golomb_0_bits=sum(golomb_bits(count, 0) for count in counts),
        exp_golomb_bits=sum(best_order(count)[1] for count in counts),
        huffman_bits=sum(map(huffman_bits, counts)),
        entropy_bits=sum(map(entropy_bits, counts)),
        file_bytes=path.stat().st_size,
    )


def _histogram(label: str, network: IntegerNetwork) -> WeightHistogram:
    # Of one layer, the largest: each has a step of its own.
    layer = max(network.layers, key=lambda layer: layer.weight.values.size)
    weights = layer.weight.dequantize()
    distinct, counts = np.unique(layer.weight.values, return_counts=True)
    return WeightHistogram(
        label=f"{label}, {layer.name}",
        step_log2=layer.weight.step_log2,
        values=tuple(map(int, distinct)),
        counts=tuple(map(int, counts)),
        shape=estimate_shape(weights),
        scale=estimate_scale(weights),
    )


def _curve(label: str, trained: TrainedModel) -> TrainingCurve:
    history = trained.history
    return TrainingCurve(
        label=label,
        epochs=tuple(record.epoch for record in history),
        shape=tuple(record.nu for record in history),
        code_bits_per_weight=tuple(record.bits_per_weight for record in history),
        validation_accuracy=tuple(record.validation_accuracy for record in history),
    )


def _layer_reports(
    network: IntegerNetwork, run: Simulation, params: AcceleratorParams
) -> tuple[LayerReport, ...]:
    reports = []
    for number, (layer, trace) in enumerate(zip(network.layers, run.layers, strict=True)):
        weights = layer.weight.values
        rows, columns = weights.shape
        # More than one where the layer is tiled.
        packets = [packet for packet in run.image.matrices if packet.layer == number]
        first = packets[0]
        reports.append(
            LayerReport(
                name=layer.name,
                rows=rows,
                columns=columns,
                non_zeros=int(np.count_nonzero(weights)),
                code=first.code,
                map_entries=0 if first.zigzag else read_header(first.data)["map_entries"],
                code_bits=sum(packet.code_bits for packet in packets),
                packet_bytes=sum(len(packet.data) for packet in packets),
                cycles=trace.cycles,
                mac_cycles=trace.multiplies,
                dense=dense_int8_cost(rows, columns, params.lanes),
                csc=csc_cost(weights, params.lanes),
            )
        )
    return tuple(reports)


def _comparisons(run: Simulation, images: int) -> tuple[Comparison, ...]:
    meaning = {"results": "results (int32)", "activations": "activations (int8)"}
    return tuple(
        Comparison(
            layer=layer.name,
            quantity=meaning[name],
            images=images,
            values=values,
            mismatches=layer.mismatches[name],
        )
        for layer in run.layers
        for name, values in layer.compared.items()
    )


def _progress(done: int, total: int) -> None:
    print(f"  {done} of {total} images", file=sys.stderr, flush=True)


def run_demo(
    folder: str | Path, *, seed: int | None = None, params: AcceleratorParams
) -> ReportData:
    """Run the chain and write everything it makes.

    Parameters
    ----------
    folder : str or Path
        Receives `report.html`, `report.json`, `figures/`, the float weights, the packed files, the
        hardware image and the Verilog.
    seed : int, optional
        Seed of the training; the recipe's when absent.
    params : AcceleratorParams
        The accelerator.

    Returns
    -------
    ReportData
        What the report shows.

    Raises
    ------
    EgretError
        Something could not be written or run, or the simulated hardware differs from the golden
        model; in that case after the report has been written.
    """
    folder = Path(folder)
    seed = DEFAULT_SEED if seed is None else seed
    began = time.monotonic()
    splits = load_digits_split()
    x, y = splits.test

    _announce(1, "training the digits network: plainly, to bits, and with QAT (a minute or two)")
    every = _train_all(seed)
    trained = dict(zip((_PLAIN, _EGRET), (every[1], every[0]), strict=True))

    _announce(2, "quantising and packing")
    networks: dict[str, IntegerNetwork] = {}
    paths = {_PLAIN: folder / "plain.egret", _EGRET: folder / "model.egret"}
    for label, model in trained.items():
        with atomic_path(paths[label].with_suffix(".safetensors")) as temporary:
            safetensors.torch.save_file(model.state(), temporary)
        steps = DEFAULT_STEP_LOG2 if model.step_log2 is None else model.step_log2
        compile_network(model.model, splits.train.x, step_log2=steps).save(paths[label])
        # From here on only what the file holds counts.
        networks[label] = IntegerNetwork.load(paths[label])
    network = networks[_EGRET]
    points = _operating_points(every, splits, folder)

    _announce(3, f"generating the accelerator {params.name}")
    verilog = generate_verilog(params)
    write_text(folder / f"{top_name(params)}.v", verilog)
    image = build_image(network, params)
    write_bytes(folder / f"model-{params.name}.bin", image.data)

    _announce(
        4, f"simulating {len(x)} test images, every layer's results out (builds with Verilator)"
    )
    inputs: npt.NDArray[np.int8] = network.quantize_input(x.numpy())
    checked = simulate(network, params, inputs, emit="all", verilog=verilog, progress=_progress)
    _announce(5, f"simulating {len(x)} test images as in use, for the cycles")
    timed = simulate(network, params, inputs, emit="last", verilog=verilog, progress=_progress)
    if checked.mismatches or timed.mismatches:
        correct = 0
    else:
        correct = int((timed.results.argmax(axis=1) == y.numpy()).sum())

    _announce(6, "writing the report")

    def count(label: str, right: int) -> Accuracy:
        return Accuracy(label=label, correct=right, total=len(x))

    def float_correct(label: str) -> int:
        return round(accuracy(trained[label].model, splits.test) * len(x))

    tools = ("egret", "torch", "numpy", "scikit-learn", "amaranth", "cocotb", "verilator")
    data = ReportData(
        title="Egret: handwritten digits, from training to gates",
        dataset=(
            f"scikit-learn's digits, 8 × 8 pixels: {len(splits.train.x)} training, "
            f"{len(splits.validation.x)} validation and {len(x)} test images; the test images were "
            f"used for no choice. Network 64-256-128-10 with ReLU, {network.weights} weights."
        ),
        accuracies=(
            count("plain, float", float_correct(_PLAIN)),
            # Its weights were rounded for good at the end of the training.
            count("Egret, weights as packed", float_correct(_EGRET)),
            count("Egret, simulated hardware", correct),
        ),
        sizes=tuple(_network_size(label, networks[label], paths[label]) for label in networks),
        operating_points=points,
        histograms=tuple(_histogram(label, networks[label]) for label in networks),
        curves=tuple(_curve(label, trained[label]) for label in trained),
        image_bytes=len(timed.image.data),
        layers=_layer_reports(network, timed, params),
        hardware=HardwareRun(
            params=params,
            images=len(x),
            passes=timed.passes,
            cycles=timed.cycles,
            cycles_meaning=(
                "from a packet's first word waiting at the bus to its matrix being accepted, with "
                "loading, filling and draining; only the last layer's results are sent"
            ),
            mac_cycles=timed.multiplies,
            bus_words=timed.words,
        ),
        comparisons=_comparisons(checked, len(x)),
        provenance=Provenance(
            command=f"egret demo --seed {seed} --preset {params.name}",
            seed=seed,
            versions={
                "Python": platform.python_version(),
                **{tool: version(tool) for tool in tools},
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    page = write_report(data, folder)
    print_summary(data)
    print(f"\nreport: {page} ({time.monotonic() - began:.0f} s)")
    if checked.mismatches or timed.mismatches:
        raise EgretError(
            f"the simulated hardware differs from the golden model in "
            f"{checked.mismatches + timed.mismatches} of {checked.compared + timed.compared} values"
        )
    return data
