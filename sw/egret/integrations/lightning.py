"""A callback for Lightning."""

import math
from typing import Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from egret.errors import EgretError
from egret.integrations.session import SessionCallback

__all__ = ["RateCallback"]


class RateCallback(SessionCallback, lightning.Callback):
    """Trains towards a number of bits per weight, with rounded weights.

    Give it to the trainer, and after `fit()` pack what `step_log2` says:

        callback = RateCallback(target_bits=1.0)
        lightning.Trainer(max_epochs=20, callbacks=[callback]).fit(module, loader)
        egret.pack(module.state_dict(), "model.egret", step_log2=callback.step_log2)

    For modules with one optimiser that Lightning steps itself (automatic optimisation). Its state
    is in Lightning's checkpoints. After the training the module's weights are rounded. Validation
    on the way sees them rounded too, but for the check before the first step; checkpoints hold them
    unrounded. Only the last step has the bits asked for: give `max_epochs` or `max_steps`, and take
    no earlier checkpoint for the result.

    Parameters and attributes are those of `egret.integrations.session.SessionCallback`.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from a checkpoint.

        Raises
        ------
        EgretError
            The trainer does not know how many steps it will take.
        """
        self._steps = trainer.global_step
        steps = float(trainer.estimated_stepping_batches)
        if not math.isfinite(steps):
            raise EgretError(
                "max_epochs, max_steps: found no end of the training, expected one: the bits fall "
                "along it"
            )
        self.session.start(pl_module, int(steps))

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Round the weights."""
        self.session.round_weights()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Give them back."""
        self.session.restore_weights()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the proximal step, if the optimiser has stepped."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.session.after_step(trainer.optimizers[0])

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Round the weights, within a training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.session.round_weights()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Give them back."""
        self.session.restore_weights()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Round the weights for good."""
        self.session.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.session.load_state_dict(state_dict)
