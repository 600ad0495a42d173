"""The packer: the image holds the container's integers, and says what does not fit.

The image is read by the golden model, which shares no code with the packer.
"""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from egret import image_plan
from egret.cli import main
from egret.code_search import Codes
from egret.container import read_container
from egret.errors import CapacityError, EgretError
from egret.image import HardwareImage, MatrixPacket, build_image, build_matrices
from egret.image_format import ErrorKind, PacketKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import PRESETS, AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_sim.golden import (
    GoldenAccelerator,
    header_fault,
    read_header,
    reference_forward,
    split_packets,
)

PARAMS = AcceleratorParams(
    name="packed",
    lanes=2,
    parser_bits=4,
    parser_cut=2,
    bus_bits=32,
    batch=8,
    map_depth=128,
    activation_depth=64,
    row_depth=128,
)
SHAPES = {
    params.name: params
    for params in (
        PARAMS,
        replace(PARAMS, name="microcode", lanes=8, parser_cut=4, parser="microcode", bus_bits=64),
        replace(PARAMS, name="wide", parser_bits=16, parser_cut=2, bus_bits=128, weight_bits=16),
        replace(PARAMS, name="serial", lanes=1, parser_bits=1, parser_cut=1, suffix_limit=7),
        replace(PARAMS, name="few-codes", codes=("eg-k", "eg-table"), suffix_limit=12),
    )
}


def layer(
    values: np.ndarray, name: str = "layer", bias: np.ndarray | None = None, relu: bool = False
) -> IntegerLayer:
    return IntegerLayer(
        name=name,
        weight=QuantizedTensor(values.astype(np.int32), 8),
        bias=bias,
        input_scale=0.05,
        output_scale=0.05,
        multiplier=4000,
        shift=20,
        relu=relu,
    )


def network(*layers: IntegerLayer) -> IntegerNetwork:
    return IntegerNetwork("network", layers)


