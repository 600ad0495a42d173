import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from egret.container import read_container
from egret.errors import CapacityError, EgretError, FormatError
from egret.network import IntegerLayer, IntegerNetwork
from egret.packing import write_packed
from egret.quantize import QuantizedTensor


def _layer(
    rows: int, columns: int, name: str, scales: tuple[float, float], seed: int = 5
) -> IntegerLayer:
    rng = np.random.default_rng(seed)
    return IntegerLayer(
        name=name,
        weight=QuantizedTensor(rng.integers(-9, 10, (rows, columns)).astype(np.int32), 8),
        bias=rng.normal(0, 0.1, rows).astype(np.float32),
        input_scale=scales[0],
        output_scale=scales[1],
        multiplier=40000,
        shift=20,
        relu=True,
    )


def _network() -> IntegerNetwork:
    second = _layer(3, 5, "second", (0.1, 0.3))
    return IntegerNetwork(
        "test", (_layer(5, 4, "first", (1 / 127, 0.1)), replace(second, bias=None, relu=False))
    )


def test_save_and_load_give_equal_networks_and_bytes(tmp_path: Path) -> None:
    network = _network()
    network.save(tmp_path / "a.egret", codes="eg-0")
    again = IntegerNetwork.load(tmp_path / "a.egret")
    assert again.name == "test"
    assert (again.input_features, again.output_features, again.weights) == (4, 3, 35)
    for layer, loaded in zip(network.layers, again.layers, strict=True):
        for field in ("name", "input_scale", "output_scale", "multiplier", "shift", "relu"):
            assert getattr(layer, field) == getattr(loaded, field)
        np.testing.assert_array_equal(layer.weight.values, loaded.weight.values)
        assert loaded.weight.step_log2 == 8
        np.testing.assert_array_equal(
            np.asarray(layer.bias_integer), np.asarray(loaded.bias_integer)
        )
    again.save(tmp_path / "b.egret", codes="eg-0")
    assert (tmp_path / "a.egret").read_bytes() == (tmp_path / "b.egret").read_bytes()


def test_layers_with_equal_tensors_share_them(tmp_path: Path) -> None:
    first = _layer(4, 4, "first", (0.1, 0.1))
    network = IntegerNetwork("twins", (first, replace(first, name="second")))
    network.save(tmp_path / "n.egret")
    container = read_container(tmp_path / "n.egret")
    assert container.coded_names == ("first.weight",)
    assert container.raw_names == ("first.bias",)
    again = IntegerNetwork.load(tmp_path / "n.egret")
    for layer in again.layers:
        np.testing.assert_array_equal(layer.weight.values, first.weight.values)
        np.testing.assert_array_equal(np.asarray(layer.bias), np.asarray(first.bias))


def test_input_is_rounded_to_even_and_saturated() -> None:
    network = IntegerNetwork("test", (_layer(5, 4, "first", (0.5, 0.1)),))
    x = network.quantize_input([[0.25, 0.75, -0.25, 0.26], [1e9, -1e9, 63.5, -64.0]])
    assert x.dtype == np.int8
    np.testing.assert_array_equal(x, [[0, 2, 0, 1], [127, -128, 127, -128]])
    np.testing.assert_array_equal(network.quantize_input(np.zeros((2, 2, 2))), np.zeros((2, 4)))


def test_wrong_input_is_named() -> None:
    with pytest.raises(EgretError, match=r"shape \(2, 3\), expected \(n, 4\)"):
        _network().quantize_input(np.zeros((2, 3)))
    with pytest.raises(EgretError, match=r"input\[1, 2\] is nan"):
        _network().quantize_input(np.array([[0.0, 0, 0, 0], [0, 0, np.nan, 0]]))


def test_bias_is_in_units_of_the_accumulator() -> None:
    layer = replace(
        _layer(3, 4, "layer", (0.5, 0.1)),
        bias=np.array([1.0, 3.5 / 512, -0.1 / 512], dtype=np.float32),
    )
    assert layer.accumulator_scale == 0.5 / 256
    assert layer.bias_integer is not None
    assert layer.bias_integer.dtype == np.int32
    np.testing.assert_array_equal(layer.bias_integer, [512, 4, 0])


