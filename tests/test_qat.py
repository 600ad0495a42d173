import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import egret
from egret.errors import EgretError, QuantizationError
from egret.qat import StraightThrough, round_to_step, suitable_step
from egret.quantize import quantize
from egret.rate import RateRegularizer


def _model(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_gradient_is_that_at_the_rounded_weights() -> None:
    model = _model()
    reference = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for name, step in (("0.weight", 0.25), ("3.weight", 0.5)):
            weight = reference.get_parameter(name).double().numpy()
            rounded = torch.from_numpy(np.rint(weight / step) * step)
            assert 0 < int((rounded == 0).sum()) < rounded.numel()
            reference.get_parameter(name).copy_(rounded)
    x, y = torch.randn(9, 6), torch.tensor([0, 1, 2] * 3)
    quantizer = StraightThrough(model, {"0.weight": 2, "3.weight": 1})
    assert quantizer.names == ("0.weight", "3.weight")
    assert quantizer.step_log2 == {"0.weight": 2, "3.weight": 1}
    with quantizer:
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, reference.get_parameter(name)), name
        nn.functional.cross_entropy(model(x), y).backward()
    nn.functional.cross_entropy(reference(x), y).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_that_of_the_packer(dtype: torch.dtype) -> None:
    seed = 5
    weights = torch.randn(400, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weights[:4] = torch.tensor([0.125, 0.375, -0.125, -0.0])
    for step_log2 in (-1, 2, 6):
        found = round_to_step(weights, step_log2).double().numpy()
        expected = quantize(weights.double().numpy(), step_log2, name="w").dequantize()
        np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}, {step_log2}")


def test_weights_rounded_for_good_pack_without_loss(
    tmp_path: Path,
) -> None:
    model = _model()
    quantizer = StraightThrough(model, {"0.weight": 5, "3.weight": 3})
    with quantizer:
        inside = copy.deepcopy(model.state_dict())
    quantizer.apply()
    path = tmp_path / "model.egret"
    egret.pack(model.state_dict(), path, step_log2=quantizer.step_log2)
    weights = egret.load(path)
    for name, tensor in inside.items():
        assert torch.equal(weights.state_dict()[name], tensor), name
    assert weights.quantized("0.weight").step_log2 == 5
    assert weights.quantized("3.weight").step_log2 == 3


