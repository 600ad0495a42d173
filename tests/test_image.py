"""The packer: the image holds the container's integers, and says what does not fit.

The image is read by the golden model, which shares no code with the packer.
"""

from dataclasses import replace
from pathlib import Path

import crc32c as independent_crc
import numpy as np
import pytest

from egret.container import read_container
from egret.errors import CapacityError
from egret.image import MatrixPacket, build_image
from egret.image_format import ErrorKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_sim.golden import GoldenAccelerator, descriptor_fault, read_descriptor, split_packets

PARAMS = AcceleratorParams(
    name="packed",
    lanes=2,
    parser_bits=4,
    parser_cut=2,
    bus_bits=32,
    batch=16,
    map_depth=64,
    activation_depth=64,
    row_depth=128,
)
WIDE = replace(PARAMS, name="wide", lanes=8, parser_cut=4, bus_bits=128, weight_bits=16)


def layer(
    values: np.ndarray, name: str = "layer", bias: np.ndarray | None = None, relu: bool = False
) -> IntegerLayer:
    return IntegerLayer(
        name=name,
        weight=QuantizedTensor(values.astype(np.int32), 8),
        bias=bias,
        input_scale=0.05,
        output_scale=0.05,
        multiplier=40000,
        shift=20,
        relu=relu,
    )


def network(*layers: IntegerLayer) -> IntegerNetwork:
    return IntegerNetwork("network", layers)


def weights_in(packet: MatrixPacket, params: AcceleratorParams, bias: np.ndarray) -> np.ndarray:
    """Read a packet's integers: its answers to unit vectors, after the bias has been taken off."""
    word = params.bus_bits // 8
    body = bytearray(packet.data[:-word])
    body[4] = (body[4] | 0b1001) & ~0b100  # load activations, emit results, keep nothing
    data = bytes(body) + independent_crc.crc32c(bytes(body)).to_bytes(word, "little")
    golden = GoldenAccelerator(params)
    columns = []
    for first in range(0, packet.columns, params.batch):
        x = np.eye(packet.columns, params.batch, -first, dtype=np.int8)
        outcome = golden.run_packet(data, x)
        assert outcome.error is ErrorKind.NONE
        columns.append(outcome.results - bias[:, None])
    return np.hstack(columns)[:, : packet.columns]


def random_network(seed: int) -> IntegerNetwork:
    """Layers of every kind: sparse, zero not the most frequent value, all zero, one row."""
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(2, 50, 4)] + [1, 9]
    kinds = [
        lambda shape: np.rint(rng.laplace(size=shape) * 0.7),
        lambda shape: rng.choice([-5, 1, 0], shape, p=[0.6, 0.3, 0.1]),
        lambda shape: np.zeros(shape),
        lambda shape: rng.integers(-31, 32, shape),
        lambda shape: rng.choice([-2048, 2047, 0], shape, p=[0.2, 0.2, 0.6]),
    ]
    return network(
        *(
            layer(
                kinds[number]((sizes[number + 1], sizes[number])),
                f"layer{number}",
                rng.normal(size=sizes[number + 1]).astype(np.float32) if number % 2 else None,
                relu=bool(rng.integers(2)),
            )
            for number in range(5)
        )
    )


@pytest.mark.parametrize("order", [None, *range(8)])
@pytest.mark.parametrize("params", [PARAMS, WIDE], ids=lambda params: params.name)
def test_image_holds_the_integers_of_the_container(
    params: AcceleratorParams, order: int | None, tmp_path: Path
) -> None:
    seed = 10 if order is None else order
    made = random_network(seed)
    made.save(tmp_path / "network.egret")
    container = read_container(tmp_path / "network.egret")
    image = build_image(IntegerNetwork.load(tmp_path / "network.egret"), params, order=order)
    assert split_packets(image.data, params) == [packet.data for packet in image.packets]
    for number, packet in enumerate(image.packets):
        what = f"seed {seed}, {packet.name}"
        assert descriptor_fault(packet.data, params) is None, what
        fields = read_descriptor(packet.data)
        assert fields["load_activations"] == (number == 0), what
        assert fields["keep_activations"] == (number < 4), what
        assert (fields["emit_results"], fields["emit_activations"]) == (number == 4, 0), what
        assert order is None or fields["order"] == order == packet.order, what
        held = made.layers[number].bias_integer
        bias = np.zeros(packet.rows, np.int64) if held is None else held.astype(np.int64)
        found = weights_in(packet, params, bias)
        stored = container.quantized(f"{packet.name}.weight").values
        np.testing.assert_array_equal(found[:, : stored.shape[1]], stored, what)
        assert not found[:, stored.shape[1] :].any(), what
        assert found.shape[1] == max(params.parser_bits, stored.shape[1]), what


def test_the_cheapest_order_is_chosen() -> None:
    made = random_network(20)
    chosen = build_image(made, PARAMS)
    fixed = [build_image(made, PARAMS, order=order) for order in range(8)]
    for number, packet in enumerate(chosen.packets):
        sizes = [len(image.packets[number].data) for image in fixed]
        assert packet.code_bits <= min(image.packets[number].code_bits for image in fixed)
        assert len(packet.data) <= min(sizes) + 4 * PARAMS.bus_bits // 8, (packet.name, sizes)


def test_rows_are_dealt_evenly() -> None:
    rng = np.random.default_rng(1)
    # One heavy row beside light ones: dealt by number, its substream would be much the longest.
    values = np.zeros((16, 40))
    values[0] = rng.integers(-31, 32, 40)
    packet = build_image(network(layer(values)), PARAMS).packets[0]
    heavy = packet.code_bits - 15 * 40 * (packet.order + 1)
    assert packet.payload_words <= -(-heavy * PARAMS.substreams // PARAMS.bus_bits) + 1


REFUSED: dict[str, tuple[AcceleratorParams, list[np.ndarray], str]] = {
    "columns": (PARAMS, [np.zeros((3, 65))], "layer0: 65 columns, expected at most activation_dep"),
    "rows": (PARAMS, [np.zeros((129, 5))], "layer0: 129 rows, expected at most row_depth = 128"),
    "rows of an inner layer": (
        PARAMS,
        [np.zeros((65, 5)), np.zeros((1, 65))],
        "layer0: 65 rows, expected at most activation_depth = 64",
    ),
    "inner columns": (
        PARAMS,
        [np.zeros((60, 5)), np.zeros((100, 60)), np.zeros((5, 100))],
        "layer1: 100 rows, expected at most activation_depth = 64",
    ),
    "distinct weights": (
        PARAMS,
        [np.zeros((3, 5)), np.arange(-48, 48).reshape(32, 3)],
        "layer1: 96 distinct weights do not fit the value map, expected at most 64",
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


def test_what_just_fits_is_packed() -> None:
    tight = layer(np.arange(-32, 32).reshape(1, 64) * 64, "columns")
    assert build_image(network(tight), PARAMS).packets[0].columns == 64
    tall = layer(np.ones((128, 5)), "rows")
    assert build_image(network(tall), PARAMS).packets[0].rows == 128
    full = layer(np.array([[-2048, 2047]]), "weights")
    packet = build_image(network(full), PARAMS).packets[0]
    np.testing.assert_array_equal(
        weights_in(packet, PARAMS, np.zeros(1, int)), [[-2048, 2047, 0, 0]]
    )
