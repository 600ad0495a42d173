"""The cycle model counts what the simulated hardware counts; the commands tell it."""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from egret.area import FIGURES, estimate_luts
from egret.cli import main
from egret.errors import CapacityError, EgretError
from egret.estimate import MatrixEstimate, estimate, file_image, file_weights
from egret.explore import explore, plot, variants
from egret.image import HardwareImage, build_image, build_matrices
from egret.network import IntegerLayer, IntegerNetwork
from egret.packing import write_packed
from egret.params import CODE_NAMES, PRESETS, AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_hw.registers import COUNTERS
from egret_sim.fast import FastModel, Phase
from egret_sim.golden import reference_forward

ONE_LANE = AcceleratorParams(
    name="one-lane",
    lanes=1,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    suffix_limit=8,
    map_depth=64,
    activation_depth=64,
    row_depth=64,
)
# A result takes the requantiser 17 cycles.
SERIAL = replace(ONE_LANE, name="serial", vendor="ice40")
ARRAY = PRESETS["m-ddr3"]
# What ships is what runs, and generating it again takes longer than the rest.
ARRAY_VERILOG = Path(__file__).parents[1] / "hw/verilog/egret_m_ddr3/egret_m_ddr3.v"
ADDRESSES = {register.name: register.offset for register in COUNTERS}
SHARES = (0.0, 0.3, 0.8, 0.95, 1.0)
SETTLE = 3000
"""Longer than any table takes to load."""


@dataclass(frozen=True)
class Measured:
    cycles: int
    words: int
    multiplies: int
    by_matrix: list[int]
    results: list[NDArray[np.int32]]


@cache
def fast_model(name: str) -> FastModel:
    if name == ARRAY.name:
        return FastModel(ARRAY, ARRAY_VERILOG.read_text(encoding="utf-8"))
    return FastModel(SERIAL if name == SERIAL.name else ONE_LANE)


def measure(name: str, image: HardwareImage, vectors: NDArray[np.int8]) -> Measured:
    """Run passes of one vector each, and read the hardware's counters."""
    model = fast_model(name)
    activations = [
        model.params.pad_activations(
            vector[packet.first_column : packet.first_column + packet.columns].tobytes()
        )
        for vector in vectors
        for packet in image.matrices
        if packet.load_activations
    ]
    reads = list(ADDRESSES.values())
    before, after = model.run(
        [
            Phase([packet.data for packet in image.setup], settle=SETTLE, reads=reads),
            Phase(
                [packet.data for packet in image.packets] * len(vectors),
                activations,
                matrices=len(image.matrices) * len(vectors),
                settle=SETTLE,
                reads=reads,
            ),
        ]
    )
    assert after.is_complete
    counted = {name: after.registers[at] - before.registers[at] for name, at in ADDRESSES.items()}
    return Measured(
        cycles=counted["CYCLES"],
        words=counted["WORDS"],
        multiplies=counted["MULTIPLIES"],
        by_matrix=np.diff(after.done.astype(np.int64), prepend=0).tolist(),
        results=[packet.values for packet in after.packets],
    )


def draw_weights(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.int32]:
    values = np.rint(rng.laplace(size=(rows, columns)) * rng.choice([0.5, 2, 10])).clip(-30, 30)
    values[rng.random(values.shape) < rng.choice(SHARES)] = 0
    return values.astype(np.int32)


def draw_network(rng: np.random.Generator, sizes: list[int]) -> IntegerNetwork:
    layers = [
        IntegerLayer(
            name=f"layer{number}",
            weight=QuantizedTensor(draw_weights(rng, rows, columns), 8),
            bias=rng.normal(size=rows).astype(np.float32) if rng.random() < 0.5 else None,
            input_scale=0.05,
            output_scale=0.05,
            multiplier=4000,
            shift=18,
            relu=bool(rng.random() < 0.5),
        )
        for number, (columns, rows) in enumerate(pairwise(sizes))
    ]
    return IntegerNetwork("drawn", tuple(layers))


def check_network(
    params: AcceleratorParams,
    network: IntegerNetwork,
    codes: str,
    passes: int,
    emit: Literal["last", "all"],
    within: float,
    what: str,
) -> None:
    rng = np.random.default_rng(passes)
    inputs = rng.integers(-128, 128, (passes, network.input_features)).astype(np.int8)
    image = build_image(network, params, emit=emit, codes=codes)
    found = measure(params.name, image, inputs)
    expected = reference_forward(network, inputs)[-1].results
    # With all layers sent, each sends its results, then its activations.
    last = found.results[2 * len(network.layers) - 2 :: 2 * len(network.layers)]
    np.testing.assert_array_equal(last if emit == "all" else found.results, expected, what)
    check_cycles(image, found, passes, within, what)


