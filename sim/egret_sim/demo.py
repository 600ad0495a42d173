"""The whole chain on scikit-learn's digits: train, pack, generate, simulate, compare, report."""

import multiprocessing
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from egret.compiler import compile_network
from egret.errors import EgretError
from egret.files import atomic_path, write_bytes, write_text
from egret.ggd import estimate_scale, estimate_shape
from egret.golomb import best_order, golomb_bits
from egret.image import build_image
from egret.network import IntegerNetwork
from egret.params import AcceleratorParams
from egret.recipes.digits import DEFAULT_SEED, digits_options, load_digits_split, train_digits
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits
from egret.training import EpochRecord, TrainedModel, TrainingOptions, accuracy
from egret.value_map import count_values
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.golden import read_header
from egret_sim.report import (
    Accuracy,
    Comparison,
    HardwareRun,
    LayerReport,
    NetworkSize,
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

_PLAIN, _RATE = "plain", "rate-trained"
_STEPS = 6


def _announce(step: int, what: str) -> None:
    print(f"[{step}/{_STEPS}] {what}", file=sys.stderr, flush=True)


def _report_epoch(record: EpochRecord, options: TrainingOptions) -> None:
    epochs = options.epochs + options.final_epochs
    if record.epoch % max(1, epochs // 5) == 0:
        label = _RATE if options.lam else _PLAIN
        print(
            f"  {label:>12}: epoch {record.epoch:3d} of {epochs}, validation "
            f"{100 * record.validation_accuracy:.1f} %, {record.bits_per_weight:.2f} code bits per "
            f"weight, ν {record.nu:.2f}",
            file=sys.stderr,
            flush=True,
        )


def _train(seed: int, lam: float) -> TrainedModel:
    return train_digits(seed, lam=lam, progress=_report_epoch)


def _train_both(seed: int) -> tuple[TrainedModel, TrainedModel]:
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        plain = pool.submit(_train, seed, 0.0)
        rate = pool.submit(_train, seed, digits_options().lam)
        return plain.result(), rate.result()


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
    values = np.concatenate([layer.weight.values.ravel() for layer in network.layers])
    weights = np.concatenate([layer.weight.dequantize().ravel() for layer in network.layers])
    distinct, counts = np.unique(values, return_counts=True)
    return WeightHistogram(
        label=label,
        step_log2=network.layers[0].weight.step_log2,
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
        rate=tuple(record.rate for record in history),
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


def _quantised_correct(
    trained: TrainedModel, network: IntegerNetwork, x: torch.Tensor, y: torch.Tensor
) -> int:
    state = trained.model.state_dict()
    for layer in network.layers:
        state[layer.weight_name] = torch.from_numpy(layer.weight.dequantize())
    with torch.no_grad():
        logits = torch.func.functional_call(trained.model, state, (x,))
    return int((logits.argmax(dim=1) == y).sum())


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

    _announce(1, "training the digits network, plain and with the rate term (a minute or two)")
    trained = dict(zip((_PLAIN, _RATE), _train_both(seed), strict=True))

    _announce(2, "quantising and packing")
    networks: dict[str, IntegerNetwork] = {}
    paths = {_PLAIN: folder / "plain.egret", _RATE: folder / "model.egret"}
    for label, model in trained.items():
        with atomic_path(paths[label].with_suffix(".safetensors")) as temporary:
            safetensors.torch.save_file(model.state(), temporary)
        compile_network(model.model, splits.train.x).save(paths[label])
        # From here on only what the file holds counts.
        networks[label] = IntegerNetwork.load(paths[label])
    network = networks[_RATE]

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
            count("rate-trained, float", float_correct(_RATE)),
            count(
                "rate-trained, weights in steps of 2^-8",
                _quantised_correct(trained[_RATE], network, x, y),
            ),
            count("rate-trained, simulated hardware", correct),
        ),
        sizes=tuple(_network_size(label, networks[label], paths[label]) for label in networks),
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