def test_results_that_might_not_fit_are_refused_exactly_at_the_limit() -> None:
    # Row 0 reaches 127 · 2 + bias at most, and -128 · 2 + bias at least.
    weight = QuantizedTensor(np.array([[2]], dtype=np.int32), 0)
    base = IntegerLayer("edge", weight, None, 128.0, 1.0, 1, 0, False)

    def with_bias(bias: int) -> IntegerLayer:
        value = np.array([bias * 128.0], dtype=np.float32)
        assert int(value[0]) == bias * 128
        return replace(base, bias=value)

    top, bottom = 2**31 - 256, -(2**31) + 256
    assert with_bias(top).bias_integer == [top]
    assert with_bias(bottom).bias_integer == [bottom]
    with pytest.raises(CapacityError, match="layer 'edge': row 0"):
        _ = with_bias(top + 128).bias_integer
    with pytest.raises(CapacityError, match="layer 'edge': row 0"):
        _ = with_bias(bottom - 256).bias_integer
    with pytest.raises(CapacityError, match="layer 'edge'"):
        IntegerNetwork("test", (with_bias(2**40),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiplier": 65536}, "multiplier: found 65536"),
        ({"multiplier": True}, "multiplier: found True"),
        ({"shift": 64}, "shift: found 64"),
        ({"input_scale": 0.0}, "input_scale: found 0.0"),
        ({"output_scale": float("inf")}, "output_scale: found inf"),
        ({"bias": np.zeros(4, dtype=np.float32)}, "bias: found"),
        ({"bias": np.array([0, np.nan, 0, 0, 0], dtype=np.float32)}, r"bias\[1\]: found nan"),
        ({"weight": QuantizedTensor(np.zeros(4, dtype=np.int32), 8)}, "weight: found"),
        ({"name": ""}, "name: found ''"),
    ],
)
def test_wrong_layers_are_named(change: dict, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        replace(_layer(5, 4, "layer", (0.5, 0.1)), **change)


def test_layers_that_do_not_fit_together_are_named() -> None:
    first = _layer(5, 4, "first", (0.5, 0.1))
    with pytest.raises(EgretError, match="'second' has 6 columns, expected the 5 rows"):
        IntegerNetwork("test", (first, _layer(3, 6, "second", (0.1, 0.1))))
    with pytest.raises(EgretError, match=r"input scale 0\.2, expected the output scale 0\.1"):
        IntegerNetwork("test", (first, _layer(3, 5, "second", (0.2, 0.1))))
    with pytest.raises(EgretError, match="two layers are named 'first'"):
        IntegerNetwork("test", (first, _layer(3, 5, "first", (0.1, 0.1))))
    with pytest.raises(EgretError, match="found no layers"):
        IntegerNetwork("test", ())


def _change(description: dict, path: tuple, value: object) -> bytes:
    target = description
    for key in path[:-1]:
        target = target[key]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return json.dumps(description).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version: found 2, expected 1"),
        (("layers",), {}, "layers: found"),
        (("layers",), [], "found no layers"),
        (("layers",), [1], "layer 0: found int, expected an object"),
        (("layers", 0, "shift"), None, "layer 0: key 'shift' is missing"),
        (("layers", 0, "extra"), 1, "layer 0: key 'extra' is unknown"),
        (("layers", 0, "relu"), 1, "layer 0: relu: found 1, expected bool"),
        (("layers", 1, "shift"), True, "layer 1: shift: found True, expected int"),
        (("layers", 1, "shift"), 99, "'second': shift: found 99"),
        (("layers", 1, "input_scale"), "zero", "input_scale: found 'zero'"),
        (("layers", 1, "input_scale"), "0x1p+5", "input scale 32.0, expected"),
        (("layers", 1, "input_scale"), "inf", "input_scale: found inf"),
        (("layers", 1, "name"), "third", "tensor 'third.weight' is not in the file"),
        (("layers", 1, "bias"), True, "tensor 'second.bias' is not in the file"),
    ],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, path: tuple, value: object, message: str
) -> None:
    good, bad = tmp_path / "good.egret", tmp_path / "bad.egret"
    _network().save(good)
    container = read_container(good)
    assert container.network is not None
    write_packed(
        bad,
        {name: container.quantized(name) for name in container.coded_names},
        {name: container.raw(name) for name in container.raw_names},
        network=_change(json.loads(container.network), path, value),
    )
    with pytest.raises(FormatError, match=message) as caught:
        IntegerNetwork.load(bad)
    assert str(bad) in str(caught.value)


def test_a_file_without_a_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensors.egret"
    tensor = QuantizedTensor(np.zeros((2, 2), dtype=np.int32), 8)
    write_packed(path, {"a.weight": tensor}, {})
    with pytest.raises(FormatError, match="no network"):
        IntegerNetwork.load(path)
    write_packed(path, {"a.weight": tensor}, {}, network=b"{")
    with pytest.raises(FormatError, match="not JSON"):
        IntegerNetwork.load(path)
    write_packed(path, {"a.weight": tensor}, {}, network=b"[]")
    with pytest.raises(FormatError, match="found list, expected an object"):
        IntegerNetwork.load(path)
