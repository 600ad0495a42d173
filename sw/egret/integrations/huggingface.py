"""A callback for `transformers.Trainer`."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from egret.errors import EgretError
from egret.files import write_text
from egret.integrations.session import SessionCallback

__all__ = ["RateCallback"]

_STATE = "egret_rate.json"


class RateCallback(SessionCallback, TrainerCallback):
    """Trains towards a number of bits per weight, with rounded weights.

    Give it to the trainer, and after `train()` pack what `step_log2` says:

        callback = RateCallback(target_bits=1.0)
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        egret.pack(model.state_dict(), "model.egret", step_log2=callback.step_log2)

    Its state is saved in every checkpoint, and taken up again from the one that the training is
    resumed from. After the training the model's weights are rounded. Evaluations on the way see
    them rounded too, of every evaluation set, and checkpoints hold them unrounded. Only the last
    step has the bits asked for: `load_best_model_at_end` is refused, stopping early leaves more.

    Parameters and attributes are those of `egret.integrations.session.SessionCallback`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on from the checkpoint that the trainer goes on from.

        Raises
        ------
        EgretError
            The trainer is to load its best checkpoint at the end, of which the bits are not those
            asked for; or the checkpoint to go on from has no state of the rate term.
        """
        if args.load_best_model_at_end:
            raise EgretError(
                "load_best_model_at_end: found True; only the last step has the bits asked for, "
                "expected False"
            )
        if state.global_step > 0:
            path = _folder(args, state) / _STATE
            if not path.is_file():
                raise EgretError(
                    f"{path}: not found; this checkpoint was not trained with the rate term"
                )
            self.session.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        model = kwargs["model"]
        self.session.start(model, state.max_steps)
        # The trainer tells where its first evaluation set begins, but not where another follows.
        self.session.round_evaluations(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Round the weights."""
        self.session.round_weights()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give them back."""
        self.session.restore_weights()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the proximal step, unless a loss scaler has skipped the optimiser's."""
        optimizer = kwargs["optimizer"]
        if not getattr(optimizer, "step_was_skipped", False):
            self.session.after_step(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Round the weights for an evaluation, which comes next if it does."""
        if control.should_evaluate:
            self.session.round_weights()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do the same behind an epoch."""
        if control.should_evaluate:
            self.session.round_weights()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give them back."""
        self.session.restore_weights()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the state in the checkpoint."""
        if state.is_world_process_zero:
            text = json.dumps(self.session.state_dict()) + "\n"
            write_text(_folder(args, state) / _STATE, text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Round the weights for good."""
        self.session.finish()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