def check_cycles(
    image: HardwareImage, found: Measured, passes: int, within: float, what: str
) -> None:
    estimated = estimate(image, passes=passes)
    assert abs(estimated.cycles - found.cycles) <= within * found.cycles, (
        what,
        estimated.cycles,
        found.cycles,
    )
    assert (estimated.words, estimated.multiplied) == (found.words, found.multiplies), what
    if not within:
        assert [matrix.cycles for matrix in estimated.matrices] == found.by_matrix, what


# One lane is counted exactly, an array within 1 %.
LIMITS = {ONE_LANE: 0.0, SERIAL: 0.0, ARRAY: 0.01}


@pytest.mark.parametrize("params", LIMITS, ids=lambda params: params.name)
@pytest.mark.parametrize("emit", ["last", "all"])
@pytest.mark.parametrize("codes", ["auto", *CODE_NAMES])
def test_network_takes_what_the_model_says(
    params: AcceleratorParams, codes: str, emit: Literal["last", "all"]
) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        network = draw_network(rng, rng.integers(1, 65, rng.integers(2, 6)).tolist())
        passes = int(rng.integers(1, 4))
        what = f"{params.name}, seed {seed}"
        check_network(params, network, codes, passes, emit, LIMITS[params], what)


@pytest.mark.parametrize("params", LIMITS, ids=lambda params: params.name)
@pytest.mark.parametrize("codes", ["auto", *CODE_NAMES])
def test_matrices_take_what_the_model_says(params: AcceleratorParams, codes: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        matrices = {
            f"matrix{number}": draw_weights(rng, *rng.integers(1, 150, 2).tolist())
            for number in range(rng.integers(1, 4))
        }
        image = build_matrices(matrices, params, codes=codes)
        vectors = rng.integers(-128, 128, (2, 150)).astype(np.int8)
        found = measure(params.name, image, vectors)
        check_cycles(image, found, 2, LIMITS[params], f"{params.name}, seed {seed}")


@pytest.mark.parametrize("sizes", [[3, 5, 2], [8, 16, 34, 16, 27], [1, 1, 1, 1]])
def test_short_matrices_keep_their_settings(sizes: list[int]) -> None:
    # Dealing the starts of all lanes takes longer than such a matrix and the next one's header.
    for seed in range(4):
        network = draw_network(np.random.default_rng(seed), sizes)
        what = f"{sizes}, seed {seed}"
        check_network(ARRAY, network, "eg-table", 2, "last", LIMITS[ARRAY], what)


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
    wide = np.rint(rng.laplace(size=(700, 700)) * 20).clip(-60, 60).astype(np.int32)
    sparse = rng.choice([0, 1, -1], (700, 700), p=[0.98, 0.01, 0.01]).astype(np.int32)
    image = build_matrices({"a": wide, "b": sparse}, ARRAY)
    assert [packet.kind.name for packet in image.packets] == ["CODE", "MATRIX", "CODE", "MATRIX"]
    # Microcode has 1024 words; no payload passes while they are made.
    beats = sum(packet.payload_words for packet in image.matrices) * ARRAY.beats_per_word
    assert beats + 2 * 1024 <= estimate(image).cycles <= beats + 2 * 1024 + 1500
    found = measure(ARRAY.name, image, rng.integers(-128, 128, (2, 700)).astype(np.int8))
    # The writer's time lies open here, so that a cycle too many in it shows.
    assert estimate(image, passes=2).cycles == found.cycles


def test_layers_add_up_and_name_their_bound() -> None:
    matrix = MatrixEstimate(ARRAY, "a", 1000, code_bits=6400, multiplied=320, row_cycles=30)
    assert (matrix.bus_cycles, matrix.multiplier_cycles, matrix.roof) == (100, 20, 100)
    assert (matrix.bus_use, matrix.multiplier_use) == (0.1, 0.02)
    assert matrix.bound == "bus"
    assert replace(matrix, multiplied=16_000).bound == "multipliers"
    assert replace(matrix, row_cycles=101).bound == "rows"
    rng = np.random.default_rng(7)
    network = draw_network(rng, [64, 40, 30])
    found = estimate(build_image(network, ARRAY), passes=3)
    assert len(found.matrices) == 6
    assert [layer.name for layer in found.layers] == ["layer0", "layer1"]
    for number, layer in enumerate(found.layers):
        own = found.matrices[number::2]
        assert layer.cycles == sum(matrix.cycles for matrix in own)
        assert layer.code_bits == 3 * own[0].code_bits
        assert layer.multiplied == 3 * own[0].multiplied
        assert layer.row_cycles == 3 * own[0].row_cycles >= 3 * network.layers[number].rows


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
    draw_network(np.random.default_rng(0), [9, 8, 7]).save(tmp_path / "network.egret")
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
    call = ["estimate", str(path), "--preset", "s", "--passes", "2", "--batch", "3"]
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    params = replace(PRESETS["s"], batch=3)
    found = estimate(file_image(path, params), passes=2)
    assert [line.split()[0] for line in lines[1:]] == ["conv", "head", "total", "s:"]
    for line, layer in zip(lines[1:3], found.layers, strict=True):
        _, cycles, roof, bus, multipliers, bound = line.split()
        assert (cycles, roof) == (f"{layer.cycles:,}", f"{layer.roof:,.0f}")
        assert (bus, multipliers) == (f"{layer.bus_use:.1%}", f"{layer.multiplier_use:.1%}")
        assert bound == layer.bound
    assert lines[3].split()[1:3] == [f"{found.cycles:,}", f"{found.roof:,.0f}"]
    assert main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cycles"], told["batch"], told["accelerator"]) == (found.cycles, 3, "s")
    assert [layer["cycles"] for layer in told["layers"]] == [layer.cycles for layer in found.layers]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["estimate", "absent.egret"], "absent.egret: cannot read"),
        (["estimate", "some.egret", "--batch", "17"], "parameter batch: found 17"),
        (["estimate", "some.egret", "--config", "absent.yml"], "absent.yml: no such file"),
        (["explore", "absent.egret", "-o", "out"], "absent.egret: cannot read"),
        (
            ["explore", "some.egret", "-o", "some.egret"],
            "some.egret: found a file, expected a folder",
        ),
        (["explore", "some.egret", "-o", "out", "--lanes", "3"], "parameter lanes: found 3"),
        (
            ["explore", "some.egret", "-o", "out", "--lanes", "32", "--bus", "16"],
            "no bus is as wide as all lanes' bits",
        ),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_matrices(tmp_path / "some.egret")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_variants_are_what_fits_the_bus() -> None:
    for base in PRESETS.values():
        made = variants(base)
        assert len({params.name for params in made}) == len(made) == 100
        for params in made:
            assert params.lanes * params.parser_bits <= params.bus_bits
            assert params.codes == base.codes
            assert params.parser == (base.parser if params.parser_bits >= 4 else "logic")
    made = variants(ONE_LANE, lanes=[4, 8], parser_bits=[8], buses=[32, 64])
    assert [params.name for params in made] == ["4x8-32", "4x8-64", "8x8-64"]


