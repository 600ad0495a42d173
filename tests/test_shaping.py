import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from egret.errors import EgretError
from egret.ggd import estimate_shape, fit_likelihood
from egret.shaping import draw_weights, reshape_weights


def _model(seed: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 100))


def _matrix(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(name).detach().double().numpy()


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0])
def test_initial_weights_have_the_shape_and_keep_their_scale(shape: float) -> None:
    model = _model()
    before = copy.deepcopy(model)
    draw_weights(model, shape, seed=5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, before.get_parameter(name)), name
            continue
        found, old = _matrix(model, name), _matrix(before, name)
        assert estimate_shape(found) == pytest.approx(shape, rel=0.1), f"seed 5, {name}"
        assert fit_likelihood(found)[0] == pytest.approx(shape, rel=0.1), f"seed 5, {name}"
        scale = math.sqrt(np.square(old).mean())
        assert math.sqrt(np.square(found).mean()) == pytest.approx(scale, rel=0.03)
        assert abs((found > 0).mean() - 0.5) < 0.02
    again, other = _model(), _model()
    draw_weights(again, shape, seed=5)
    draw_weights(other, shape, seed=6)
    assert torch.equal(again.get_parameter("0.weight"), model.get_parameter("0.weight"))
    assert not torch.equal(other.get_parameter("0.weight"), model.get_parameter("0.weight"))


@pytest.mark.parametrize("shape", [0.01, 0.1, 25.0])
def test_initial_weights_of_extreme_shapes_keep_their_scale_too(shape: float) -> None:
    model = _model()
    before = copy.deepcopy(model)
    draw_weights(model, shape, seed=7)
    for name in ("0.weight", "2.weight"):
        scales = [math.sqrt(np.square(_matrix(m, name)).mean()) for m in (model, before)]
        assert scales[0] == pytest.approx(scales[1], rel=1e-5), f"seed 7, {name}"


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.8])
def test_reshaped_weights_keep_order_signs_and_size(shape: float) -> None:
    model = _model()
    draw_weights(model, 1.3, seed=1)
    with torch.no_grad():
        model.get_parameter("0.weight")[:2] = 0
    before = copy.deepcopy(model)
    reshape_weights(model, shape, exclude=["2.*"])
    assert torch.equal(model.get_parameter("2.weight"), before.get_parameter("2.weight"))
    old, new = _matrix(before, "0.weight"), _matrix(model, "0.weight")
    np.testing.assert_array_equal(np.sign(old), np.sign(new))
    order = np.argsort(np.abs(old), axis=None, kind="stable")
    assert (np.diff(np.abs(new).ravel()[order]) >= 0).all()
    assert np.square(new).mean() == pytest.approx(np.square(old).mean(), rel=1e-5)
    assert fit_likelihood(new[2:])[0] == pytest.approx(shape, rel=0.05)
    assert estimate_shape(new[2:]) == pytest.approx(shape, rel=0.05)


def test_weights_of_that_shape_hardly_change() -> None:
    model = _model()
    draw_weights(model, 0.9, seed=2)
    before = _matrix(model, "0.weight").copy()
    reshape_weights(model, 0.9)
    difference = _matrix(model, "0.weight") - before
    assert np.square(difference).mean() < 1e-3 * np.square(before).mean(), "seed 2"


def test_extreme_weights_stay_finite() -> None:
    for fill in (0.0, 0.25):
        layer = nn.Linear(20, 20, bias=False).to(torch.bfloat16)
        with torch.no_grad():
            layer.weight.fill_(fill)
        reshape_weights(layer, 0.7)
        torch.testing.assert_close(layer.weight.detach(), torch.full_like(layer.weight, fill))
    layer = nn.Linear(20, 20, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[3, 4] = -2.0
    before = layer.weight.detach().clone()
    draw_weights(nn.Linear(0, 5, bias=False), 1.0)
    reshape_weights(layer, 0.7)
    torch.testing.assert_close(layer.weight.detach(), before)


def test_bad_settings_are_named() -> None:
    model = _model()
    with pytest.raises(EgretError, match="shape: found 0"):
        draw_weights(model, 0.0)
    with pytest.raises(EgretError, match="shape: found -1"):
        reshape_weights(model, -1.0)
    with pytest.raises(EgretError, match="seed: found -1"):
        draw_weights(model, 1.0, seed=-1)
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] = math.nan
    with pytest.raises(EgretError, match=r"parameter '2\.weight': found NaN or infinity"):
        reshape_weights(model, 1.0)
