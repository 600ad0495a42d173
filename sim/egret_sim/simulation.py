"""Runs a packed network through the simulated hardware and compares it with the golden model."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from egret.code_search import Codes
from egret.errors import EgretError
from egret.image import HardwareImage, MatrixPacket, build_image
from egret.image_format import ErrorKind
from egret.network import IntegerNetwork
from egret.params import AcceleratorParams
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.benches.accelerator import Job, Recording, Step
from egret_sim.golden import GoldenAccelerator
from egret_sim.runner import run_bench

__all__ = ["LayerTrace", "Simulation", "simulate"]

_IMAGES_A_RUN = 120
# By then every table that the setup loads is in place, microcode too.
_SETUP_CYCLES = 2048
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
        Clock cycles of all passes, from the end of the previous layer's last matrix to that of
        this layer's.
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
        Times the image was streamed, but for its setup.
    cycles, words, stalls, starved, multiplies : int
        Sums of the hardware's own counters, see `egret_hw.registers`, over all passes, without the
        setup.
    """

    image: HardwareImage
    layers: list[LayerTrace]
    inputs: int
    passes: int = 0
    cycles: int = 0
    words: int = 0
    stalls: int = 0
    starved: int = 0
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
    codes: str | Sequence[str] | Codes = "auto",
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
    codes : str, sequence of str, or Codes
        Codes to choose from, as in `egret.image.build_image`.
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
    image = build_image(network, params, emit=emit, codes=codes)
    text = generate_verilog(params) if verilog is None else verilog
    run = Simulation(
        image=image,
        layers=[LayerTrace(layer.name) for layer in network.layers],
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
    matrices = run.image.matrices
    passes = math.ceil(len(inputs) / batch)
    padded = np.zeros((passes * batch, network.input_features), np.int8)
    padded[: len(inputs)] = inputs
    golden = GoldenAccelerator(params)
    steps: list[Step] = []
    for packet in run.image.setup:
        golden.run_packet(packet.data)
        steps.append(Step("weights", packet.data))
    steps += [Step("sent"), Step("wait", count=_SETUP_CYCLES), Step("status")]
    # What comes out: the pass, the matrix, what it is of it.
    expected: list[tuple[int, MatrixPacket, str, npt.NDArray[np.int32]]] = []
    for number, vectors in enumerate(padded.reshape(passes, batch, -1)):
        for packet in run.image.packets:
            taken = None
            if isinstance(packet, MatrixPacket) and packet.load_activations:
                columns = slice(packet.first_column, packet.first_column + packet.columns)
                taken = np.ascontiguousarray(vectors[:, columns].T)
                steps.append(Step("activations", params.pad_activations(taken.tobytes())))
            steps.append(Step("weights", packet.data))
            outcome = golden.run_packet(packet.data, taken)
            if outcome.error != ErrorKind.NONE:
                raise EgretError(f"{packet.name}: the golden model reports {outcome.error.name}")
            if isinstance(packet, MatrixPacket):
                run.layers[packet.layer].multiplies += outcome.multiplied
                # Without every layer's activations, only raw results are sent.
                names = ("results", "activations")[: len(outcome.streams)]
                expected += [
                    (number, packet, name, stream)
                    for name, stream in zip(names, outcome.streams, strict=True)
                ]
    steps += [Step("expect", count=len(expected)), Step("status")]
    # A bound on the cycles between two results: every bit alone, and every weight alone.
    most = sum(8 * len(packet.data) for packet in run.image.packets)
    most += sum(packet.rows * packet.columns for packet in matrices)
    job = Job(steps=steps, timeout=2 * most + 10_000)
    recording: Recording = run_bench(verilog, top_name(params), _BENCH, job)
    if recording.locked_up:
        raise EgretError(
            f"{top_name(params)}: no result within {job.timeout} cycles, after "
            f"{len(recording.frames)} of {len(expected)} packets"
        )
    # Of each pass, layer and quantity, what the layer's tiles of rows sent.
    sent: defaultdict[tuple[int, int, str], list[npt.NDArray[np.int32]]] = defaultdict(list)
    wrong: set[tuple[int, int, str]] = set()
    for frame, (number, packet, name, stream) in zip(recording.frames, expected, strict=True):
        if frame.error:
            kind = ErrorKind(int(frame.values[0])).name
            raise EgretError(f"{packet.name}: the hardware reports {kind}")
        trace = run.layers[packet.layer]
        wanted = stream.ravel()
        differ = (
            int((frame.values != wanted).sum())
            if frame.values.shape == wanted.shape
            else wanted.size
        )
        trace.compared[name] = trace.compared.get(name, 0) + wanted.size
        trace.mismatches[name] = trace.mismatches.get(name, 0) + differ
        key = (number, packet.layer, name)
        if differ == 0:
            sent[key].append(frame.values.reshape(-1, batch))
        else:
            wrong.add(key)
    for (number, layer, name), tiles in sent.items():
        if (number, layer, name) in wrong:
            continue
        # The last pass may have been filled up with zeros; their results are not anybody's.
        real = min(batch, len(inputs) - number * batch)
        values = np.concatenate(tiles).T[:real]
        if name == "results":
            run.layers[layer].results.append(values)
        else:
            run.layers[layer].activations.append(values.astype(np.int8))
    before, after = recording.statuses
    spent = np.diff(recording.matrix_cycles, prepend=before["clock"]).reshape(passes, -1)
    for packet, cycles in zip(matrices, spent.sum(axis=0), strict=True):
        run.layers[packet.layer].cycles += int(cycles)
    run.passes += passes
    for name in ("cycles", "words", "stalls", "starved", "multiplies"):
        setattr(run, name, getattr(run, name) + after[name] - before[name])
