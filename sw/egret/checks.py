"""Checks of numbers that users give, with one wording for all of them."""

import math
from numbers import Real
from typing import Any

import numpy as np

from egret.errors import EgretError

__all__ = ["check_at_least", "check_count", "check_positive"]


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no finite number above 0.

    Raises
    ------
    EgretError
        Names `name` and the value.
    """
    if not (_is_finite(value) and value > 0):
        raise EgretError(f"{name}: found {value!r}, expected a finite number above 0")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Refuse what is no finite number of `least` or more.

    Raises
    ------
    EgretError
        Names `name` and the value.
    """
    if not (_is_finite(value) and value >= least):
        raise EgretError(f"{name}: found {value!r}, expected a finite number of {least:g} or more")


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of 1 or more.

    Raises
    ------
    EgretError
        Names `name` and the value.
    """
    if not (isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1):
        raise EgretError(f"{name}: found {value!r}, expected a whole number of 1 or more")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
