import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import egret
from egret.compiler import compile_network, fixed_point
from egret.errors import CapacityError, EgretError, QuantizationError
from egret.network import IntegerNetwork


def _forward(network: IntegerNetwork, x: np.ndarray) -> np.ndarray:
    """Return the float outputs of the integers, by the formulas alone, in Python integers."""
    activations = network.quantize_input(x).astype(object)
    result = activations
    for layer in network.layers:
        result = activations @ layer.weight.values.astype(object).T
        if layer.bias_integer is not None:
            result = result + layer.bias_integer.astype(object)
        half = 2 ** (layer.shift - 1) if layer.shift else 0
        activations = (result * layer.multiplier + half) // 2**layer.shift
        activations = np.clip(activations, -128, 127)
        if layer.relu:
            activations = np.maximum(activations, 0)
    return result.astype(np.float64) * network.layers[-1].accumulator_scale


def _randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 30)
        self.second = nn.Linear(30, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.first(x.flatten(1)))
        return self.second(nn.functional.dropout(x, training=self.training))


def _models() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)),
        nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.Identity(), nn.Linear(30, 10)),
        nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10)),
        nn.Sequential(
            nn.BatchNorm1d(20, affine=False),
            nn.Linear(20, 30, bias=False),
            nn.BatchNorm1d(30),
            nn.ReLU(),
            nn.BatchNorm1d(30),
            nn.Dropout(0.5),
            nn.Linear(30, 10, bias=False),
        ),
        _Functional(),
        nn.Linear(20, 10),
    ]


@pytest.mark.parametrize("number", range(6))
def test_integers_follow_the_float_model(number: int) -> None:
    seed = 17
    torch.manual_seed(seed)
    model = _models()[number]
    _randomise_norms(model)
    x = torch.randn(500, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = compile_network(model, x, step_log2=10, weight_bits=16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"
    model.eval()
    with torch.no_grad():
        expected = model(x).double().numpy()
    found = _forward(network, x.numpy())
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    # Three roundings to 8 bits, each about 1 % of the signal's spread.
    assert error < 0.03, f"seed {seed}: relative error {error:.4f}"


def test_export_and_names() -> None:
    model = _Functional()
    network = egret.compile(model, torch.rand(9, 4, 5))
    assert network.name == "_Functional"
    assert [layer.name for layer in network.layers] == ["first", "second"]
    assert [layer.relu for layer in network.layers] == [True, False]
    assert network.layers[1].bias is None
    assert compile_network(model, torch.rand(9, 20), name="mine").name == "mine"


def test_scales_follow_from_the_calibration() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(2))
    x = torch.tensor([[0.0, 5.08], [2.54, -1.0]])
    (layer,) = compile_network(model, x).layers
    assert layer.input_scale == pytest.approx(5.08 / 127)
    assert layer.relu
    np.testing.assert_array_equal(layer.weight.values, [[256, 0], [0, 256]])
    ratio = layer.input_scale / 256 / layer.output_scale
    assert layer.multiplier / 2**layer.shift == pytest.approx(ratio, rel=2**-16)
    # One huge output among few: clipping it would cost more than a finer step gains.
    outlier = torch.cat([torch.rand(50, 2), torch.tensor([[8.0, 0.0]])])
    assert compile_network(model, outlier).layers[0].output_scale == pytest.approx(8 / 127)
    # Very many that a step of 0.8/127 hits exactly: clipping the one at 1 is the least error.
    even = torch.arange(60_000).remainder(128).reshape(-1, 2) * (0.8 / 127)
    clipped = torch.cat([even, torch.tensor([[1.0, 0.0]])])
    assert compile_network(model, clipped).layers[0].output_scale == pytest.approx(0.8 / 127)


def test_steps_by_tensor() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    network = compile_network(model, torch.rand(8, 4), step_log2={"2.weight": 5})
    assert [layer.weight.step_log2 for layer in network.layers] == [8, 5]
    expected = np.rint(model.get_parameter("2.weight").detach().numpy().astype(float) * 32)
    np.testing.assert_array_equal(network.layers[1].weight.values, expected)
    with pytest.raises(EgretError, match=r"no tensor is named '1\.weight'"):
        compile_network(model, torch.rand(8, 4), step_log2={"1.weight": 5})


@pytest.mark.parametrize(
    "ratio", [1.0, 0.5, 0.001, 1 / 3, 65535.0, 300.5, 2.0**-48, 2.0**-60, 0.9999999, 2.0**-63]
)
def test_fixed_point_is_the_nearest_at_its_shift(ratio: float) -> None:
    multiplier, shift = fixed_point(ratio)
    assert 1 <= multiplier < 2**16
    assert 0 <= shift <= 63
    if ratio >= 2.0**-48:
        assert multiplier >= 2**15
    error = abs(Fraction(ratio) - Fraction(multiplier, 2**shift))
    assert error <= Fraction(1, 2**shift) / 2


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf, 65536.0, 2.0**-65])
def test_ratios_out_of_reach_are_refused(ratio: float) -> None:
    with pytest.raises(CapacityError, match="requantiser's ratio: found"):
        fixed_point(ratio)


