import contextlib
import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.rate_targets import TASKS, TRAININGS, train_task
from torch import nn

import egret
from egret.errors import EgretError
from egret.ggd import SHAPE_MAX, SHAPE_MIN, estimate_shape
from egret.qat import StraightThrough
from egret.quantize import steps_by_name
from egret.rate import RateRegularizer, entropy_per_weight


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


def test_shape_is_estimated_in_every_tenth_call_or_as_asked() -> None:
    cases: list[tuple[dict, int]] = [({}, 10), ({"every": 3}, 3), ({"every": 1}, 1)]
    for arguments, period in cases:
        model = _model()
        regularizer = RateRegularizer(model, 1.0, **arguments)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for call in range(2 * period + 1):
            with torch.no_grad():
                model.get_parameter("0.weight")[0, 0] = 3.0 + call
            if call % 2:
                regularizer.step(optimizer)
            else:
                regularizer.loss()
            with torch.no_grad():
                model.get_parameter("0.weight")[0, 0] = 3.0 + call - call % period
            assert regularizer.nu == pytest.approx(estimate_shape(_weights(model)), rel=1e-6)
        # `rate` estimates in any call, and does not count.
        regularizer.rate()
        assert regularizer.nu == pytest.approx(estimate_shape(_weights(model)), rel=1e-6)
        assert regularizer.state_dict()["calls"] == 2 * period + 1


def test_each_tensor_may_have_its_own_shape() -> None:
    model = nn.Sequential(nn.Linear(60, 50), nn.Linear(50, 40))
    generator = np.random.default_rng(6)
    arrays = [generator.laplace(0, 0.1, (50, 60)), generator.normal(0, 0.1, (40, 50))]
    with torch.no_grad():
        for name, array in zip(("0.weight", "1.weight"), arrays, strict=True):
            model.get_parameter(name).copy_(torch.from_numpy(array))
    regularizer = RateRegularizer(model, 2.0, eps=0.3, per="tensor")
    shapes = [estimate_shape(array) for array in arrays]
    assert abs(shapes[0] - shapes[1]) > 0.5
    assert regularizer.nus == pytest.approx(shapes, rel=1e-5)
    rates = [np.sum((np.abs(a) + 0.3) ** nu) for a, nu in zip(arrays, shapes, strict=True)]
    assert regularizer.loss().item() == pytest.approx(2 * sum(rates) / 5000, rel=1e-5)
    assert regularizer.nu == pytest.approx((3 * shapes[0] + 2 * shapes[1]) / 5, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_weights_give_finite_numbers_in_every_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(500, 500, bias=False).to(dtype)
    sparse = torch.zeros(500, 500)
    sparse[::100, ::100] = 0.1
    uniform = torch.rand(500, 500, generator=torch.Generator().manual_seed(1)) - 0.5
    for weights, shape in (
        (torch.zeros(500, 500), SHAPE_MIN),
        (torch.full((500, 500), 2e-4), SHAPE_MAX),
        (torch.full((500, 500), -6e4), SHAPE_MAX),
        (sparse, SHAPE_MIN),
        (uniform, SHAPE_MAX),
    ):
        with torch.no_grad():
            model.weight.copy_(weights)
        regularizer = RateRegularizer(model, 1.0, eps=1e-3)
        assert regularizer.nu == shape
        regularizer.loss().backward()
        assert model.weight.grad is not None
        assert bool(torch.isfinite(model.weight.grad).all())
        before = model.weight.detach().abs()
        regularizer.step(torch.optim.SGD(model.parameters(), lr=0.01))
        assert bool(torch.isfinite(model.weight).all())
        assert bool((model.weight.detach().abs() <= before).all())
        model.zero_grad()


def _shrunk(weights: np.ndarray, pull: np.ndarray) -> np.ndarray:
    return np.sign(weights) * np.maximum(np.abs(weights) - pull, 0)


def test_proximal_step_after_sgd() -> None:
    model = _model()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, :3] = torch.tensor([-0.001, 0.001, 0.0])
    before = _weights(model)
    free = {n: p.clone() for n, p in model.named_parameters() if p.dim() == 1}
    lam, eps, nu, lr = 9.0, 0.02, 0.6, 0.05
    regularizer = RateRegularizer(model, lam, eps=eps, nu=nu)
    regularizer.step(torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))
    after = _weights(model)
    pull = lr * lam * nu / 45 * (np.abs(before) + eps) ** (nu - 1)
    expected = _shrunk(before, pull)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-8)
    zeros = after == 0
    assert 3 <= zeros.sum() < 45
    assert zeros[:3].all()
    assert not np.signbit(after[zeros]).any()
    for name, parameter in model.named_parameters():
        if name in free:
            assert torch.equal(parameter, free[name]), f"{name} must go free"


