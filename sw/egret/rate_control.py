"""The rate controller: finds the λ that a wanted number of bits takes, while training."""

import math
from typing import Any

from egret.checks import check_count, check_positive

__all__ = ["RateController"]

# Shares of the training: up to them the rate term waits, the bits fall, and zeros may come back.
_WAIT = 0.2
_FALL = 0.45
_HOLD = 0.7
_PROPORTIONAL = 8.0
_INTEGRAL = 200.0
_LARGEST_CHANGE = 1.0
# Steps that weights take to follow λ: in a shorter training a sum over less would run away.
_SHORTEST_SPAN = 40.0
_FLOOR = 1e-3
# Share of its largest below which λ pulls no more; for how much of the training, and up to what
# times the bits that it left; below which share of the target bits are missed.
_IDLE = math.log(0.01)
_PATIENCE = 0.1
_RISEN = 1.1
_MISSED = 0.85
# Share of the scheduled bits below which there is to be no pull at all.
_BRAKE = math.log(0.65)


class RateController:
    """Scales λ so that the bits of the weights follow a schedule to a target.

    In the first fifth of the training the network learns without a rate. Up to 45 % of the steps
    the logarithm of the bits is to fall in a straight line from what is measured first to the
    target, and then to stay there. From 70 % on weights that are 0 stay 0, so that less pull holds
    the bits, and the other weights get back what it has taken from them.

    The logarithm of λ follows what the logarithm of the bits is above the schedule, and its sum
    over time (a PI controller). In logarithms neither the size of a model nor the units of its loss
    change the gains, and time is counted in trainings, so that there is nothing to set for a model;
    the sum of a training of less than 80 steps grows as if it had as many.

    Parameters
    ----------
    target : float
        Bits per weight at the end, above 0.
    steps : int
        Steps of the training, 1 or more.

    Attributes
    ----------
    first, hold : int
        The steps, counted from 1, from which on the rate pulls and zeros are held.

    Raises
    ------
    EgretError
        A number out of its range.
    """

    def __init__(self, target: float, steps: int) -> None:
        check_positive("target", target)
        check_count("steps", steps)
        # Numbers of NumPy would not go into a saved state.
        self.target = float(target)
        self.steps = int(steps)
        self.first = int(_WAIT * steps) + 1
        self.hold = max(self.first, math.ceil(_HOLD * steps)) + 1
        self._fall = max(1.0, (_FALL - _WAIT) * steps)
        self._span = max(_SHORTEST_SPAN, (_HOLD - _WAIT) * steps)
        self._start: float | None = None
        self._error = 0.0
        self._step = 0
        # Logarithm of λ over its largest so far; the latest step at which it pulled, and the bits
        # that it left.
        self._fallen = 0.0
        self._pulled = 0
        self._left = 0.0

    def scheduled(self, step: int) -> float:
        """Return the bits per weight that the schedule asks for after so many steps."""
        if self._start is None:
            return self.target
        share = max(0.0, min(1.0, (step - self.first) / self._fall))
        return self._start * (self.target / self._start) ** share

    def falls(self, step: int) -> bool:
        """Return whether the bits are still to fall after so many steps."""
        return step - self.first < self._fall

    @property
    def brakes(self) -> bool:
        """Whether the bits, as last measured, are far below the schedule.

        λ takes several measurements to fall, in which weights would be lost that do not come back.
        """
        return self._error < _BRAKE

    def misses(self, bits: float) -> bool:
        """Return whether bits stay well below the target although λ has been idle for a while.

        Then it is no longer the rate that keeps them down.
        """
        waited = self._step - self._pulled > _PATIENCE * self.steps
        return waited and bits < min(_MISSED * self.target, _RISEN * self._left)

    def wait(self) -> None:
        """Give the bits time anew, when something else has been done for them."""
        self._pulled = self._step

    def update(self, bits: float, step: int) -> float:
        """Take a measurement and return the factor by which λ changes.

        Parameters
        ----------
        bits : float
            Bits per weight after `step` steps. What is not finite changes nothing.
        step : int
            Steps so far; not below that of the latest call.
        """
        if not math.isfinite(bits):
            return 1.0
        bits = max(bits, _FLOOR * self.target)
        if self._start is None:
            # Fewer bits than asked for at the start are no reason to raise them at once.
            self._start, self._step = max(bits, self.target), step
        error = math.log(bits / self.scheduled(step))
        change = _PROPORTIONAL * (error - self._error)
        change += _INTEGRAL * error * (step - self._step) / self._span
        self._error, self._step = error, step
        change = max(-_LARGEST_CHANGE, min(_LARGEST_CHANGE, change))
        self._fallen = min(0.0, self._fallen + change)
        if self._fallen > _IDLE:
            self._pulled, self._left = step, bits
        return math.exp(change)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes to go on from here."""
        return {
            "start": self._start,
            "error": self._error,
            "step": self._step,
            "fallen": self._fallen,
            "pulled": self._pulled,
            "left": self._left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another controller was."""
        self._start, self._error, self._step = state["start"], state["error"], state["step"]
        self._fallen, self._pulled, self._left = state["fallen"], state["pulled"], state["left"]
