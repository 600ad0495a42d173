import math

import numpy as np
import pytest
import torch
from torch import nn

from egret.errors import EgretError
from egret.rate import RateRegularizer


def _model(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def _weights(model: nn.Sequential) -> np.ndarray:
    return np.concatenate(
        [p.detach().numpy().ravel() for p in model.parameters() if p.dim() == 2]
    ).astype(np.float64)


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
def test_gradient_equals_the_closed_form(nu: float) -> None:
    model = _model()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = 0.0
    lam, eps = 7.0, 0.05
    loss = RateRegularizer(model, lam, eps=eps, nu=nu).loss()
    loss.backward()
    weights = _weights(model)
    n = weights.size
    assert n == 45
    assert loss.item() == pytest.approx(
        lam * float(np.sum((np.abs(weights) + eps) ** nu)) / n, rel=1e-5
    )
    expected = lam * nu / n * np.sign(weights) * (np.abs(weights) + eps) ** (nu - 1)
    gradients = [p.grad for p in model.parameters() if p.dim() == 2]
    found = np.concatenate([g.numpy().ravel() for g in gradients if g is not None])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.grad is None, f"{name} must go free"


def test_shape_follows_the_weights_and_carries_no_gradient() -> None:
    model = _model()
    regularizer = RateRegularizer(model, 1.0, eps=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.distributions.Laplace(0.0, 1.0).sample(parameter.shape))
    loss = regularizer.loss()
    weights = _weights(model)
    ratio = float(np.mean(weights**2) / np.mean(np.abs(weights)) ** 2)
    nu = regularizer.nu
    gammas = math.gamma(1 / nu) * math.gamma(3 / nu) / math.gamma(2 / nu) ** 2
    assert gammas == pytest.approx(ratio, rel=1e-5)
    # The gradient is that of the closed form with ν held constant.
    loss.backward()
    expected = nu / weights.size * np.sign(weights) * (np.abs(weights) + 0.1) ** (nu - 1)
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy().ravel(), expected[:30], rtol=1e-5)


def test_weights_that_are_all_zero_give_a_finite_loss_and_no_gradient() -> None:
    model = _model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    regularizer = RateRegularizer(model, 5.0, eps=0.01)
    loss = regularizer.loss()
    loss.backward()
    assert math.isfinite(loss.item())
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert not gradient.any()


def test_tied_weights_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

    model = Tied()
    regularizer = RateRegularizer(model, 1.0, nu=1.0, eps=0.5)
    assert regularizer.names == ("first.weight",)
    assert regularizer.weights == 16
    expected = model.first.weight.detach().abs().mean().item() + 0.5
    assert regularizer.loss().item() == pytest.approx(expected, rel=1e-6)


def test_include_and_exclude_choose_parameters() -> None:
    model = _model()
    assert RateRegularizer(model, 1.0).names == ("0.weight", "3.weight")
    assert RateRegularizer(model, 1.0, exclude=["3.*"]).names == ("0.weight",)
    assert RateRegularizer(model, 1.0, include=["*.bias"], exclude=["0.*"]).names == (
        "1.bias",
        "3.bias",
    )
    model.get_parameter("0.weight").requires_grad_(False)
    assert RateRegularizer(model, 1.0).names == ("3.weight",)


def test_bfloat16_weights_are_summed_in_float32() -> None:
    model = nn.Linear(300, 300, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(0.5)
    rate = RateRegularizer(model, 1.0, nu=1.0, eps=0.5).rate()
    assert rate.item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1.0}, "lam: found -1"),
        ({"lam": math.nan}, "lam: found nan"),
        ({"lam": 1.0, "eps": 0.0}, "eps: found 0"),
        ({"lam": 1.0, "nu": 0.0}, "nu: found 0"),
        ({"lam": 1.0, "nu": "fixed"}, "nu: found 'fixed'"),
        ({"lam": 1.0, "include": ["nothing"]}, "no trainable parameter"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        RateRegularizer(_model(), **arguments)