class _Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x


class _Twice(_Skip):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


class _Branches(_Skip):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


class _Fork(_Skip):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.relu(x)
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), "module '1': found Sigmoid, expected"),
        (nn.Sequential(nn.Conv1d(4, 4, 1)), "module '0': found Conv1d"),
        (_Skip(), "operation 'add'"),
        (_Twice(), "module 'layer' is used twice"),
        (_Branches(), "_Branches: cannot be traced"),
        (_Fork(), "does not follow operation 'relu' alone|found ReLU without"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), "found ReLU without a Linear"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)), "module '2': found Batch"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
            "without running statistics",
        ),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 4)), "found flatten from 0 to -1"),
        (nn.Sequential(nn.Dropout()), "found no Linear layer"),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3)), "layer '1' has 4 inputs, expected"),
    ],
)
def test_models_that_are_no_chain_are_named(model: nn.Module, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        compile_network(model, torch.rand(8, 4))


def test_bad_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    weight, bias = model.get_parameter("2.weight"), model.get_parameter("2.bias")
    with torch.no_grad():
        weight[1, 3] = 7.99
    compile_network(model, torch.rand(8, 4))
    with torch.no_grad():
        weight[1, 3] = 8.0
    with pytest.raises(QuantizationError, match=r"tensor '2\.weight'.*\[1, 3\] is 8"):
        compile_network(model, torch.rand(8, 4))
    with torch.no_grad():
        weight[1, 3] = math.nan
    with pytest.raises(QuantizationError, match=r"tensor '2\.weight'.*nan"):
        compile_network(model, torch.rand(8, 4))
    with torch.no_grad():
        weight[1, 3] = 0.0
        bias[1] = math.inf
    with pytest.raises(QuantizationError, match=r"tensor '2\.bias': element 1 is inf"):
        compile_network(model, torch.rand(8, 4))
    with torch.no_grad():
        bias[1] = 1e9
    with pytest.raises(CapacityError, match="layer '2': row 1"):
        compile_network(model, torch.rand(8, 4))


def test_bad_calibration_is_named() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(EgretError, match=r"calibration: found shape \(8, 5\)"):
        compile_network(model, torch.rand(8, 5))
    with pytest.raises(EgretError, match=r"calibration: found shape \(0, 4\)"):
        compile_network(model, torch.rand(0, 4))
    with pytest.raises(EgretError, match="calibration: found NaN"):
        compile_network(model, torch.full((2, 4), math.nan))


def test_all_zero_network_compiles() -> None:
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    network = compile_network(model, torch.zeros(3, 4))
    np.testing.assert_array_equal(_forward(network, np.zeros((1, 4))), np.zeros((1, 2)))