@pytest.mark.parametrize("amsgrad", [False, True])
def test_proximal_step_goes_by_the_second_moment_of_adam(amsgrad: bool) -> None:
    layer = nn.Linear(4, 3, bias=False)
    lam, eps, nu, lr, beta = 0.4, 0.1, 1.5, 0.01, 0.9
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=lr, betas=(0.5, beta), eps=1e-3, weight_decay=0.1, amsgrad=amsgrad
    )
    regularizer = RateRegularizer(layer, lam, eps=eps, nu=nu)
    rng = np.random.default_rng(4)
    second = largest = np.zeros((3, 4))
    for step in range(1, 4):
        gradient = rng.normal(0, 1 / step, (3, 4))
        layer.weight.grad = torch.from_numpy(gradient).float()
        second = beta * second + (1 - beta) * gradient**2
        largest = np.maximum(largest, second)
        optimizer.step()
        stepped = layer.weight.detach().double().numpy().copy()
        regularizer.step(optimizer)
        moment = (largest if amsgrad else second) / (1 - beta**step)
        pull = lr * lam * nu / 12 * (np.abs(stepped) + eps) ** (nu - 1) / (np.sqrt(moment) + 1e-3)
        expected = _shrunk(stepped, pull)
        assert np.abs(expected - stepped).max() > 1e-5
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_proximal_step_moves_tied_weights_once_and_leaves_what_adam_has_not_stepped() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    idle = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, second, idle)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    first.weight.grad = torch.ones(4, 4)
    optimizer.step()
    with torch.no_grad():
        first.weight.fill_(1.0)
    regularizer = RateRegularizer(model, 3.2, eps=0.5, nu=1.0)
    assert regularizer.weights == 32
    kept = idle.weight.clone()
    regularizer.step(optimizer)
    torch.testing.assert_close(first.weight.detach(), torch.full((4, 4), 1 - 0.1 * 3.2 / 32))
    assert torch.equal(idle.weight, kept)
    with pytest.raises(EgretError, match=r"parameter '2\.weight': the optimiser does not train it"):
        regularizer.step(torch.optim.SGD(first.parameters(), lr=0.1))


def _entropy(arrays: list[np.ndarray], step_log2: int) -> float:
    bits = 0.0
    for array in arrays:
        values = np.rint(array.astype(np.float64) * 2.0**step_log2)
        counts = np.unique(values, return_counts=True)[1]
        bits -= float(np.sum(counts * np.log2(counts / array.size)))
    return bits / sum(array.size for array in arrays)


def test_entropy_of_rounded_weights() -> None:
    rng = np.random.default_rng(5)
    arrays: list[np.ndarray] = [rng.laplace(0, 0.02, (50, 40)), rng.normal(0, 1, 77)]
    arrays[0] = arrays[0].astype(np.float32)
    tensors = [torch.from_numpy(array) for array in arrays]
    for step_log2 in (-1, 0, 4, 8, 30):
        found = entropy_per_weight([*tensors, torch.zeros(0, 3)], step_log2)
        assert found == pytest.approx(_entropy(arrays, step_log2), abs=1e-9), step_log2
    assert entropy_per_weight([torch.full((9, 9), 0.3)], 8) == 0
    assert entropy_per_weight([torch.tensor([0.0, 0.0, 1.0, 1.0]).bfloat16()], 8) == 1
    assert math.isnan(entropy_per_weight([torch.tensor([1.0, math.nan])], 8))
    assert math.isnan(entropy_per_weight([torch.tensor([1.0, math.inf])], 8))


