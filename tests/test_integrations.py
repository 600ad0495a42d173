"""The rate term in other training loops, on small models."""

import copy
from pathlib import Path
from typing import Any

import accelerate
import lightning
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import egret
from egret.errors import EgretError
from egret.integrations import huggingface
from egret.integrations import lightning as egret_lightning
from egret.qat import StraightThrough, round_to_step
from egret.rate import RateRegularizer, entropy_per_weight

SEED = 4


def _data() -> TensorDataset:
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(320, 12, generator=generator)
    return TensorDataset(x, (x[:, :6].sum(1) > x[:, 6:].sum(1)).long())


class Classifier(nn.Module):
    """Takes and returns what `transformers.Trainer` gives and wants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return Classifier()


def _check(model: nn.Module, step_log2: dict[str, int], target: float, path: Path) -> None:
    """The weights have the bits, lie on their grids, and pack without loss."""
    weights = [model.get_parameter(name) for name in step_log2]
    steps = list(step_log2.values())
    assert entropy_per_weight(weights, steps) == pytest.approx(target, rel=0.15), f"seed {SEED}"
    for weight, step in zip(weights, steps, strict=True):
        assert torch.equal(weight, round_to_step(weight, step))
    egret.pack(model.state_dict(), path, step_log2=step_log2)
    for name, tensor in egret.load(path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def _arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 30,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": True,
        "logging_strategy": "no",
    }
    return transformers.TrainingArguments(**(settings | changes))


class Evaluations(Classifier):
    """Keeps the weights that evaluations see, and those that they find behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.training:
            self.seen.append(self.get_parameter("layers.0.weight").detach().clone())
        return super().forward(x, labels)


def _check_evaluations(seen: list[torch.Tensor], step: int, saved: torch.Tensor) -> None:
    """Evaluations see rounded weights, checkpoints hold what they were rounded from."""
    for weight in seen:
        assert torch.equal(weight, round_to_step(weight, step))
    assert not torch.equal(saved, seen[-1])
    assert torch.equal(round_to_step(saved, step), seen[-1])


def _trainer(folder: Path, **changes: Any) -> tuple[Any, Any, Classifier]:
    model = _classifier()
    callback = huggingface.RateCallback(target_bits=0.8, every=2)
    rows = [{"x": x, "labels": y} for x, y in zip(*_data().tensors, strict=True)]
    trainer = transformers.Trainer(
        model, _arguments(folder, **changes), train_dataset=rows, callbacks=[callback]
    )
    return trainer, callback, model


def test_transformers_trainer_comes_to_the_target(tmp_path: Path) -> None:
    trainer, callback, model = _trainer(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 300
    _check(model, callback.step_log2, 0.8, tmp_path / "model.egret")
    x, y = _data().tensors
    with torch.no_grad():
        assert (model.layers(x).argmax(1) == y).float().mean() > 0.9


def test_transformers_trainer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    changes = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 20}
    trainer, callback, whole = _trainer(tmp_path / "whole", **changes)
    trainer.train()
    again, other, resumed = _trainer(tmp_path / "whole", **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))
    assert other.session.state_dict() == callback.session.state_dict()
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    (tmp_path / "whole" / "checkpoint-20" / "egret_rate.json").unlink()
    third, _, _ = _trainer(tmp_path / "whole", **changes)
    with pytest.raises(EgretError, match=r"egret_rate\.json: not found; this checkpoint was not"):
        third.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))


def test_transformers_trainer_with_the_best_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer, _, _ = _trainer(tmp_path)
    trainer.args.load_best_model_at_end = True
    with pytest.raises(EgretError, match="load_best_model_at_end: found True"):
        trainer.train()