def test_luts_are_those_that_were_measured() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    lane = figures["lanes"]["microcode"]["4"] + figures["link"]
    assert estimate_luts(replace(ARRAY, lanes=1, bus_bits=32)) == lane + figures["central"]["32"]
    whole = estimate_luts(ARRAY)
    assert whole == 16 * lane + figures["central"]["64"]
    # A bus of 128 bits costs over 64 twice what 64 cost over 32.
    more = figures["central"]["64"] - figures["central"]["32"]
    assert estimate_luts(replace(ARRAY, bus_bits=128)) == whole + 2 * more
    more = estimate_luts(replace(ARRAY, batch=3)) - whole
    assert more == 16 * 2 * figures["vector"]
    plain = replace(ARRAY, parser="logic", parser_bits=2, parser_cut=2)
    differs = figures["lanes"]["logic"]["2"] - figures["lanes"]["eg-k"]["2"]
    assert estimate_luts(plain) - estimate_luts(replace(plain, codes=("eg-k",))) == 16 * differs


def test_explore_marks_what_no_other_beats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.egret"
    write_matrices(path)
    tried = variants(ONE_LANE, lanes=[1, 4], parser_bits=[1, 4], buses=[32, 64])
    points = explore(file_weights(path), tried)
    assert len(points) == 8
    for point in points:
        beaten = any(
            (other.luts <= point.luts and other.cycles < point.cycles)
            or (other.luts < point.luts and other.cycles <= point.cycles)
            for other in points
        )
        assert point.is_best == (not beaten), point
        found = estimate(file_image(path, point.params))
        assert point.cycles == found.cycles
        assert point.bus_bits == found.words * point.params.bus_bits / found.cycles
    folder = tmp_path / "deep" / "folder"
    call = ["explore", str(path), "-o", str(folder), "--preset", "xs-ice40", "--lanes", "1,4"]
    call += ["--parser-bits", "1,4", "--bus", "32,64"]
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(folder / "explore.svg")
    assert len(lines) == 1 + 8 + 3
    told = json.loads((folder / "explore.json").read_text(encoding="utf-8"))["points"]
    assert [f"{point['cycles']:,}" for point in told] == [line.split()[-2] for line in lines[1:9]]
    assert [line.startswith("*") for line in lines[1:9]] == [point["is_best"] for point in told]
    first = (folder / "explore.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert main([*call, "--format", "png"]) == 0
    assert (folder / "explore.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in folder.iterdir()) == [
        "explore.json",
        "explore.png",
        "explore.svg",
    ]
    with pytest.raises(EgretError, match=r"found suffix '.xyz', expected .svg, .png or .pdf"):
        plot(points, tmp_path / "plot.xyz", "title")