def test_small_steps_of_the_optimiser_add_up() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    quantizer = StraightThrough(layer, 0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    outputs = []
    for _ in range(5):
        optimizer.zero_grad()
        with quantizer:
            output = layer(torch.ones(1, 1))
            (-output).sum().backward()
        optimizer.step()
        outputs.append(output.item())
    # 0.2, 0.4, 0.6, 0.8, 1.0 after the steps.
    assert outputs == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_tied_weights_are_rounded_once_and_restored() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    before = first.weight.detach().clone()
    quantizer = StraightThrough(nn.Sequential(first, second), 2)
    assert quantizer.names == ("0.weight",)
    # Whoever packs finds the step under both names.
    assert quantizer.step_log2 == {"0.weight": 2, "1.weight": 2}
    model = nn.Sequential(first, second)
    assert StraightThrough(model, {"1.weight": 2}).step_log2 == quantizer.step_log2
    assert StraightThrough(model, quantizer.step_log2).step_log2 == quantizer.step_log2
    RateRegularizer(model, target_bits=1.0, steps=1, step_log2=quantizer.step_log2)
    follower = StraightThrough(model, target_bits=1.0)
    follower.follow(6.0)
    assert follower.step_log2["0.weight"] == follower.step_log2["1.weight"]
    assert (
        follower.step_log2["0.weight"]
        > StraightThrough(model, target_bits=1.0).step_log2["0.weight"]
    )
    with quantizer:
        assert second.weight is first.weight
        assert not torch.equal(first.weight, before)
    assert torch.equal(second.weight, before)


def test_steps_of_the_optimiser_inside_the_block_are_refused() -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = StraightThrough(model, 4).__enter__()
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(EgretError, match=r"parameter '0\.weight': changed inside the block"):
        quantizer.__exit__(None, None, None)
    assert torch.equal(model.get_parameter("0.weight"), before["0.weight"])


def test_backward_after_the_block_is_an_error_and_not_wrong() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with StraightThrough(model, 3):
        loss = model(torch.ones(2, 4)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_are_restored_when_the_block_fails() -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    quantizer = StraightThrough(model, 1)
    with pytest.raises(ValueError, match="nothing"), quantizer:
        raise ValueError("nothing")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with quantizer, pytest.raises(EgretError, match="entered a second time"):
        quantizer.__enter__()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_bad_steps_are_named() -> None:
    with pytest.raises(EgretError, match=r"no tensor is named '1\.weight', expected one of 0\.w"):
        StraightThrough(_model(), {"1.weight": 3})
    with pytest.raises(QuantizationError, match="step_log2: found steps of"):
        StraightThrough(_model(), 65)
    with pytest.raises(QuantizationError, match=r"step_log2 of '3\.weight': found steps of 2\^70"):
        StraightThrough(_model(), {"3.weight": -70})
    with pytest.raises(EgretError, match="matches none of the 6 parameters"):
        StraightThrough(_model(), 4, include=["nothing"])


def test_rate_term_measures_the_bits_at_each_tensors_step() -> None:
    model = _model()
    steps = {"0.weight": 3, "3.weight": 6}
    rate = RateRegularizer(model, target_bits=1.0, steps=10, step_log2=steps)
    bits = 0.0
    for name, step in steps.items():
        values = np.rint(model.get_parameter(name).detach().double().numpy() * 2.0**step)
        counts = np.unique(values, return_counts=True)[1]
        bits -= float(np.sum(counts * np.log2(counts / values.size)))
    assert rate.bits_per_weight() == pytest.approx(bits / 45)
    with pytest.raises(EgretError, match="no tensor is named 'head'"):
        RateRegularizer(model, target_bits=1.0, steps=10, step_log2={"head": 3})


def test_it_learns_with_coarse_steps_what_rounding_at_the_end_destroys() -> None:
    seed = 11
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 16, generator=generator)
    y = torch.tanh(x @ (0.5 * torch.randn(16, 4, generator=generator)))

    def train(*, aware: bool) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
        quantizer = StraightThrough(model, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
        for _ in range(300):
            optimizer.zero_grad()
            with quantizer if aware else contextlib.nullcontext():
                nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
        quantizer.apply()
        with torch.no_grad():
            return nn.functional.mse_loss(model(x), y).item()

    aware, late = train(aware=True), train(aware=False)
    print(f"seed {seed}: mean square error {aware:.4f} aware of it, {late:.4f} without")
    assert aware < 0.3 * late, f"seed {seed}"


def test_rate_term_and_rounding_work_together() -> None:
    """To half a bit a weight, with steps 16 times as coarse as the packer's default."""
    from egret.recipes.digits import DigitsMLP, load_digits_split

    splits = load_digits_split()
    x, y = splits.train
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = DigitsMLP()
    generator = torch.Generator().manual_seed(7)
    steps = 25 * math.ceil(len(x) / 64)
    quantizer = StraightThrough(model, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    rate = RateRegularizer(model, target_bits=0.5, steps=steps, step_log2=quantizer.step_log2)
    for _ in range(25):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            with quantizer:
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            rate.step(optimizer)
    before = rate.bits_per_weight()
    quantizer.apply()
    assert rate.bits_per_weight() == before == pytest.approx(0.5, rel=0.1)
    with torch.no_grad():
        right = (model(splits.validation.x).argmax(1) == splits.validation.y).float().mean()
    print(f"seed 7: {before:.3f} bits, {100 * right:.1f} % of the validation images right")
    assert right > 0.93


def test_packing_names_a_step_for_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(EgretError, match=r"no tensor is named 'head', expected one of 0\.weight"):
        egret.pack(_model().state_dict(), tmp_path / "model.egret", step_log2={"head": 3})
    with pytest.raises(QuantizationError, match=r"step_log2 of '0\.weight': found steps of"):
        egret.pack(_model().state_dict(), tmp_path / "model.egret", step_log2={"0.weight": 70})


def test_steps_suit_the_weights_and_the_bits() -> None:
    assert [suitable_step(scale, 0.6) for scale in (1.0, 0.0722, 0.0361, 3e-5)] == [0, 4, 5, 15]
    assert [suitable_step(0.0722, bits) for bits in (0.1, 1.0, 2.0, 4.0)] == [4, 4, 4, 6]
    assert suitable_step(0.0, 1.0) == 8
    assert suitable_step(1e-30, 1.0) == 64
    model = _model()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(-0.25)
        model.get_parameter("3.weight").zero_()
    quantizer = StraightThrough(model, target_bits=3.0)
    assert quantizer.step_log2 == {"0.weight": 3, "3.weight": 8}
    quantizer.follow(3.5)
    assert quantizer.step_log2 == {"0.weight": 3, "3.weight": 8}
    quantizer.follow(3.7)
    assert quantizer.step_log2 == {"0.weight": 4, "3.weight": 8}
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(8)
    quantizer.follow(1.0)
    assert quantizer.step_log2 == {"0.weight": -1, "3.weight": 8}
    quantizer.refine()
    assert quantizer.step_log2 == {"0.weight": 0, "3.weight": 9}
    quantizer.step_log2["3.weight"] = 64
    quantizer.refine()
    assert quantizer.step_log2 == {"0.weight": 1, "3.weight": 64}
    given = StraightThrough(model, 5)
    given.follow(1.0)
    given.refine()
    assert set(given.step_log2.values()) == {5}
    wrong: list[dict[str, Any]] = [{}, {"step_log2": 3, "target_bits": 1.0}]
    for arguments in wrong:
        with pytest.raises(EgretError, match="give one of step_log2 and target_bits"):
            StraightThrough(model, **arguments)
    for bits in (0.0, math.inf):
        with pytest.raises(EgretError, match="target_bits: found"):
            suitable_step(1.0, bits)
    with pytest.raises(EgretError, match="scale: found nan"):
        suitable_step(math.nan, 1.0)
