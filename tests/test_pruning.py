import io

import numpy as np
import pytest
import torch
from torch import nn

from egret.errors import EgretError
from egret.pruning import MagnitudePruner


def _model() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(20, 15), nn.BatchNorm1d(15), nn.ReLU(), nn.Linear(15, 10))


def _weights(model: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in model.parameters() if p.dim() == 2]


def test_one_shot_takes_the_smallest_of_all_weights() -> None:
    model = _model()
    before = _weights(model)
    free = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() == 1}
    MagnitudePruner(model, 0.6).step()
    order = np.sort(np.abs(np.concatenate([w.ravel() for w in before])))
    # 450 weights: the 270 smallest go.
    for old, new in zip(before, _weights(model), strict=True):
        np.testing.assert_array_equal(new, np.where(np.abs(old) > order[269], old, 0))
    for name, parameter in model.named_parameters():
        if name in free:
            assert torch.equal(parameter, free[name]), f"{name} must stay"


def test_each_tensor_loses_the_same_share() -> None:
    model = _model()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(100)
    MagnitudePruner(model, 0.3, per="tensor").step()
    assert [int((w == 0).sum()) for w in _weights(model)] == [90, 45]


def test_equal_magnitudes_go_in_the_number_asked_for() -> None:
    layer = nn.Linear(10, 10, bias=False)
    nn.init.constant_(layer.weight, -0.5)
    MagnitudePruner(layer, 0.25).step()
    assert int((layer.weight == 0).sum()) == 25


def test_gradual_pruning_follows_the_schedule_and_masks_hold() -> None:
    model = _model()
    pruner = MagnitudePruner(model, 0.8, steps=40, every=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(16, 20)
    gone = [np.zeros_like(w, bool) for w in _weights(model)]
    for call in range(1, 61):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
        zeros = [w == 0 for w in _weights(model)]
        due = min(call - call % 5, 40) / 40
        expected = round(450 * 0.8 * (1 - (1 - due) ** 3))
        assert sum(int(z.sum()) for z in zeros) == expected, f"call {call}"
        for old, new in zip(gone, zeros, strict=True):
            assert not (old & ~new).any(), f"call {call}: a pruned weight is back"
        gone = zeros


def test_without_masks_weights_may_grow_back_until_the_next_time() -> None:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    pruner = MagnitudePruner(layer, 0.5, every=2, masks=False)
    pruner.step()
    assert layer.weight.tolist()[0][:2] == [0, 0]
    with torch.no_grad():
        layer.weight[0, 0] = 5.0
    pruner.step()
    found = layer.weight.detach().numpy()[0]
    np.testing.assert_array_equal(found, np.array([5.0, 0, 0, 0.4], np.float32))
    with torch.no_grad():
        layer.weight[0, 1] = 0.01
    pruner.step()
    assert layer.weight[0, 1].item() == pytest.approx(0.01)


def test_masks_are_saved() -> None:
    model = _model()
    pruner = MagnitudePruner(model, 0.5, steps=7, every=3)
    for _ in range(4):
        pruner.step()
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    other = MagnitudePruner(model, 0.5, steps=7, every=3)
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.where(parameter == 0, 9.0, parameter))
    other.step()
    assert sum(int((w == 0).sum()) for w in _weights(model)) == round(
        450 * 0.5 * (1 - (4 / 7) ** 3)
    )
    with pytest.raises(EgretError, match=r"masks of nothing, expected 0\.weight, 3\.weight"):
        other.load_state_dict({"calls": 1, "kept": {}})
    with pytest.raises(EgretError, match="expected none"):
        MagnitudePruner(model, 0.5, masks=False).load_state_dict(pruner.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.1}, "share: found 1.1, expected 0 to 1"),
        ({"share": float("nan")}, "share: found nan"),
        ({"share": 0.5, "steps": 0}, "steps: found 0"),
        ({"share": 0.5, "every": 0}, "every: found 0"),
        ({"share": 0.5, "per": "row"}, "per: found 'row'"),
        ({"share": 0.5, "include": ["nothing"]}, "matches none of the 6 parameters"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        MagnitudePruner(_model(), **arguments)
