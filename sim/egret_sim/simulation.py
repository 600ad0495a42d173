"""Runs a packed network through the simulated hardware and compares it with the golden model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from egret.errors import EgretError
from egret.image import HardwareImage, build_image
from egret.image_format import ErrorKind
from egret.network import IntegerNetwork
from egret.params import AcceleratorParams
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.benches.accelerator import Job, Recording, Step
from egret_sim.golden import GoldenAccelerator
from egret_sim.runner import run_bench

__all__ = ["LayerTrace", "Simulation", "simulate"]

_IMAGES_A_RUN = 120
_BENCH = "egret_sim.benches.accelerator"


@dataclass
class LayerTrace:
    """What one layer sent, over all inputs, and how often it differed from the golden model.

    Parameters
    ----------
    name : str
        Layer.
    results : list of np.ndarray
        Raw results, int32 of shape (n, rows) for each run of the simulator; empty when not sent.
    activations : list of np.ndarray
        Requantised results likewise, int8.
    compared : dict of str to int
        Values compared, by "results" and "activations".
    mismatches : dict of str to int
        Those that differed.
    cycles : int
        Clock cycles of all passes, from the previous layer's acceptance to this one's.
    multiplies : int
        Weights multiplied in all passes, by the golden model's count.
    """

    name: str
    results: list[npt.NDArray[np.int32]] = field(default_factory=list)
    activations: list[npt.NDArray[np.int8]] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)
    mismatches: dict[str, int] = field(default_factory=dict)
    cycles: int = 0
    multiplies: int = 0


@dataclass
class Simulation:
    """A simulated run.

    Parameters
    ----------
    image : HardwareImage
        What was streamed.
    layers : list of LayerTrace
        One for each layer.
    inputs : int
        Inputs run.
    passes : int
        Times the image was streamed.
    cycles, words, stalls, multiplies : int
        Sums of the hardware's own counters, see `egret_hw.accelerator.Accelerator`.
    """

    image: HardwareImage
    layers: list[LayerTrace]
    inputs: int
    passes: int = 0
    cycles: int = 0
    words: int = 0
    stalls: int = 0
    multiplies: int = 0

    @property
    def mismatches(self) -> int:
        """Values that differed from the golden model."""
        return sum(sum(layer.mismatches.values()) for layer in self.layers)

    @property
    def compared(self) -> int:
        """Values compared with the golden model."""
        return sum(sum(layer.compared.values()) for layer in self.layers)

    @property
    def results(self) -> npt.NDArray[np.int32]:
        """The last layer's raw results, shape (n, rows)."""
        return np.concatenate(self.layers[-1].results)