def _matrices(model: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy() for p in model.parameters() if p.dim() >= 2]


# No setting differs but the target: that is the point. 15 % is promised; measured was 6 % below
# to 1 % above here, and 4 % at most in ten further trainings with other rates and lengths; where
# weights are rounded in steps that go with them, 6 % below at most.
@pytest.mark.parametrize(("name", "target", "epochs", "training"), TRAININGS)
def test_target_bits_are_reached_without_a_setting_for_the_model(
    name: str, target: float, epochs: int, training: dict
) -> None:
    task = TASKS[name]()
    model, regularizer = train_task(task, epochs, {"target_bits": target}, **training)
    steps = steps_by_name(regularizer.step_log2, regularizer.names)
    scales = [2.0 ** steps[name] for name in regularizer.names]
    scaled = [scale * each for scale, each in zip(scales, _matrices(model), strict=True)]
    reached = _entropy(scaled, 0)
    print(f"{name} {training}: asked for {target}, reached {reached:.3f} bits")
    assert regularizer.bits_per_weight() == pytest.approx(reached)
    assert reached == pytest.approx(target, rel=0.15 if epochs == 5 and training else 0.1)
    zeros = np.concatenate([(matrix == 0).ravel() for matrix in _matrices(model)])
    assert zeros.mean() > 0.2


def test_network_with_target_still_works_and_its_packed_file_has_the_size(tmp_path: Path) -> None:
    task = TASKS["digits"]()
    model, regularizer = train_task(task, 40, {"target_mb": 0.014})
    # 394 biases in float32 go free.
    assert regularizer.target_bits == pytest.approx((14_000 - 4 * 394) * 8 / 50_432)
    egret.pack(model.state_dict(), tmp_path / "digits.egret")
    size = (tmp_path / "digits.egret").stat().st_size
    print(f"asked for 14,000 bytes, reached {size}")
    assert size == pytest.approx(14_000, rel=0.1)
    model.load_state_dict(egret.load(tmp_path / "digits.egret").state_dict())
    x, y = task.validation
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("rounds", [False, True])
# While the bits fall; at the target; while zeros are held.
@pytest.mark.parametrize("saved", [19, 31, 50])
def test_training_goes_on_from_saved_states(rounds: bool, saved: int) -> None:
    task = TASKS["curve"]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    whole = task.make()
    arguments: dict = {"target_bits": 0.5, "steps": 60, "per": "tensor", "every": 4}
    resumed = copy.deepcopy(whole)

    def steps(model: nn.Module, begin: int, end: int, states: list) -> list:
        trainer = torch.optim.Adam(model.parameters(), lr=0.01)
        quantizer = StraightThrough(model, target_bits=0.5) if rounds else None
        regularizer = RateRegularizer(model, quantizer=quantizer, **arguments)
        if states:
            trainer.load_state_dict(states[0])
            regularizer.load_state_dict(json.loads(states[1]))
        for step in range(begin, end):
            batch = slice(step % 10 * 64, step % 10 * 64 + 64)
            trainer.zero_grad()
            with quantizer or contextlib.nullcontext():
                task.criterion(model(task.x[batch]), task.y[batch]).backward()
            trainer.step()
            regularizer.step(trainer)
        return [trainer.state_dict(), json.dumps(regularizer.state_dict())]

    final = steps(whole, 0, 60, [])
    states = steps(resumed, 0, saved, [])
    assert steps(resumed, saved, 60, states)[1] == final[1]
    torch.set_num_threads(threads)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_another_training_is_refused() -> None:
    state = RateRegularizer(_model(), 1.0).state_dict()
    with pytest.raises(EgretError, match=r"for parameters 0\.weight, 3\.weight, expected"):
        RateRegularizer(_model(), 1.0, exclude=["3.*"]).load_state_dict(state)
    with pytest.raises(EgretError, match="only one of the state and this regulariser has a target"):
        RateRegularizer(_model(), target_bits=1.0, steps=5).load_state_dict(state)


