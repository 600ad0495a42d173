"""What every callback does: rounding before the gradients, the rate step after the optimiser's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from egret.errors import EgretError
from egret.qat import StraightThrough
from egret.rate import RateRegularizer

__all__ = ["RateSession", "SessionCallback"]


class RateSession:
    """One training with the rate term, in the order in which a framework's hooks come.

    Parameters
    ----------
    target_bits : float
        Bits per weight to come to, as of `egret.rate.RateRegularizer`.
    step_log2 : int, mapping of str to int, or None
        Steps of the weights; as of `egret.qat.StraightThrough`, chosen for each tensor when None.
    settings : Mapping
        Further arguments of `egret.rate.RateRegularizer`: `include`, `exclude`, `eps`, `every`,
        `nu` and `per`.

    Attributes
    ----------
    rate : RateRegularizer or None
        The regulariser, once the training has begun.
    quantizer : StraightThrough or None
        What rounds the weights, once the training has begun.
    """

    def __init__(
        self,
        target_bits: float,
        step_log2: int | Mapping[str, int] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._target_bits = target_bits
        self._given = step_log2
        self._settings = dict(settings)
        self._waiting: Mapping[str, Any] | None = None
        self._is_rounded = False
        self._rounds_pass = False
        self._hooks: tuple[RemovableHandle, ...] = ()
        self.rate: RateRegularizer | None = None
        self.quantizer: StraightThrough | None = None

    def start(self, model: nn.Module, steps: int) -> None:
        """Begin, before the first step of `steps`, or go on from `load_state_dict`."""
        chosen = {
            key: self._settings[key] for key in ("include", "exclude") if key in self._settings
        }
        state, self._waiting = self._waiting, None
        bits = self._target_bits if self._given is None else None
        self.quantizer = StraightThrough(model, self._given, target_bits=bits, **chosen)
        self.rate = RateRegularizer(
            model,
            target_bits=self._target_bits,
            steps=steps,
            quantizer=self.quantizer,
            **self._settings,
        )
        if state is not None:
            self.rate.load_state_dict(state)

    def _parts(self) -> tuple[RateRegularizer, StraightThrough]:
        if self.rate is None or self.quantizer is None:
            raise EgretError("rate term: the training has not begun")
        return self.rate, self.quantizer

    def round_weights(self) -> None:
        """Round the weights, unless they are already: gradients may be summed over batches."""
        _, quantizer = self._parts()
        if not self._is_rounded:
            quantizer.__enter__()
            self._is_rounded = True

    def restore_weights(self) -> None:
        """Give the weights back as they were, if they are rounded."""
        if self._is_rounded:
            self._is_rounded = False
            self._parts()[1].__exit__(None, None, None)

    def round_evaluations(self, model: nn.Module) -> None:
        """Round the weights in every pass of the model in evaluation mode, until `finish`."""
        self._remove_hooks()
        # Weights that lie in shards are rounded before they are gathered, hence `prepend`.
        self._hooks = (
            model.register_forward_pre_hook(self._before_pass, prepend=True),
            model.register_forward_hook(self._after_pass, always_call=True),
        )

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.compiler.disable
    def _before_pass(self, model: nn.Module, arguments: Any) -> None:
        if not model.training and not torch.is_grad_enabled() and not self._is_rounded:
            self.round_weights()
            self._rounds_pass = True

    @torch.compiler.disable
    def _after_pass(self, model: nn.Module, arguments: Any, output: Any) -> None:
        if self._rounds_pass:
            self._rounds_pass = False
            self.restore_weights()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the proximal step, after the optimiser's."""
        rate, _ = self._parts()
        rate.step(optimizer)

    def finish(self) -> None:
        """Round the weights for good."""
        self._remove_hooks()
        self.restore_weights()
        self._parts()[1].apply()

    @property
    def step_log2(self) -> dict[str, int]:
        """Step of each tensor, for `egret.pack`; after the training has begun."""
        return self._parts()[1].step_log2

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: plain numbers and strings."""
        return self._parts()[0].state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state when the training begins."""
        self._waiting = state


class SessionCallback:
    """What the callbacks of all frameworks have in common.

    Parameters
    ----------
    target_bits : float
        Bits per weight to come to.
    step_log2 : int, mapping of str to int, or None
        Steps 2^-n of the weights; chosen for each tensor when None.
    **settings
        Further arguments of `egret.rate.RateRegularizer`.

    Attributes
    ----------
    session : RateSession
        The regulariser and the quantiser, once the training has begun.
    """

    def __init__(
        self,
        target_bits: float,
        step_log2: int | Mapping[str, int] | None = None,
        **settings: Any,
    ) -> None:
        self.session = RateSession(target_bits, step_log2, settings)

    @property
    def step_log2(self) -> dict[str, int]:
        """Step of each tensor, for `egret.pack`; after the training has begun.

        Where matrices are frozen or left out, give its names to `egret.pack` as `include`.
        """
        return self.session.step_log2
