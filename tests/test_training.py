import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import egret
from egret.cli import main
from egret.errors import EgretError
from egret.network import IntegerNetwork
from egret.training import (
    EpochRecord,
    Split,
    Splits,
    TrainingOptions,
    accuracy,
    load_data,
    load_model,
    save_training,
    train,
)

# Two classes that a line separates, so that a few epochs suffice.
_FACTORIES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def make_model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

def make_sigmoid():
    return nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 2))

def make_narrow():
    return nn.Linear(6, 1)

def make_wrong():
    return nn.Linear(5, 2)

def make_flat():
    return nn.Sequential(nn.Linear(6, 2), nn.Flatten(0))

def make_data():
    generator = torch.Generator().manual_seed(1)
    def part(n):
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, 0] > x[:, 1]).long()
    return part(400), TensorDataset(*part(100)), part(100)

def parts(**changes):
    good = dict(zip(("train", "validation", "test"), make_data()))
    good.update(changes)
    return tuple(good.values())

def two(): return make_data()[:2]
def not_a_pair(): return parts(validation=torch.zeros(3))
def one_tensor(): return parts(test=TensorDataset(torch.zeros(3, 6)))
def whole_x(): return parts(train=(torch.zeros(3, 6, dtype=torch.long), torch.zeros(3).long()))
def nan_x(): return parts(train=(torch.full((3, 6), float("nan")), torch.zeros(3).long()))
def float_y(): return parts(test=(torch.zeros(3, 6), torch.zeros(3)))
def short_y(): return parts(test=(torch.zeros(3, 6), torch.zeros(2).long()))
def negative_y(): return parts(test=(torch.zeros(3, 6), torch.tensor([0, -1, 0])))
def other_x(): return parts(test=(torch.zeros(3, 7), torch.zeros(3).long()))
def raises(): raise ValueError("no such file")
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(_FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 2))


def _splits() -> Splits:
    generator = torch.Generator().manual_seed(2)

    def part(n: int) -> Split:
        x = torch.randn(n, 6, generator=generator)
        return Split(x, (x[:, 0] > x[:, 1]).long())

    return Splits(part(400), part(100), part(100))