def test_state_of_another_quantizer_is_refused() -> None:
    def rounded(*exclude: str) -> RateRegularizer:
        model = _model()
        quantizer = StraightThrough(model, target_bits=1.0, exclude=exclude)
        return RateRegularizer(model, target_bits=1.0, steps=5, quantizer=quantizer)

    state = RateRegularizer(_model(), target_bits=1.0, steps=5).state_dict()
    with pytest.raises(EgretError, match="only one of the state and this regulariser has a quant"):
        rounded().load_state_dict(state)
    with pytest.raises(EgretError, match=r"quantizer rounds 0\.weight, 3\.weight, expected 0\.wei"):
        rounded("3.*").load_state_dict(rounded().state_dict())


def test_steps_are_halved_once_in_a_while_where_that_gains_nothing() -> None:
    # Weights of two values take one bit in any steps, and nothing moves them.
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0]).repeat(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    quantizer = StraightThrough(model, target_bits=3.0)
    assert quantizer.step_log2 == {"0.weight": 1}
    regularizer = RateRegularizer(model, target_bits=3.0, steps=200, quantizer=quantizer)
    found = []
    for _ in range(200):
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        regularizer.step(optimizer)
        found.append(quantizer.step_log2["0.weight"])
    assert regularizer.bits_per_weight() == 1.0
    halved = [step for step in range(50, 200) if found[step] > found[step - 1]]
    # Not while the bits are to fall, twice in a tenth of the training, or while zeros are held.
    assert found[-1] == 1 + len(halved)
    assert len(halved) == 3
    assert all(later - earlier > 20 for earlier, later in itertools.pairwise(halved))
    assert halved[0] >= 90
    assert halved[-1] < 140


def test_target_needs_the_proximal_step() -> None:
    with pytest.raises(EgretError, match=r"a target, which needs step\(optimizer\), not loss"):
        RateRegularizer(_model(), target_bits=1.0, steps=5).loss()


def test_regularizer_is_found_at_the_top() -> None:
    assert egret.RateRegularizer is RateRegularizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1.0}, "lam: found -1"),
        ({"lam": math.nan}, "lam: found nan"),
        ({"lam": 1.0, "eps": 0.0}, "eps: found 0"),
        ({"lam": 1.0, "nu": 0.0}, "nu: found 0"),
        ({"lam": 1.0, "nu": "fixed"}, "nu: found 'fixed'"),
        ({"lam": 1.0, "include": ["nothing"]}, "'nothing' matches none of the 6 parameters"),
        ({"lam": 1.0, "exclude": ["haed.*"]}, r"'haed\.\*' matches none of the 6 parameters"),
        ({"lam": 1.0, "include": "2.*"}, r"include: found '2\.\*', expected a list"),
        ({"lam": 1.0, "exclude": "0.*"}, r"exclude: found '0\.\*', expected a list"),
        ({"lam": 1.0, "exclude": ["*"]}, "no trainable parameter"),
        ({"lam": "1"}, "lam: found '1', expected a finite number of 0 or more"),
        ({"lam": True}, "lam: found True"),
        ({"lam": 1.0, "eps": None}, "eps: found None"),
        ({"lam": 1.0, "nu": None}, "nu: found None"),
        ({"lam": 1.0, "every": 1.5}, "every: found 1.5, expected a whole number"),
        ({"lam": 1.0, "step_log2": 5}, "step_log2: belongs to a target"),
        ({"target_bits": "1", "steps": 10}, "target: found '1'"),
        ({"target_bits": 1.0, "steps": 10.5}, "steps: found 10.5"),
        ({"target_bits": 1.0, "steps": math.inf}, "steps: found inf"),
        ({"target_mb": "1", "steps": 10}, "target_mb: found '1'"),
        ({"lam": 1.0, "every": 0}, "every: found 0"),
        ({"lam": 1.0, "per": "layer"}, "per: found 'layer', expected 'model' or 'tensor'"),
        ({}, "give exactly one of lam, target_bits and target_mb"),
        ({"lam": 1.0, "target_bits": 1.0}, "give exactly one of"),
        ({"lam": 1.0, "steps": 10}, "steps: belongs to a target"),
        ({"target_bits": 1.0}, "steps: belongs to a target, which needs it"),
        ({"target_bits": 0.0, "steps": 10}, "target: found 0"),
        ({"target_bits": 1.0, "steps": 0}, "steps: found 0"),
        ({"target_bits": 1.0, "steps": 10, "step_log2": 99}, "step_log2: found steps of"),
        ({"target_mb": -1.0, "steps": 10}, "target_mb: found -1"),
        ({"target_mb": 1e-4, "steps": 10}, "expected more than the 0.00012 MB of the"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        RateRegularizer(_model(), **arguments)


def _held(steps: int, seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer, RateRegularizer]:
    model = _model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return model, optimizer, RateRegularizer(model, target_bits=1.5, steps=steps, step_log2=3)


def test_zeros_are_held_at_the_end_and_only_there() -> None:
    steps, seed = 200, 5
    model, optimizer, regularizer = _held(steps, seed)
    generator = torch.Generator().manual_seed(seed)
    zeros: list[torch.Tensor] = []
    came_back = 0
    saved = None
    for step in range(1, steps + 1):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        ).backward()
        optimizer.step()
        moved = [p.detach().clone() for p in model.parameters()]
        regularizer.step(optimizer)
        found = [p.detach() == 0 for p in model.parameters() if p.dim() == 2]
        if step <= 40:
            # The network learns freely.
            assert all(map(torch.equal, moved, [p.detach() for p in model.parameters()]))
        if step > 141:
            assert all((now | ~then).all() for now, then in zip(found, zeros, strict=True)), step
        elif zeros:
            came_back += sum(
                int((then & ~now).sum()) for now, then in zip(found, zeros, strict=True)
            )
        if step == 141:
            inside = [p.detach().abs() <= 2.0**-4 for p in model.parameters() if p.dim() == 2]
            assert all(map(torch.equal, inside, found))
            assert any(bool(each.any()) for each in inside)
        if step == 170:
            saved = (
                copy.deepcopy(model.state_dict()),
                copy.deepcopy(optimizer.state_dict()),
                regularizer.state_dict(),
                generator.get_state(),
            )
        zeros = found
    assert came_back > 0
    assert saved is not None
    other, other_optimizer, other_regularizer = _held(steps, seed + 1)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_regularizer.load_state_dict(saved[2])
    generator.set_state(saved[3])
    for _ in range(170, steps):
        x = torch.randn(16, 6, generator=generator)
        other_optimizer.zero_grad()
        nn.functional.cross_entropy(
            other(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        ).backward()
        other_optimizer.step()
        other_regularizer.step(other_optimizer)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_step_takes_no_more_than_a_share_of_the_weights() -> None:
    model = nn.Linear(50, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rate = RateRegularizer(model, target_bits=1.0, steps=100)
    for step in range(1, 40):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        if step == 30:
            # As after a jump of ν.
            rate.lam = 1e9
        before = model.weight.detach().clone()
        rate.step(optimizer)
        taken = (before - model.weight.detach()).norm() / before.norm()
        assert taken <= 0.25 + 1e-6, step
    assert 0 < rate.lam < 1e9


def test_sample_of_a_large_matrix_is_no_single_column() -> None:
    # As many rows as are sampled, and a first column that any pull takes whole.
    model = nn.Linear(28, 8192, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)[:, 0] = 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rate = RateRegularizer(model, target_bits=0.1, steps=10, nu=1.0)
    model.weight.grad = torch.zeros_like(model.weight)
    for step in range(1, 6):
        # A tenth of all other weights.
        rate.lam = 0.1 * rate.weights
        rate.step(optimizer)
        if step > 3:
            taken = 1.0 - model.weight[:, 1:].mean().item()
            assert taken == pytest.approx(0.1, rel=0.01)
        with torch.no_grad():
            model.weight.fill_(1.0)[:, 0] = 1e-6


def test_lambda_stays_finite_where_no_pull_moves_the_weights() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 2))
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.0},
            {"params": model[1].parameters(), "lr": 0.01},
        ]
    )
    rate = RateRegularizer(model, target_bits=0.1, steps=1500, every=1)
    for _ in range(1500):
        optimizer.zero_grad()
        model(torch.ones(1, 30)).square().sum().backward()
        optimizer.step()
        rate.step(optimizer)
    assert math.isfinite(rate.lam)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_weights_with_a_norm_of_their_own_are_refused(name: str) -> None:
    for place in (nn.utils.parametrizations, nn.utils):
        model = nn.Sequential(getattr(place, name)(nn.Linear(6, 5)), nn.Linear(5, 3))
        with pytest.raises(EgretError, match=rf"parameter '0\.\S+': {name} divides by its norm"):
            RateRegularizer(model, 1.0)
        assert RateRegularizer(model, 1.0, exclude=["0.*"]).names == ("1.weight",)