class Samples(transformers.TrainerCallback):
    """Looks at what the model does after each evaluation, as users do who print samples."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        x, y = _data().tensors
        model = kwargs["model"].eval()
        with torch.no_grad():
            model(x[:4], y[:4])


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_transformers_trainer_evaluates_rounded_weights(
    tmp_path: Path, strategy: str, sets: int
) -> None:
    changes = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 10}
    arguments = _arguments(tmp_path, num_train_epochs=3, save_steps=10, **changes)
    model, callback = Evaluations(), huggingface.RateCallback(target_bits=0.8, step_log2=3)
    rows = [{"x": x, "labels": y} for x, y in zip(*_data().tensors, strict=True)]
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset={f"part{i}": rows[16 * i : 16 * i + 16] for i in range(sets)},
        callbacks=[callback, Samples()],
    )
    trainer.train()
    # Two batches of each set, and the samples behind them.
    assert len(model.seen) == (2 + 1) * 3 * sets
    saved = safetensors.torch.load_file(tmp_path / "checkpoint-30" / "model.safetensors")
    step = callback.step_log2["layers.0.weight"]
    _check_evaluations(model.seen, step, saved["layers.0.weight"])


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = _classifier()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model(*batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def _fit(folder: Path, epochs: int, accumulate: int, resume: Path | None = None) -> Any:
    module, callback = Module(), egret_lightning.RateCallback(target_bits=0.8, every=2)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[
            callback,
            lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}"),
        ],
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(_data(), batch_size=16)
    trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume))
    return module, callback, trainer


def test_lightning_comes_to_the_target(tmp_path: Path) -> None:
    module, callback, trainer = _fit(tmp_path, 30, 2)
    assert trainer.global_step == 300
    assert callback.session.state_dict()["calls"] == 300
    _check(module, callback.step_log2, 0.8, tmp_path / "model.egret")
    x, y = _data().tensors
    with torch.no_grad():
        assert (module.model.layers(x).argmax(1) == y).float().mean() > 0.9


def test_lightning_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, callback, _ = _fit(tmp_path / "a", 4, 1)
    resumed, other, _ = _fit(tmp_path / "b", 4, 1, tmp_path / "a" / "epoch=1.ckpt")
    assert other.session.state_dict() == callback.session.state_dict()
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_lightning_without_an_end_is_refused(tmp_path: Path) -> None:
    trainer = lightning.Trainer(
        max_epochs=-1,
        max_time={"minutes": 1},
        callbacks=[egret_lightning.RateCallback(target_bits=0.8)],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    with pytest.raises(EgretError, match="max_epochs, max_steps: found no end"):
        trainer.fit(Module(), DataLoader(_data(), batch_size=32))


class Validated(Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = self.evaluations = Evaluations()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(*batch)


def test_lightning_validates_rounded_weights(tmp_path: Path) -> None:
    module, callback = Validated(), egret_lightning.RateCallback(target_bits=0.8)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        callbacks=[callback, lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="a")],
        num_sanity_val_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(_data(), batch_size=160)
    trainer.fit(module, loader, loader)
    assert len(module.evaluations.seen) == 1 + 2 * 2
    saved = torch.load(tmp_path / "a.ckpt", weights_only=False)["state_dict"]
    step = callback.step_log2["model.layers.0.weight"]
    _check_evaluations(module.evaluations.seen[1:], step, saved["model.layers.0.weight"])


def test_lightning_does_what_a_loop_of_ones_own_does(tmp_path: Path) -> None:
    module, _, _ = _fit(tmp_path, 3, 1)
    own = Module()
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    quantizer = StraightThrough(own, target_bits=0.8)
    rate = RateRegularizer(own, target_bits=0.8, steps=60, quantizer=quantizer, every=2)
    for _ in range(3):
        for batch in DataLoader(_data(), batch_size=16):
            optimizer.zero_grad()
            with quantizer:
                own.training_step(batch, 0).backward()
            optimizer.step()
            rate.step(optimizer)
    quantizer.apply()
    for one, two in zip(module.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, two)


def test_accelerate_needs_two_lines(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = _classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(_data(), batch_size=16)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    quantizer = StraightThrough(accelerator.unwrap_model(model), target_bits=0.8)
    rate = RateRegularizer(model, target_bits=0.8, steps=300, quantizer=quantizer)
    for _ in range(30):
        for x, y in loader:
            with accelerator.accumulate(model):
                with quantizer:
                    accelerator.backward(model(x, y)["loss"])
                optimizer.step()
                if accelerator.sync_gradients:
                    rate.step(optimizer)
                optimizer.zero_grad()
    quantizer.apply()
    assert rate.state_dict()["calls"] == 300
    unwrapped = copy.deepcopy(accelerator.unwrap_model(model))
    _check(unwrapped, quantizer.step_log2, 0.8, tmp_path / "model.egret")
    zeros = [np.mean(p.detach().numpy() == 0) for p in unwrapped.parameters() if p.dim() == 2]
    assert max(zeros) > 0.3