def random_matrix(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A matrix of any kind: sparse, zero not the most frequent value, all zero, wide values."""
    makers = [
        lambda: np.rint(rng.laplace(size=shape) * rng.uniform(0.2, 20)).clip(-63, 63),
        lambda: rng.choice([-5, 1, 0], shape, p=[0.6, 0.3, 0.1]),
        lambda: np.zeros(shape),
        lambda: rng.choice([-2048, 2047, 0], shape, p=[0.02, 0.02, 0.96]),
        lambda: rng.choice([-31, 30, 29, -33, 0], shape, p=[0.05, 0.05, 0.05, 0.05, 0.8]),
    ]
    return makers[rng.integers(len(makers))]().astype(np.int32)


def random_network(seed: int) -> IntegerNetwork:
    rng = np.random.default_rng(seed)
    sizes = [*(int(size) for size in rng.integers(1, 60, 5)), 1, 9]
    return network(
        *(
            layer(
                random_matrix(rng, (sizes[number + 1], sizes[number])),
                f"layer{number}",
                rng.normal(size=sizes[number + 1]).astype(np.float32) if number % 2 else None,
                relu=bool(rng.integers(2)),
            )
            for number in range(6)
        )
    )


def setup(image: HardwareImage) -> GoldenAccelerator:
    accelerator = GoldenAccelerator(image.params)
    for packet in image.setup:
        assert accelerator.run_packet(packet.data).error is ErrorKind.NONE, packet
    return accelerator


def run_network(
    image: HardwareImage, made: IntegerNetwork, what: str = "", passes: int = 2
) -> None:
    """Run passes through the golden model; compare results with the network's, counts with its."""
    assert split_packets(image.data, image.params) == [
        packet.data for packet in (*image.setup, *image.packets)
    ]
    accelerator = setup(image)
    rng = np.random.default_rng(1)
    for _ in range(passes):
        x = rng.integers(-128, 128, (image.params.batch, made.input_features)).astype(np.int8)
        results = [output.results.T for output in reference_forward(made, x)]
        held: dict[int, list[np.ndarray]] = {number: [] for number in range(len(results))}
        for packet in image.packets:
            assert header_fault(packet.data, image.params) is None, (what, packet)
            if not isinstance(packet, MatrixPacket):
                assert accelerator.run_packet(packet.data).error is ErrorKind.NONE, (what, packet)
                continue
            columns = slice(packet.first_column, packet.first_column + packet.columns)
            outcome = accelerator.run_packet(
                packet.data, x.T[columns] if packet.load_activations else None
            )
            assert (outcome.error, outcome.position) == (ErrorKind.NONE, 0), (what, packet)
            assert outcome.multiplied == packet.multiplied, (what, packet)
            assert outcome.code_bits == packet.code_bits, (what, packet)
            fields = read_header(packet.data)
            assert fields["payload_words"] == packet.payload_words, (what, packet)
            if not fields["more"] and not packet.is_spacer:
                assert packet.first_row == sum(map(len, held[packet.layer])), (what, packet)
                held[packet.layer].append(outcome.results)
        for number, expected in enumerate(results):
            found = np.concatenate(held[number])
            np.testing.assert_array_equal(found, expected, f"{what}, layer {number}")


def weights_in(image: HardwareImage) -> dict[str, np.ndarray]:
    """Read the integers of an image of `build_matrices`: its answers to unit vectors."""
    accelerator = setup(image)
    batch = image.params.batch
    held: dict[str, list[np.ndarray]] = {}
    for packet in image.packets:
        if not isinstance(packet, MatrixPacket):
            assert accelerator.run_packet(packet.data).error is ErrorKind.NONE, packet
            continue
        columns = []
        for first in range(0, packet.columns, batch):
            x = np.eye(packet.columns, batch, -first, dtype=np.int8)
            outcome = accelerator.run_packet(packet.data, x)
            assert outcome.error is ErrorKind.NONE, packet
            columns.append(outcome.results)
        held.setdefault(packet.name, []).append(np.hstack(columns)[:, : packet.columns])
    return {name: np.vstack(parts) for name, parts in held.items()}


@pytest.mark.parametrize("codes", ["auto", "eg-k", "eg-run", "eg-table", "eg-0", "eg-7", "eg-2"])
@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES)
def test_image_computes_what_the_network_computes(params: AcceleratorParams, codes: str) -> None:
    if codes == "eg-run" and codes not in params.codes:
        with pytest.raises(EgretError, match="found none that parameter set few-codes knows"):
            build_image(random_network(0), params, codes=codes)
        return
    for seed in range(4):
        made = random_network(seed)
        image = build_image(made, params, emit="all", codes=codes)
        what = f"seed {seed}, {params.name}, {codes}"
        run_network(image, made, what)
        fields = [read_header(packet.data) for packet in image.matrices]
        final = len(made.layers) - 1
        assert [each["load_activations"] for each in fields] == [1] + [0] * final, what
        assert [each["keep_activations"] for each in fields] == [1] * final + [0], what
        assert all(each["emit_results"] and each["emit_activations"] for each in fields), what
        assert [each["relu"] for each in fields] == [one.relu for one in made.layers], what
        if codes in ("eg-run", "eg-0", "eg-7", "eg-2"):
            assert {packet.code for packet in image.matrices} == {codes}, what


def test_only_the_last_layer_sends_by_default() -> None:
    image = build_image(random_network(3), PARAMS)
    fields = [read_header(packet.data) for packet in image.matrices]
    assert [each["emit_results"] for each in fields] == [0] * 5 + [1]
    assert not any(each["emit_activations"] for each in fields)


@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES)
def test_image_holds_the_integers_of_the_container(
    params: AcceleratorParams, tmp_path: Path
) -> None:
    made = random_network(10)
    made.save(tmp_path / "network.egret")
    container = read_container(tmp_path / "network.egret")
    stored = {
        one.weight_name: container.quantized(one.weight_name).values
        for one in IntegerNetwork.load(tmp_path / "network.egret").layers
    }
    found = weights_in(build_matrices(stored, params))
    assert list(found) == list(stored)
    for name, values in stored.items():
        np.testing.assert_array_equal(found[name], values, name)


def code_length(number: int, order: int) -> int:
    return 2 * (number + 2**order).bit_length() - 1 - order