def test_state_of_numpy_numbers_is_plain(tmp_path: Path) -> None:
    model = _model()
    step: Any = np.int64(4)
    numbers: dict[str, Any] = {"target_bits": np.float32(9), "eps": np.float32(0.1)}
    quantizer = StraightThrough(model, step)
    rate = RateRegularizer(model, steps=10, quantizer=quantizer, **numbers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        rate.step(optimizer)
    assert json.loads(json.dumps(rate.state_dict())) == rate.state_dict()


def test_names_with_brackets_are_names_too() -> None:
    model = nn.ParameterDict({"w[0]": nn.Parameter(torch.ones(2, 2)), "w0": torch.ones(2, 2)})
    assert "w[0]" in RateRegularizer(model, 1.0, include=["w[0]"]).names
    assert RateRegularizer(model, 1.0, exclude=["w0"]).names == ("w[0]",)


def test_parameters_that_cannot_become_small_are_left_out_or_named() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, dtype=torch.complex64))
    assert RateRegularizer(model, 1.0).names == ("0.weight",)
    with pytest.raises(EgretError, match=r"'1\.weight': found torch\.complex64, expected real"):
        RateRegularizer(model, 1.0, include=["*.weight"])
    with pytest.raises(EgretError, match=r"parameter '0\.weight': has no size yet"):
        RateRegularizer(nn.Sequential(nn.LazyLinear(3)), 1.0)
    with pytest.raises(EgretError, match="weights: weight: found none, expected at least one"):
        RateRegularizer(nn.Linear(0, 3), 1.0)