def test_two_runs_are_equal_and_leave_the_random_state_alone() -> None:
    options = TrainingOptions(epochs=3, final_epochs=1, lam=1.0, seed=4)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = train(_model, _splits(), options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(100)
    second = train(_model, _splits(), options)
    assert first.history == second.history
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    other = train(_model, _splits(), dataclasses.replace(options, seed=5))
    assert other.history != first.history


def test_history_describes_the_final_model() -> None:
    seen: list[EpochRecord] = []
    splits = _splits()
    trained = train(
        _model,
        splits,
        TrainingOptions(epochs=12, final_epochs=2, lam=0.5, learning_rate=0.02),
        progress=lambda record, options: seen.append(record),
    )
    assert tuple(seen) == trained.history
    assert [record.epoch for record in seen] == list(range(1, 15))
    assert trained.weight_names == ("0.weight", "3.weight")
    assert trained.weights == 6 * 16 + 16 * 2
    assert not trained.model.training
    right = trained.model(splits.validation.x).argmax(1) == splits.validation.y
    assert trained.validation_accuracy == pytest.approx(right.float().mean().item())
    assert trained.validation_accuracy == accuracy(trained.model, splits.validation)
    assert trained.validation_accuracy > 0.9
    assert seen[-1].loss < seen[0].loss
    # Bits of exp-Golomb order 0 by the length of each rank's codeword.
    bits = 0
    for name in trained.weight_names:
        values = torch.round(trained.state()[name].double() * 256).flatten()
        counts = sorted(torch.unique(values, return_counts=True)[1].tolist(), reverse=True)
        bits += sum(n * (2 * len(bin(rank + 1)[2:]) - 1) for rank, n in enumerate(counts))
    assert trained.bits_per_weight == pytest.approx(bits / trained.weights)


def test_the_rate_term_lowers_the_bits_and_the_final_epochs_run_without_it() -> None:
    options = TrainingOptions(epochs=15, learning_rate=0.02, eps=0.1)
    plain = train(_model, _splits(), options)
    rate = train(_model, _splits(), dataclasses.replace(options, lam=1.0))
    assert rate.bits_per_weight < plain.bits_per_weight - 1
    # The same three epochs, with the rate term in all of them or only in the first.
    charged = train(_model, _splits(), dataclasses.replace(options, lam=1.0, epochs=3))
    final = train(
        _model, _splits(), dataclasses.replace(options, lam=1.0, epochs=1, final_epochs=2)
    )
    assert final.history[0] == charged.history[0]
    assert final.history[1] != charged.history[1]
    assert final.history[2].loss < charged.history[2].loss
    assert final.bits_per_weight > charged.bits_per_weight


def test_target_takes_the_place_of_lambda() -> None:
    options = TrainingOptions(epochs=30, learning_rate=0.01, target_bits=1.5, step_log2=6)
    trained = train(_model, _splits(), options)
    weights = [trained.state()[name].double() for name in trained.weight_names]
    bits = 0.0
    for weight in weights:
        counts = torch.unique(torch.round(weight * 64), return_counts=True)[1].double()
        bits -= float((counts * torch.log2(counts / weight.numel())).sum())
    assert bits / trained.weights == pytest.approx(1.5, rel=0.15)
    assert sum(int((weight == 0).sum()) for weight in weights) > trained.weights // 4
    assert all(torch.equal(weight, torch.round(weight * 64) / 64) for weight in weights)
    assert trained.step_log2 == dict.fromkeys(trained.weight_names, 6)
    assert trained.validation_accuracy > 0.9


def test_rounding_without_a_rate() -> None:
    options = TrainingOptions(epochs=30, learning_rate=0.01, step_log2=2)
    trained = train(_model, _splits(), options)
    assert trained.step_log2 == dict.fromkeys(trained.weight_names, 2)
    weights = [trained.state()[name] for name in trained.weight_names]
    assert all(torch.equal(weight, torch.round(weight * 4) / 4) for weight in weights)
    assert trained.validation_accuracy > 0.9
    # It learned with them: rounding an ordinary network at the end gives others.
    ordinary = train(_model, _splits(), dataclasses.replace(options, step_log2=None))
    rounded = [torch.round(ordinary.state()[name] * 4) / 4 for name in ordinary.weight_names]
    assert any(not torch.equal(a, b) for a, b in zip(weights, rounded, strict=True))


def test_with_a_target_the_steps_follow_the_weights_and_packing_loses_nothing(
    tmp_path: Path,
) -> None:
    def make() -> nn.Module:
        model = _model()
        with torch.no_grad():
            model.get_parameter("3.weight").mul_(1 / 64)
        return model

    options = TrainingOptions(epochs=20, learning_rate=0.02, target_bits=1.0, rdo=0.05)
    trained = train(make, _splits(), options)
    assert trained.step_log2 is not None
    # The initial weights of the second layer would have taken steps of 2^-7.
    assert set(trained.step_log2.values()) <= {1, 2, 3}
    (tmp_path / "out").mkdir()
    saved = save_training(trained, _splits(), tmp_path / "out")
    packed = egret.load(tmp_path / "out" / "weights.egret").state_dict()
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(packed[name], tensor), name
    assert saved.packed.accuracy["test"] == accuracy(trained.model, _splits().test)
    assert saved.packed.accuracy["test"] > 0.9
    assert saved.network is not None
    for layer in saved.network.layers:
        weight = torch.from_numpy(layer.weight.dequantize())
        assert torch.equal(weight, trained.model.get_parameter(layer.weight_name))
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert written["step_log2"] == trained.step_log2
    assert written["payload_bits_per_weight"] == pytest.approx(saved.packed.payload_bits)
    assert written["accuracy_packed"] == saved.packed.accuracy


def test_rounding_for_the_bits_at_the_end_moves_weights_and_saves_bits() -> None:
    options = TrainingOptions(epochs=20, learning_rate=0.01, target_bits=2.0)
    nearest = train(_model, _splits(), options)
    chosen = train(_model, _splits(), dataclasses.replace(options, rdo=0.3))
    assert nearest.history[:-1] == chosen.history[:-1]
    assert nearest.step_log2 == chosen.step_log2
    zeros = [
        sum(int((t.model.get_parameter(name) == 0).sum()) for name in t.weight_names)
        for t in (nearest, chosen)
    ]
    assert zeros[1] > zeros[0]
    assert chosen.bits_per_weight < nearest.bits_per_weight


def test_folded_batch_norm_is_compiled_at_a_finer_step(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    options = TrainingOptions(epochs=20, learning_rate=0.02, target_bits=1.0)
    saved = save_training(train(make, _splits(), options), _splits(), tmp_path)
    assert saved.network is not None
    assert {layer.weight.step_log2 for layer in saved.network.layers} == {8}
    assert saved.packed.payload_bits < 3


def test_augmentation_sees_every_training_batch() -> None:
    sizes: list[int] = []

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(len(x))
        return torch.zeros_like(x)

    trained = train(_model, _splits(), TrainingOptions(epochs=2, batch_size=150), augment=augment)
    assert sizes == [150, 150, 100] * 2
    # Nothing can be learned from black images.
    assert trained.history[-1].loss > 0.6


def test_a_sample_left_over_waits_for_another_epoch() -> None:
    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    splits = _splits()
    odd = splits._replace(train=Split(splits.train.x[:65], splits.train.y[:65]))
    sizes = []

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(len(x))
        return x

    options = TrainingOptions(epochs=3, batch_size=32, target_bits=2.0)
    trained = train(make_model, odd, options, augment=augment)
    assert sizes == [32, 32] * 3
    assert all(0 < record.loss < 2 for record in trained.history)


def test_model_without_parameters_is_named() -> None:
    with pytest.raises(EgretError, match="no trainable parameter is chosen"):
        train(nn.Flatten, _splits(), TrainingOptions(epochs=1))


def test_model_that_fails_only_in_training_is_named() -> None:
    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    with pytest.raises(EgretError, match=r"Sequential: cannot be trained on .* \(1, 6\): Expected"):
        train(make_model, _splits(), TrainingOptions(epochs=1, batch_size=1))


class Masked(nn.Module):
    """Has a frozen layer and a buffer that no packed step could hold."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 16).requires_grad_(False)
        self.frozen.weight.mul_(1e-3)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 2)
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.frozen(x)).relu()) + self.mask.tril()[0]


def test_what_was_not_charged_is_packed_as_it_is(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=20, target_bits=2.0, seed=3)
    trained = train(Masked, _splits(), options)
    saved = save_training(trained, _splits(), tmp_path)
    unpacked = egret.load(tmp_path / "weights.egret").state_dict()
    for name, tensor in trained.state().items():
        assert torch.equal(unpacked[name], tensor), name
    assert saved.packed.accuracy["validation"] == trained.validation_accuracy


def test_divergence_is_reported() -> None:
    splits = _splits()
    splits.train.x[0, 0] = torch.inf
    with pytest.raises(EgretError, match="training diverged in epoch 1: the loss is"):
        train(_model, splits, TrainingOptions(epochs=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: found 0"),
        ({"final_epochs": -1}, "final_epochs: found -1"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"seed": -1}, "seed: found -1"),
        ({"learning_rate": 0.0}, "learning_rate: found 0.0"),
        ({"weight_decay": -0.1}, "weight_decay: found -0.1"),
        ({"target_bits": 1.0, "lam": 2.0}, "target_bits: found λ 2 and 0 final epochs with it"),
        ({"rdo": 0.1}, "rdo: found 0.1 with neither target_bits nor step_log2"),
        ({"step_log2": 6, "lam": 1.0}, "lam: found 1 with step_log2 6, expected 0"),
        ({"target_bits": 1.0, "rdo": -1.0}, "rdo: found -1"),
        ({"target_bits": 1.0, "final_epochs": 3}, "target_bits: found λ 0 and 3 final epochs"),
    ],
)
def test_bad_options_are_named(change: dict, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        TrainingOptions(**change)


def test_factories_are_called(factories: str) -> None:
    splits = load_data(f"{factories}:make_data")
    assert [len(split.x) for split in splits] == [400, 100, 100]
    assert isinstance(splits.validation, Split)
    assert isinstance(load_model(f"{factories}:make_model")(), nn.Sequential)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("{}", "expected MODULE:FACTORY"),
        (":make_data", "expected MODULE:FACTORY"),
        ("{}:make data", "expected MODULE:FACTORY"),
        ("no_such_module:make", "cannot import 'no_such_module'"),
        ("{}:nothing", "'nothing' does not exist in module"),
        ("{}:number", "'number' is not callable"),
        ("{}:raises", "the call failed: ValueError: no such file"),
        ("{}:two", "returned 2 parts, expected"),
        ("{}:make_model", "returned Sequential, expected"),
        ("{}:not_a_pair", "validation: found Tensor, expected a pair"),
        ("{}:one_tensor", "test: found TensorDataset, expected a pair"),
        ("{}:whole_x", "train: x: found torch.int64"),
        ("{}:nan_x", "train: x: found NaN"),
        ("{}:float_y", "test: y: found torch.float32"),
        ("{}:short_y", r"test: y: found torch.int64 of shape \(2,\)"),
        ("{}:negative_y", "test: y: found class -1"),
        ("{}:other_x", r"test: found samples of shape \(7,\), expected \(6,\)"),
    ],
)
def test_bad_data_factories_are_named(factories: str, factory: str, message: str) -> None:
    text = factory.format(factories)
    with pytest.raises(EgretError, match=message) as caught:
        load_data(text)
    assert f"--data {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("number_of", "does not exist"),
        ("make_data", "returned tuple, expected a torch.nn.Module"),
        ("make_narrow", "found class 1 in the training data, expected less than the model's 1"),
        ("make_wrong", r"cannot run on an input of shape \(1, 6\)"),
        ("make_flat", r"found output \(2,\), expected logits"),
    ],
)
def test_bad_model_factories_are_named(factories: str, factory: str, message: str) -> None:
    with pytest.raises(EgretError, match=message):
        train(load_model(f"{factories}:{factory}"), _splits(), TrainingOptions(epochs=1))


def test_results_are_saved(tmp_path: Path) -> None:
    splits = _splits()
    trained = train(_model, splits, TrainingOptions(epochs=2, lam=0.5))
    saved = save_training(trained, splits, tmp_path, step_log2=6)
    assert saved.reason is None
    assert saved.network is not None
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, trained.model.state_dict()[name])
    loaded = IntegerNetwork.load(tmp_path / "model.egret")
    assert [layer.name for layer in loaded.layers] == ["0", "3"]
    assert loaded.layers[0].weight.step_log2 == 6
    result = json.loads((tmp_path / "training.json").read_text())
    assert result["accuracy"]["test"] == accuracy(trained.model, splits.test)
    assert result["history"] == [dataclasses.asdict(record) for record in trained.history]
    assert result["options"]["lam"] == 0.5
    assert result["not_compiled"] is None


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    trained = train(Tied, _splits(), TrainingOptions(epochs=1))
    save_training(trained, _splits(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["first.weight"], state["second.weight"])


def test_command_trains_the_users_model(
    factories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--model", f"{factories}:make_model", "--data", f"{factories}:make_data"]
    assert main([*arguments, "--epochs", "3", "--lam", "0.5", "-o", "out"]) == 0
    printed = capsys.readouterr()
    assert "code bits per weight" in printed.out
    assert "epoch    3/3" in printed.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.egret", "model.safetensors", "training.json", "weights.egret"]
    # A model that is no chain still trains, and no stale packed file is left.
    arguments[2] = f"{factories}:make_sigmoid"
    assert main([*arguments, "--epochs", "1", "-o", "out"]) == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["options"][
        "target_bits"
    ] == pytest.approx(1)
    assert "No model.egret: module '1': found Sigmoid" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.safetensors", "training.json", "weights.egret"]


def test_command_trains_to_a_target(
    factories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--model", f"{factories}:make_model", "--data", f"{factories}:make_data"]
    options = ["--target-bits", "2", "--epochs", "20", "--learning-rate", "0.01", "-o", "out"]
    assert main([*arguments, *options]) == 0
    printed = capsys.readouterr()
    assert "20 epochs, to 2 bits per weight" in printed.err
    reached = float(
        printed.out.partition("Asked for 2 bits of entropy per weight, reached ")[2][:5]
    )
    assert reached == pytest.approx(2, rel=0.15)
    assert "weights.egret: " in printed.out
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (written["options"]["target_bits"], written["options"]["lam"]) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either a recipe"),
        (["--model", "a:b"], "belong together"),
        (["digits", "--model", "a:b", "--data", "a:b"], "name either a recipe"),
        (["--model", "a:b", "--data", "no_such_module:b"], "cannot import 'no_such_module'"),
        (["digits", "--epochs", "0"], "epochs: found 0"),
        (["digits", "--lam", "-1", "--epochs", "1"], "lam: found -1"),
        (["digits", "--lam", "1", "--target-bits", "1"], "--target-bits and --lam: give one"),
        (["digits", "--target-bits", "0", "--epochs", "1"], "target_bits: found 0.0"),
        (["digits", "--lam", "1", "--rdo", "0.1"], "--rdo: found with --lam"),
        (["digits", "--final-epochs", "5"], "--final-epochs: they go without the rate"),
    ],
)
def test_command_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("egret: error: ")
    assert message in last
