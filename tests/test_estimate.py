"""The cycle model counts what the simulated hardware counts; the commands tell it."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from egret.cli import main
from egret.errors import CapacityError, EgretError
from egret.estimate import estimate, file_image, file_weights
from egret.explore import explore, plot, variants
from egret.image import build_image, build_matrices
from egret.network import IntegerLayer, IntegerNetwork
from egret.packing import write_packed
from egret.params import PRESETS, AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_sim.simulation import simulate

ONE_LANE = AcceleratorParams(
    name="one-lane",
    lanes=1,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    codes=("eg-k",),
    suffix_limit=8,
    map_depth=64,
    activation_depth=64,
    row_depth=64,
)
ARRAY = replace(
    ONE_LANE,
    name="array",
    lanes=2,
    parser_bits=8,
    codes=("eg-k", "eg-run", "eg-table"),
    parser="microcode",
    batch=2,
)
# How much of a layer's weights is 0, and how large the others are.
KINDS = {
    "dense": ((0.0, 6.0), (0.1, 3.0), (0.0, 1.0)),
    "sparse": ((0.8, 3.0), (0.95, 3.0), (0.99, 1.0)),
}


def make_network(kind: str, seed: int) -> IntegerNetwork:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 64, 4).tolist()
    layers = []
    for number, (share, scale) in enumerate(KINDS[kind]):
        shape = sizes[number + 1], sizes[number]
        values = np.rint(rng.laplace(size=shape) * scale).clip(-30, 30).astype(np.int32)
        values[rng.random(shape) < share] = 0
        layers.append(
            IntegerLayer(
                name=f"layer{number}",
                weight=QuantizedTensor(values, 8),
                bias=rng.normal(size=shape[0]).astype(np.float32) if number == 1 else None,
                input_scale=0.05,
                output_scale=0.05,
                multiplier=4000,
                shift=18,
                relu=number == 0,
            )
        )
    return IntegerNetwork(kind, tuple(layers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [ONE_LANE, ARRAY], ids=lambda params: params.name)
def test_cycles_are_those_of_the_hardware(params: AcceleratorParams, kind: str) -> None:
    cases: tuple[tuple[int, Literal["last", "all"], str], ...] = (
        (1, "last", "auto"),
        (3, "last", "auto"),
        (2, "all", "eg-k"),
    )
    for seed, (passes, emit, codes) in enumerate(cases):
        network = make_network(kind, seed)
        rng = np.random.default_rng(seed)
        inputs = rng.integers(-128, 128, (passes * params.batch, network.input_features))
        measured = simulate(network, params, inputs.astype(np.int8), emit=emit, codes=codes)
        image = build_image(network, params, emit=emit, codes=codes)
        found = estimate(image, passes=passes)
        what = f"{params.name}, {kind}, seed {seed}"
        assert measured.mismatches == 0, what
        assert found.cycles == measured.cycles, what
        assert (found.words, found.multiplied) == (measured.words, measured.multiplies), what
        by_layer = [
            sum(matrix.cycles for matrix in found.matrices if matrix.name == layer.name)
            for layer in measured.layers
        ]
        # The bench sees the first word a cycle earlier, or later, than the counter.
        differences = np.subtract([layer.cycles for layer in measured.layers], by_layer)
        assert abs(differences).max() <= 2, (what, differences)


@pytest.mark.parametrize("params", PRESETS.values(), ids=PRESETS)
def test_nothing_is_quicker_than_its_roof(params: AcceleratorParams) -> None:
    rng = np.random.default_rng(4)
    values = np.rint(rng.laplace(size=(60, 200)) * 2).clip(-20, 20).astype(np.int32)
    image = build_matrices({"a": values, "b": values[:, ::-1]}, params)
    found = estimate(image)
    assert found == estimate(image)
    assert [matrix.name for matrix in found.matrices] == ["a", "b"]
    assert all(matrix.cycles >= matrix.roof for matrix in found.matrices[:1])
    assert found.roof < found.cycles
    assert 0 < found.bus_use < 1
    assert 0 < found.multiplier_use < 1
    assert found.cycles > found.words
    assert found.code_bits == sum(packet.code_bits for packet in image.matrices)
    assert found.multiplied == 2 * np.count_nonzero(values)
    assert estimate(image, passes=2).cycles > found.cycles


def test_codes_that_are_loaded_between_matrices_cost_their_time() -> None:
    rng = np.random.default_rng(5)
    params = replace(ARRAY, parser_bits=4, activation_depth=512, row_depth=512, map_depth=256)
    wide = np.rint(rng.laplace(size=(500, 500)) * 20).clip(-60, 60).astype(np.int32)
    sparse = rng.choice([0, 1, -1], (500, 500), p=[0.98, 0.01, 0.01]).astype(np.int32)
    image = build_matrices({"a": wide, "b": sparse}, params)
    assert [packet.kind.name for packet in image.packets] == ["CODE", "MATRIX", "CODE", "MATRIX"]
    beats = sum(packet.payload_words for packet in image.matrices) * params.beats_per_word
    # Microcode has 1024 words; no payload passes while they are made.
    assert beats + 2 * 1024 <= estimate(image).cycles <= beats + 2 * 1024 + 1500


def write_matrices(path: Path) -> None:
    rng = np.random.default_rng(6)
    write_packed(
        path,
        {
            "conv": QuantizedTensor(rng.integers(-3, 4, (8, 4, 3, 3)).astype(np.int32), 8),
            "head": QuantizedTensor(rng.integers(-3, 4, (10, 8)).astype(np.int32), 8),
            "scale": QuantizedTensor(rng.integers(-3, 4, 100).astype(np.int32), 8),
        },
        {},
    )


def test_file_without_a_network_gives_its_matrices(tmp_path: Path) -> None:
    write_matrices(tmp_path / "some.egret")
    weights = file_weights(tmp_path / "some.egret")
    assert isinstance(weights, dict)
    assert {name: values.shape for name, values in weights.items()} == {
        "conv": (8, 36),
        "head": (10, 8),
    }
    image = file_image(tmp_path / "some.egret", ONE_LANE)
    assert [packet.name for packet in image.matrices] == ["conv", "head"]
    make_network("dense", 0).save(tmp_path / "network.egret")
    assert isinstance(file_weights(tmp_path / "network.egret"), IntegerNetwork)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.egret"
    values = np.array([[5000, 1]], np.int32)
    write_packed(path, {"wide": QuantizedTensor(np.repeat(values, 100, 0), 8)}, {})
    with pytest.raises(CapacityError) as caught:
        file_image(path, ONE_LANE)
    assert str(caught.value).startswith(f"{path}: layer wide: weight 5000 does not fit 12 bits")
    flat = tmp_path / "flat.egret"
    write_packed(flat, {"flat": QuantizedTensor(np.ones(1000, np.int32), 8)}, {})
    with pytest.raises(EgretError, match="found no coded tensor of two or more axes"):
        file_weights(flat)


def test_command_prints_the_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.egret"
    write_matrices(path)
    assert main(["estimate", str(path), "--preset", "s", "--passes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = estimate(file_image(path, PRESETS["s"]), passes=2)
    names = [line.split()[0] for line in lines[1:-2]]
    assert names == ["conv", "head", "conv", "head"]
    cycles = [int(line.split()[-2]) for line in lines[1:-2]]
    assert cycles == [matrix.cycles for matrix in found.matrices]
    assert lines[-2].startswith(f"{found.cycles} cycles on s, ")
    assert f"{found.bus_use:.1%}" in lines[-1]
    assert f"{found.multiplier_use:.1%}" in lines[-1]
    with pytest.raises(SystemExit):
        main(["estimate", str(path), "--passes", "0"])


def test_variants_are_as_wide_as_they_need() -> None:
    for base in PRESETS.values():
        made = list(variants(base))
        assert len({(params.lanes, params.parser_bits) for params in made}) == len(made) == 29
        for params in made:
            assert params.lanes * params.parser_bits <= params.bus_bits
            assert params.bus_bits == 32 or params.lanes * params.parser_bits > params.bus_bits // 2
            assert params.codes == base.codes


def test_explore_marks_what_no_other_beats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.egret"
    write_matrices(path)
    points = explore(file_weights(path), ONE_LANE)
    assert len(points) == 29
    for point in points:
        beaten = any(
            (other.luts <= point.luts and other.cycles < point.cycles)
            or (other.luts < point.luts and other.cycles <= point.cycles)
            for other in points
        )
        assert point.is_best == (not beaten), point
        image = file_image(path, point.params)
        assert point.cycles == estimate(image).cycles
    drawing = tmp_path / "plot.svg"
    assert main(["explore", str(path), "--preset", "xs-ice40", "--plot", str(drawing)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 29 + 2
    assert sum(line.startswith("*  ") for line in lines) >= 2
    first = drawing.read_bytes()
    assert first.startswith(b"<?xml")
    with pytest.raises(EgretError, match=r"found suffix '.xyz', expected .svg, .png or .pdf"):
        plot(points, tmp_path / "plot.xyz", "title")
