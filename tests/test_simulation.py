"""From a trained network to simulated gates: the whole chain on a small scale."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egret import image_format
from egret.compiler import compile_network
from egret.container import read_container
from egret.errors import EgretError
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret.recipes.digits import OPTIONS, load_digits_split, train_digits
from egret_sim import simulation
from egret_sim.golden import GoldenAccelerator, Outcome, reference_forward
from egret_sim.runner import run_bench
from egret_sim.simulation import simulate

SEED = 11
PARAMS = AcceleratorParams(
    name="chain",
    lanes=2,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    batch=2,
    map_depth=512,
    activation_depth=256,
    row_depth=256,
)


def small_network() -> IntegerNetwork:
    rng = np.random.default_rng(SEED)

    def layer(name: str, rows: int, columns: int, relu: bool) -> IntegerLayer:
        weights = np.rint(rng.laplace(size=(rows, columns)) * 6).astype(np.int32)
        weights[rng.random(weights.shape) < 0.7] = 0
        return IntegerLayer(
            name=name,
            weight=QuantizedTensor(weights, 8),
            bias=(rng.normal(size=rows) / 4).astype(np.float32),
            input_scale=0.05,
            output_scale=0.05,
            multiplier=40_000,
            shift=21,
            relu=relu,
        )

    return IntegerNetwork(
        "small", (layer("a", 20, 12, True), layer("b", 9, 20, True), layer("c", 5, 9, False))
    )


def small_inputs(count: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(-128, 128, (count, 12)).astype(np.int8)


@pytest.mark.parametrize("emit", ["last", "all"])
def test_network_through_the_hardware(emit: Any) -> None:
    network, inputs = small_network(), small_inputs(7)
    done: list[tuple[int, int]] = []
    run = simulate(
        network, PARAMS, inputs, emit=emit, progress=lambda now, of: done.append((now, of))
    )
    expected = reference_forward(network, inputs)
    assert run.mismatches == 0
    assert done[-1] == (7, 7)
    assert run.passes == 4  # seven inputs, two at a time
    np.testing.assert_array_equal(run.results, expected[-1].results)
    if emit == "all":
        for trace, output in zip(run.layers, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(trace.results), output.results)
            np.testing.assert_array_equal(np.concatenate(trace.activations), output.activations)
        # Seven inputs and one of zeros that fills the last pass.
        assert run.compared == 8 * 2 * (20 + 9 + 5)
    else:
        assert run.compared == 8 * 5
    non_zeros = sum(int(np.count_nonzero(layer.weight.values)) for layer in network.layers)
    assert run.multiplies == run.passes * non_zeros == sum(t.multiplies for t in run.layers)
    # From the setup's end on: before the first word, and behind the last matrix, nobody counts.
    assert run.cycles == run.words + run.stalls + run.starved
    # Layers begin with the setup's end and end with the last matrix; the counter begins with the
    # first word and ends with the last result.
    assert abs(sum(trace.cycles for trace in run.layers) - run.cycles) < 100
    assert run.words == run.passes * sum(len(packet.data) for packet in run.image.packets) // 4


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        ("eg-3", {"eg-3"}),
        ("eg-run", {"eg-run"}),
        ("eg-table", {"eg-table", "eg-table-run"}),
    ],
)
def test_codes_may_be_chosen(codes: str, names: set[str]) -> None:
    network, inputs = small_network(), small_inputs(2)
    run = simulate(network, PARAMS, inputs, codes=codes)
    assert run.mismatches == 0
    np.testing.assert_array_equal(run.results, reference_forward(network, inputs)[-1].results)
    assert {packet.code for packet in run.image.matrices} <= names


def test_tiles_of_rows_and_columns() -> None:
    rng = np.random.default_rng(SEED)
    values = rng.integers(-40, 40, (300, 280)).astype(np.int32)
    values[rng.random(values.shape) < 0.9] = 0
    layer = IntegerLayer(
        name="large",
        weight=QuantizedTensor(values, 8),
        bias=rng.normal(size=300).astype(np.float32),
        input_scale=0.05,
        output_scale=0.05,
        multiplier=40_000,
        shift=21,
        relu=False,
    )
    network = IntegerNetwork("large", (layer,))
    inputs = rng.integers(-128, 128, (3, 280)).astype(np.int8)
    run = simulate(network, PARAMS, inputs)
    assert len([packet for packet in run.image.matrices if packet.multiplied]) == 4
    assert run.mismatches == 0
    np.testing.assert_array_equal(run.results, reference_forward(network, inputs)[-1].results)


def test_rate_trained_digits_from_file_to_gates(tmp_path: Path) -> None:
    splits = load_digits_split()
    trained = train_digits(SEED, options=dataclasses.replace(OPTIONS, epochs=6, final_epochs=0))
    compile_network(trained.model, splits.train.x).save(tmp_path / "model.egret")
    network = IntegerNetwork.load(tmp_path / "model.egret")
    container = read_container(tmp_path / "model.egret")
    for layer in network.layers:
        np.testing.assert_array_equal(
            container.quantized(layer.weight_name).values, layer.weight.values
        )
    inputs = network.quantize_input(splits.test.x[:6].numpy())
    run = simulate(network, PARAMS, inputs, emit="all")
    assert run.mismatches == 0
    expected = reference_forward(network, inputs)
    np.testing.assert_array_equal(run.results, expected[-1].results)


def test_a_difference_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(GoldenAccelerator):
        def run_packet(self, *arguments: Any, **options: Any) -> Outcome:
            outcome = super().run_packet(*arguments, **options)
            streams = [stream.copy() for stream in outcome.streams]
            for stream in streams:
                stream[0, 0] += 1
            return dataclasses.replace(outcome, streams=tuple(streams))

    monkeypatch.setattr(simulation, "GoldenAccelerator", Wrong)
    run = simulate(small_network(), PARAMS, small_inputs(4))
    assert run.mismatches == 2
    assert run.layers[-1].mismatches == {"results": 2}
    assert run.compared == 4 * 5


def test_an_error_of_the_hardware_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(verilog: str, top: str, module: str, job: Any, **options: Any) -> Any:
        # The first pass begins with its activations; a matrix is next.
        first = next(n for n, step in enumerate(job.steps) if step.kind == "activations")
        number = first + 1
        step = job.steps[number]
        data = bytearray(step.data)
        data[-8] ^= 1
        job.steps[number] = dataclasses.replace(step, data=bytes(data))
        return run_bench(verilog, top, module, dataclasses.replace(job, timeout=3000), **options)

    monkeypatch.setattr(simulation, "run_bench", damage)
    with pytest.raises(EgretError, match=r"no result within|reports CRC"):
        simulate(small_network(), PARAMS, small_inputs(2))


@pytest.mark.parametrize("shape", [(3, 11), (12,), (0, 12)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EgretError, match=r"inputs: found shape .*, expected \(n, 12\)"):
        simulate(small_network(), PARAMS, np.zeros(shape, np.int8))


def test_a_broken_bench_is_an_error(tmp_path: Path) -> None:
    design = "module nothing(input clk, output reg q); always @(posedge clk) q <= ~q; endmodule\n"
    with pytest.raises(EgretError, match=r"nothing: .* failed, seed 1"):
        run_bench(design, "nothing", "egret_sim.benches.accelerator", None)


def test_a_design_that_does_not_build_is_an_error() -> None:
    with pytest.raises(EgretError, match=r"broken: the simulation of .* did not run, seed 1"):
        run_bench("module broken(; endmodule\n", "broken", "egret_sim.benches.accelerator", None)


def test_header_layout_reaches_the_image() -> None:
    packet = simulation.build_image(small_network(), PARAMS).matrices[0]
    number = int.from_bytes(packet.data[: image_format.MATRIX_BYTES], "little")
    rows = image_format.MATRIX_FIELDS["rows"]
    assert (number >> rows.offset) & ((1 << rows.width) - 1) == 20