def test_patterns_may_match_any_name_of_a_tied_parameter() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "body": nn.Linear(4, 4)})
    model["head"] = nn.Linear(4, 9, bias=False)
    model["head"].weight = model["table"].weight
    assert RateRegularizer(model, 1.0, exclude=["head.*"]).names == ("body.weight",)
    assert RateRegularizer(model, 1.0, include=["head.*"]).names == ("table.weight",)


def test_quantizer_of_another_model_and_unfinished_states_are_refused() -> None:
    model = _model()
    other = StraightThrough(_model(), target_bits=1.0)
    with pytest.raises(EgretError, match=r"quantizer: rounds 0\.weight, 3\.weight, expected"):
        RateRegularizer(model, target_bits=1.0, steps=10, quantizer=other)
    with pytest.raises(EgretError, match="the state lacks calls, controller, lam"):
        RateRegularizer(model, 1.0).load_state_dict({})


@pytest.mark.parametrize("size", [1e20, 1e-26])
def test_steps_suit_weights_whose_squares_leave_float32(size: float) -> None:
    model = nn.Linear(20, 20, bias=False)
    with torch.no_grad():
        model.weight.fill_(size)
    (step,) = StraightThrough(model, target_bits=1.0).step_log2.values()
    assert step == max(-64, min(64, round(-math.log2(size))))