def simulate(
    network: IntegerNetwork,
    params: AcceleratorParams,
    inputs: npt.NDArray[np.int8],
    *,
    emit: Literal["last", "all"] = "last",
    order: int | None = None,
    verilog: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Stream a network's image and inputs through the Verilated accelerator.

    Every value that comes out is compared with `GoldenAccelerator`, which reads the same words.

    Parameters
    ----------
    network : IntegerNetwork
        The network.
    params : AcceleratorParams
        The accelerator.
    inputs : np.ndarray of int8, shape (n, features)
        Quantised inputs, n ≥ 1.
    emit : {"last", "all"}
        As in `egret.image.build_image`.
    order : int, optional
        Exp-Golomb order; the cheapest for each matrix when absent.
    verilog : str, optional
        The accelerator's Verilog; generated when absent.
    progress : callable, optional
        Called with the inputs done and their number.

    Returns
    -------
    Simulation

    Raises
    ------
    CapacityError
        The network does not fit.
    EgretError
        The inputs do not fit, the simulation failed, locked up or reported an error. Mismatches
        are counted, not raised.
    """
    if inputs.ndim != 2 or inputs.shape[1] != network.input_features or inputs.shape[0] == 0:
        raise EgretError(
            f"inputs: found shape {inputs.shape}, expected (n, {network.input_features}), n >= 1"
        )
    image = build_image(network, params, emit=emit, order=order)
    text = generate_verilog(params) if verilog is None else verilog
    run = Simulation(
        image=image,
        layers=[LayerTrace(packet.name) for packet in image.packets],
        inputs=len(inputs),
    )
    # As many inputs a run of the simulator as fill whole passes.
    size = max(1, _IMAGES_A_RUN // params.batch) * params.batch
    for first in range(0, len(inputs), size):
        _simulate_some(run, network, params, inputs[first : first + size], text)
        if progress is not None:
            progress(min(first + size, len(inputs)), len(inputs))
    return run


def _simulate_some(
    run: Simulation,
    network: IntegerNetwork,
    params: AcceleratorParams,
    inputs: npt.NDArray[np.int8],
    verilog: str,
) -> None:
    batch = params.batch
    columns = run.image.packets[0].columns
    passes = math.ceil(len(inputs) / batch)
    padded = np.zeros((passes * batch, columns), np.int8)
    padded[: len(inputs), : inputs.shape[1]] = inputs
    golden = GoldenAccelerator(params)
    steps: list[Step] = []
    expected: list[tuple[int, str, npt.NDArray[np.int32]]] = []
    for vectors in padded.reshape(passes, batch, columns):
        steps.append(Step("activations", np.ascontiguousarray(vectors.T).tobytes()))
        for number, (packet, layer) in enumerate(
            zip(run.image.packets, network.layers, strict=True)
        ):
            steps.append(Step("weights", packet.data))
            outcome = golden.run_packet(packet.data, vectors.T if number == 0 else None)
            if outcome.error != ErrorKind.NONE:
                raise EgretError(f"{layer.name}: the golden model reports {outcome.error.name}")
            run.layers[number].multiplies += outcome.multiplied
            # Without every layer's activations, only raw results are sent.
            names = ("results", "activations")[: len(outcome.streams)]
            expected += [
                (number, name, stream) for name, stream in zip(names, outcome.streams, strict=True)
            ]
    steps += [Step("expect", count=len(expected)), Step("status")]
    # A bound on the cycles between two results: every payload bit alone, and every weight alone.
    most = max(8 * len(packet.data) + packet.rows * packet.columns for packet in run.image.packets)
    job = Job(steps=steps, timeout=2 * len(network.layers) * most + 10_000)
    recording: Recording = run_bench(verilog, top_name(params), _BENCH, job)
    if recording.locked_up:
        raise EgretError(
            f"{top_name(params)}: no result within {job.timeout} cycles, after "
            f"{len(recording.frames)} of {len(expected)} packets"
        )
    for frame, (number, name, stream) in zip(recording.frames, expected, strict=True):
        layer_name = run.image.packets[number].name
        if frame.error:
            kind = ErrorKind(int(frame.values[0])).name
            raise EgretError(f"{layer_name}: the hardware reports {kind}")
        trace = run.layers[number]
        wanted = stream.ravel()
        differ = (
            int((frame.values != wanted).sum())
            if frame.values.shape == wanted.shape
            else wanted.size
        )
        trace.compared[name] = trace.compared.get(name, 0) + wanted.size
        trace.mismatches[name] = trace.mismatches.get(name, 0) + differ
        if differ == 0:
            values = frame.values.reshape(-1, batch).T
            if name == "results":
                trace.results.append(values.copy())
            else:
                trace.activations.append(values.astype(np.int8))
    if len(inputs) % batch:
        # The last pass was filled up with zeros; their results are not anybody's.
        real = batch - (passes * batch - len(inputs))
        for trace in run.layers:
            if trace.results:
                trace.results[-1] = trace.results[-1][:real]
            if trace.activations:
                trace.activations[-1] = trace.activations[-1][:real]
    spent = np.diff(recording.matrix_cycles, prepend=0).reshape(passes, len(run.layers))
    for trace, cycles in zip(run.layers, spent.sum(axis=0), strict=True):
        trace.cycles += int(cycles)
    counters = recording.statuses[-1]
    run.passes += passes
    run.cycles += counters["cycles"]
    run.words += counters["words"]
    run.stalls += counters["stalls"]
    run.multiplies += counters["multiplies"]