def best_time(values: np.ndarray, order: int, lanes: int, width: int) -> int:
    """Beats or multiplications and sums, whichever are more, of the best cuts of all."""
    rows, columns = values.shape
    flat = values.ravel().tolist()

    def time(first: int, last: int) -> int:
        while first < last and flat[first] == 0:
            first += 1
        while last > first and flat[last - 1] == 0:
            last -= 1
        numbers = [2 * v if v >= 0 else -2 * v - 1 for v in flat[first:last]]
        bits = sum(code_length(number, order) for number in numbers)
        sums = (last - 1) // columns - first // columns + 1 if last > first else 0
        return max(-(-bits // width), sum(number != 0 for number in numbers) + sums)

    best = {0: 0}
    for _ in range(lanes):
        following: dict[int, int] = {}
        for first, so_far in best.items():
            for last in range(first, len(flat) + 1):
                cost = max(so_far, time(first, last))
                following[last] = min(cost, following.get(last, cost))
        best = following
    return best[rows * columns]


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 8])
def test_no_cuts_are_better(lanes: int, width: int) -> None:
    params = replace(PARAMS, lanes=lanes, parser_bits=width, parser_cut=width, batch=1)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
        values = (rng.integers(-9, 10, shape) * rng.integers(0, 2, shape)).astype(np.int32)
        packet = build_matrices({"m": values}, params, codes="eg-1").matrices[0]
        if not packet.zigzag:
            continue
        beats = max(-(-bits // width) for bits in packet.substream_bits)
        found = max(beats, *packet.lane_work)
        assert found == best_time(values, 1, lanes, width), f"seed {seed}"


def test_slots_of_a_lane_last_equally_long() -> None:
    rng = np.random.default_rng(5)
    values = np.rint(rng.laplace(size=(60, 60)) * 3).astype(np.int32)
    params = replace(PARAMS, lanes=2, parser_bits=16, parser_cut=2, bus_bits=128)
    packet = build_matrices({"m": values}, params).matrices[0]
    bits = np.array(packet.substream_bits)
    assert bits.size == 16
    assert bits.max() <= 1.03 * bits.mean(), bits


def test_a_matrix_takes_twelve_words_beside_its_payload() -> None:
    params = PRESETS["m-ddr3"]
    rng = np.random.default_rng(6)
    values = np.rint(rng.laplace(size=(64, 172)) * 0.3).astype(np.int32)
    for packet in build_matrices({"m": values, "n": values}, params).matrices:
        assert len(packet.data) == 8 * (packet.payload_words + 12)
    wide = rng.integers(1, 3, (1023, 1023)).astype(np.int32)
    packet = build_matrices({"m": wide}, params).matrices[0]
    assert read_header(packet.data)["wide_starts"] == 1
    assert len(packet.data) == 8 * (packet.payload_words + 20)


def cycles(image: HardwareImage) -> float:
    beat = image.params.lanes * image.params.parser_bits
    return sum(
        max(packet.code_bits / beat, packet.multiplied / image.params.lanes)
        for packet in image.matrices
    )


@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES)
def test_auto_is_not_slower_than_any_single_choice(params: AcceleratorParams) -> None:
    for seed in range(20, 24):
        rng = np.random.default_rng(seed)
        matrices = {f"m{place}": random_matrix(rng, (40, 50)) for place in range(3)}
        names = ["eg-k", "eg-table", *(f"eg-{order}" for order in range(8))]
        names += ["eg-run"] if "eg-run" in params.codes else []
        chosen = cycles(build_matrices(matrices, params))
        single = {name: cycles(build_matrices(matrices, params, codes=name)) for name in names}
        # Pieces are cut elsewhere, and their first runs are not counted in the choice.
        assert chosen <= min(single.values()) * 1.01 + 2, (seed, chosen, single)


def test_codes_that_are_shared_stay_and_few_matrices_get_no_code_of_their_own() -> None:
    rng = np.random.default_rng(7)
    dense = np.rint(rng.normal(size=(60, 60)) * 20).clip(-60, 60).astype(np.int32)
    sparse = rng.choice([1, -1, 0], (60, 60), p=[0.03, 0.03, 0.94]).astype(np.int32)
    matrices = {"a": dense, "b": sparse, "c": dense, "d": sparse}
    kinds = {
        parser: [packet.kind.name for packet in build_matrices(matrices, params).setup]
        for parser, params in SHAPES.items()
    }
    assert kinds["packed"].count("CODE") == 2
    assert kinds["microcode"].count("CODE") == 1
    image = build_matrices(matrices, PARAMS)
    banks = [read_header(packet.data)["code_bank"] for packet in image.matrices]
    assert banks[0] == banks[2] != banks[1] == banks[3]
    both = (
        build_matrices({"a": dense}, PARAMS).matrices
        + build_matrices({"b": sparse}, PARAMS).matrices
    )
    assert sum(packet.code_bits for packet in both) * 2 == pytest.approx(
        sum(packet.code_bits for packet in image.matrices), rel=0.01
    )


def test_a_code_is_loaded_between_matrices_where_that_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = SHAPES["microcode"]
    rng = np.random.default_rng(8)
    matrices = {
        name: np.rint(rng.normal(size=(50, 50)) * scale).clip(-60, 60).astype(np.int32)
        for name, scale in (("a", 20), ("b", 20), ("c", 0.2), ("d", 0.2))
    }
    assert all(
        packet.kind is PacketKind.MATRIX for packet in build_matrices(matrices, params).packets
    )
    monkeypatch.setattr(image_plan, "_MICROCODE_CYCLES", 10)
    image = build_matrices(matrices, params)
    assert [packet.kind.name for packet in image.packets] == [
        "CODE",
        "MATRIX",
        "MATRIX",
        "CODE",
        "MATRIX",
        "MATRIX",
    ]
    for name, found in weights_in(image).items():
        np.testing.assert_array_equal(found, matrices[name], name)


def test_small_levels_that_do_not_occur_take_no_codewords() -> None:
    rng = np.random.default_rng(9)
    # Pruned: no magnitudes below 20. Too many matrices for a map each.
    matrices = {}
    for place in range(10):
        values = np.rint(rng.laplace(size=(50, 50)) * 20).clip(-60, 60).astype(np.int32)
        matrices[f"m{place}"] = np.where(abs(values) < 20, 0, values)
    image = build_matrices(matrices, PARAMS)
    maps = [packet for packet in image.setup if packet.kind is PacketKind.MAP]
    assert [packet.name for packet in maps[:1]] == ["shared map"]
    assert not any(packet.zigzag for packet in image.matrices)
    zigzag = build_matrices(matrices, replace(PARAMS, map_depth=128, row_depth=128), codes="eg-run")
    assert cycles(image) <= cycles(zigzag)
    for name, found in weights_in(image).items():
        np.testing.assert_array_equal(found, matrices[name], name)


def wide_layers(count: int, size: int, distinct: int, seed: int) -> list[np.ndarray]:
    """Matrices that need a map: few values, of which some are beyond the range of the zigzag."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        values = np.concatenate(([2047], rng.choice(np.arange(1, 2000), distinct - 1, False)))
        made.append(values[rng.integers(0, distinct, (size, size))])
    return made


@pytest.mark.parametrize(("distinct", "spacers"), [(40, 0), (60, 6), (120, 12)])
def test_maps_that_do_not_fit_together_take_turns(distinct: int, spacers: int) -> None:
    matrices = wide_layers(6, 20, distinct, seed=11)
    made = network(*(layer(values, f"layer{n}") for n, values in enumerate(matrices)))
    image = build_image(made, PARAMS, codes="eg-run")
    assert [packet.kind.name for packet in image.setup] == ["CODE"]
    assert len(image.matrices) - 6 <= spacers
    assert (len(image.matrices) > 6) == (spacers > 0)
    run_network(build_image(made, PARAMS, codes="eg-run", emit="all"), made, passes=3)


@pytest.mark.parametrize("codes", ["auto", "eg-k", "eg-table"])
@pytest.mark.parametrize("largest", [1, 3])
def test_biases_that_do_not_fit_together_take_turns(largest: int, codes: str) -> None:
    # With values of -1 to 1 a table may have fewer codewords than a spacer needs.
    rng = np.random.default_rng(12)
    params = replace(PARAMS, row_depth=64)
    made = network(
        *(
            layer(
                rng.integers(-largest, largest + 1, (64, 64)),
                f"layer{n}",
                rng.normal(size=64).astype(np.float32),
            )
            for n in range(4)
        )
    )
    image = build_image(made, params, codes=codes)
    assert not any(packet.kind is PacketKind.BIAS for packet in image.setup)
    assert len(image.matrices) > 4
    run_network(image, made, passes=3)


@pytest.mark.parametrize("codes", ["auto", "eg-2", "eg-table"])
@pytest.mark.parametrize("sizes", [(200, 30), (64, 300), (200, 300), (65, 40, 300), (129, 3, 3)])
def test_large_matrices_become_tiles(sizes: tuple[int, ...], codes: str) -> None:
    rng = np.random.default_rng(13)
    made = network(
        *(
            layer(
                np.rint(rng.laplace(size=(rows, columns))),
                f"layer{number}",
                rng.normal(size=rows).astype(np.float32),
            )
            for number, (columns, rows) in enumerate(pairwise(sizes))
        )
    )
    image = build_image(made, PARAMS, codes=codes)
    run_network(image, made)
    first = [packet for packet in image.matrices if packet.layer == 0 and not packet.is_spacer]
    assert len(first) == -(-sizes[0] // 64) * (-(-sizes[1] // 128) if len(sizes) == 2 else 1)
    last = [read_header(packet.data) for packet in image.matrices if packet.layer > 0]
    assert not any(fields["load_activations"] for fields in last)


@pytest.mark.parametrize("columns", [1, 2, 63, 64])
@pytest.mark.parametrize("codes", ["auto", "eg-0", "eg-run", "eg-table"])
def test_corners(columns: int, codes: str) -> None:
    rng = np.random.default_rng(14)
    matrices = {
        "one weight": np.eye(1, columns, columns - 1),
        "zeros": np.zeros((3, columns)),
        "last of many": np.eye(128, columns, columns - 128),
        "no zeros": rng.choice([-3, 5], (100, columns)),
        "widest": rng.choice([-2048, 2047], (7, columns)),
    }
    whole = {name: values.astype(np.int32) for name, values in matrices.items()}
    for params in (PARAMS, replace(PARAMS, suffix_limit=7, parser_cut=4)):
        for name, found in weights_in(build_matrices(whole, params, codes=codes)).items():
            np.testing.assert_array_equal(found, whole[name], name)


def test_long_runs_are_interrupted_by_fillers() -> None:
    params = replace(PARAMS, suffix_limit=4, map_depth=16, lanes=1, parser_cut=4)
    values = np.zeros((60, 64), np.int32)
    values[0, 0] = values[20, 3] = values[59, 63] = 3
    for codes in ("eg-run", "eg-table", "auto"):
        image = build_matrices({"m": values}, params, codes=codes)
        np.testing.assert_array_equal(weights_in(image)["m"], values, codes)
        assert image.matrices[0].multiplied == 3
        if codes == "eg-run":
            # Runs are at most 30, so that the second and the third weight have fillers before them.
            assert image.matrices[0].lane_work[0] > 3 + 60 + 60


REFUSED: dict[str, tuple[AcceleratorParams, list[np.ndarray], str]] = {
    "rows of an inner layer": (
        PARAMS,
        [np.zeros((65, 5)), np.zeros((1, 65))],
        "layer0: 65 rows, whose results are the next layer's inputs, expected at most "
        "activation_depth = 64 of parameter set packed",
    ),
    "inner columns": (
        PARAMS,
        [np.zeros((60, 5)), np.zeros((100, 60)), np.zeros((5, 100))],
        "layer1: 100 rows, whose results are the next layer's inputs",
    ),
    "distinct weights": (
        PARAMS,
        [np.zeros((3, 5)), np.arange(-96, 96).reshape(64, 3)],
        "layer1: 192 distinct weights do not fit the value map, expected at most 128",
    ),
    "positive weight": (
        PARAMS,
        [np.array([[0, 2048]])],
        "layer0: weight 2048 does not fit 12 bits, expected -2048 to 2047",
    ),
    "negative weight": (
        PARAMS,
        [np.array([[-2049, 0]])],
        "layer0: weight -2049 does not fit 12 bits, expected -2048 to 2047",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_with_the_layers_name(what: str) -> None:
    params, matrices, message = REFUSED[what]
    made = network(*(layer(values, f"layer{number}") for number, values in enumerate(matrices)))
    with pytest.raises(CapacityError) as caught:
        build_image(made, params)
    assert message in str(caught.value)


def test_matrices_that_are_none_are_refused() -> None:
    with pytest.raises(EgretError, match="found no matrices, expected at least one"):
        build_matrices({}, PARAMS)
    with pytest.raises(EgretError, match=r"m: found shape \(3,\), expected rows and columns"):
        build_matrices({"m": np.zeros(3, np.int32)}, PARAMS)
    with pytest.raises(EgretError, match=r"m: found shape \(3, 0\), expected rows and columns"):
        build_matrices({"m": np.zeros((3, 0), np.int32)}, PARAMS)
    huge = np.full((1, 20000), 2047, np.int32)
    with pytest.raises(CapacityError, match="m: a result can reach 5240320000, outside an int32"):
        build_matrices({"m": huge}, PARAMS)


def test_codes_that_are_not_known_are_refused() -> None:
    only = replace(PARAMS, codes=("eg-k",))
    made = random_network(1)
    with pytest.raises(EgretError, match="codes: found none that parameter set packed knows"):
        build_image(made, only, codes="eg-run")
    with pytest.raises(EgretError, match="codes: found 'eg-9', expected"):
        build_image(made, only, codes="eg-9")
    run_network(build_image(made, only, emit="all", codes=Codes.AUTO), made)


def test_what_just_fits_is_packed() -> None:
    tight = network(layer(np.arange(-64, 64).reshape(2, 64) * 16, "columns"))
    run_network(build_image(tight, PARAMS, emit="all"), tight)
    tall = network(layer(np.ones((128, 5)), "rows"))
    assert [packet.rows for packet in build_image(tall, PARAMS).matrices] == [128]
    full = network(layer(np.array([[-2048, 2047]]), "weights"))
    run_network(build_image(full, PARAMS), full)


@pytest.mark.parametrize("preset", PRESETS)
def test_command_writes_the_image_as_bytes_and_as_hex(preset: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(15)
    made = network(
        layer(rng.integers(-3, 4, (20, 30)), "first", rng.normal(size=20).astype(np.float32)),
        layer(rng.integers(-3, 4, (5, 20)), "second"),
    )
    made.save(tmp_path / "network.egret")
    for suffix in ("bin", "hex"):
        main(
            [
                "image",
                str(tmp_path / "network.egret"),
                "--preset",
                preset,
                "-o",
                str(tmp_path / f"image.{suffix}"),
            ]
        )
    params = PRESETS[preset]
    image = build_image(made, params)
    data = (tmp_path / "image.bin").read_bytes()
    assert data == image.data
    size = params.bus_bits // 8
    lines = (tmp_path / "image.hex").read_text().splitlines()
    assert {len(line) for line in lines} == {2 * size}
    assert b"".join(int(line, 16).to_bytes(size, "little") for line in lines) == data
    listing = json.loads((tmp_path / "image.json").read_text())
    assert (listing["params"], listing["bus_bits"]) == (preset, params.bus_bits)
    found = [
        data[size * entry["first"] : size * (entry["first"] + entry["words"])]
        for part in ("setup", "packets")
        for entry in listing[part]
    ]
    assert found == split_packets(data, params)
    assert [entry["name"] for entry in listing["packets"]] == ["first", "second"]
    assert [entry["load_activations"] for entry in listing["packets"]] == [True, False]


def test_command_names_the_file_of_a_layer_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.egret"
    network(layer(np.array([[5000]]), "wide")).save(path)
    assert main(["image", str(path), "-o", str(tmp_path / "image.bin")]) == 1
    message = capsys.readouterr().err
    assert f"{path}: layer wide: weight 5000 does not fit 12 bits" in message
    assert not (tmp_path / "image.bin").exists()
    assert main(["image", str(path), "-o", str(tmp_path / "image.json")]) == 1
    assert "is the name of the list of packets" in capsys.readouterr().err
