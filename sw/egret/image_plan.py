"""Which code and which value maps make an image quick.

The cost of a choice is counted in clock cycles: those of a matrix are its code bits at the rate of
the bus, or the multiplications of its lanes, whichever takes longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from egret.code_search import Codes
from egret.codebook import zigzag
from egret.errors import CapacityError, EgretError
from egret.image_code import HardwareCode, best_golomb, best_table
from egret.params import AcceleratorParams
from egret.prefix_code import PrefixCode

__all__ = ["Form", "Histograms", "Plan", "make_plan"]

_FORMS = ("direct", "dense", "run")
Form = str
"""One of "direct", "dense" (index 0 is an ordinary index) and "run"."""


class Histograms:
    """What a choice for a matrix depends on.

    Parameters
    ----------
    name : str
        Name of the layer, for messages.
    values : ndarray of int32, shape (rows, columns)
        The weights.
    params : AcceleratorParams
        The accelerator.

    Raises
    ------
    CapacityError
        A weight is too wide.
    """

    def __init__(self, name: str, values: NDArray[np.int32], params: AcceleratorParams) -> None:
        self.name = name
        self.rows, self.columns = values.shape
        flat = values.reshape(-1)
        limit = 1 << (params.weight_bits - 1)
        low, high = int(flat.min()), int(flat.max())
        if low < -limit or high >= limit:
            raise CapacityError(
                f"{name}: weight {low if low < -limit else high} does not fit "
                f"{params.weight_bits} bits, expected {-limit} to {limit - 1}"
            )
        self.by_number = np.bincount(zigzag(flat))
        self.zeros = int(self.by_number[0])
        positions = np.flatnonzero(flat)
        self.non_zeros = positions.size
        self.weights = flat.size
        # The first weight of a piece has no run before it, and there are few pieces.
        self.runs = np.bincount(np.diff(positions, prepend=positions[:1] - 1) - 1)
        self.depth = params.map_depth

    @cached_property
    def _ranked(self) -> NDArray[np.int64]:
        """Numbers that occur, most frequent first."""
        numbers = np.flatnonzero(self.by_number)
        return numbers[np.argsort(-self.by_number[numbers], kind="stable")]

    def numbers(self, form: Form) -> NDArray[np.int64]:
        """Return the zigzag numbers of a value map's entries."""
        ranked = self._ranked
        if form == "dense":
            return ranked
        others = ranked[ranked != 0]
        return others if form == "run" and others.size else np.concatenate(([0], others))

    def entries(self, form: Form, mapped: bool) -> int:
        """Return the number of indices in use, at least 1."""
        if mapped:
            return int(self.numbers(form).size)
        return max(1, self.by_number.size - (1 if form == "run" else 0))

    def levels(self, form: Form, mapped: bool) -> NDArray[np.int64]:
        """Return how often each index occurs."""
        counts = self.by_number[self.numbers(form)] if mapped else self.by_number
        if form != "run":
            return counts
        if not self.non_zeros:
            return np.zeros(1, np.int64)
        return counts if mapped else counts[1:]

    def can(self, form: Form, mapped: bool) -> bool:
        """Whether so many entries fit the hardware."""
        return self.entries(form, mapped) <= self.depth


@dataclass(frozen=True)
class Plan:
    """Codes and maps of an image's matrices.

    Parameters
    ----------
    codes : tuple of HardwareCode
        The codes.
    numbers : tuple of int
        Number of each matrix's code.
    mapped : tuple of bool
        Whether each matrix has a value map.
    """

    codes: tuple[HardwareCode, ...]
    numbers: tuple[int, ...]
    mapped: tuple[bool, ...]


def form_of(code: HardwareCode) -> Form:
    """Return the form of a code."""
    return "run" if code.run is not None else "dense" if code.dense else "direct"


def _sum(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(max(part.size for part in parts), np.int64)
    for part in parts:
        total[: part.size] += part
    return total


def _dot(code: PrefixCode, histogram: NDArray[np.int64]) -> int:
    return int(np.dot(code.lengths(np.arange(histogram.size)), histogram))


def _capped(runs: NDArray[np.int64], longest: int) -> tuple[NDArray[np.int64], int]:
    """Return the histogram of runs after splitting, and the number of fillers."""
    if runs.size <= longest + 1:
        return runs, 0
    lengths = np.flatnonzero(runs)
    fillers = lengths // (longest + 1)
    counts = np.bincount(lengths % (longest + 1), runs[lengths], longest + 1).astype(np.int64)
    total = int(np.dot(fillers, runs[lengths]))
    counts[longest] += total
    return counts, total


def code_bits(histograms: Histograms, code: HardwareCode, mapped: bool) -> tuple[int, int]:
    """Return the bits of a matrix's codewords, and the codewords that take a multiplier."""
    form = form_of(code)
    levels = histograms.levels(form, mapped)
    bits = _dot(code.level, levels)
    if code.run is None:
        return bits, histograms.weights if code.dense else histograms.non_zeros
    runs, fillers = _capped(histograms.runs, code.run.symbols - 1)
    filler = histograms.entries(form, mapped)
    bits += _dot(code.run, runs) + fillers * int(code.level.lengths(np.array([filler]))[0])
    return bits, histograms.non_zeros + fillers


def cycles(
    histograms: Histograms, code: HardwareCode, mapped: bool, params: AcceleratorParams
) -> tuple[float, int]:
    """Return the cycles of a matrix, and its code bits."""
    bits, events = code_bits(histograms, code, mapped)
    sums = histograms.rows + params.substreams
    return max(bits / params.beat_bits, (events + sums) / params.lanes), bits


def _has_room(histograms: Histograms, code: HardwareCode, mapped: bool) -> bool:
    entries = histograms.entries(form_of(code), mapped)
    return code.level.symbols > entries - (0 if code.needs_filler or code.run is not None else 1)


def _candidates(
    group: Sequence[Histograms], mapped: Sequence[bool], codes: Codes, params: AcceleratorParams
) -> list[HardwareCode]:
    """Return the best code of each kind for a group of matrices, the simplest first."""
    limit = params.suffix_limit
    found: list[HardwareCode] = []
    for form in _FORMS if "eg-run" in params.codes else _FORMS[:-1]:
        pairs = list(zip(group, mapped, strict=True))
        if not all(one.can(form, has_map) for one, has_map in pairs):
            continue
        levels = _sum([one.levels(form, has_map) for one, has_map in pairs])
        # Behind the indices there is the filler.
        filled = np.append(levels, 0)
        level_tables = [best_table(filled, limit)] if codes.table else []
        if form != "run":
            level_codes = [best_golomb(levels, limit, codes.orders), *level_tables]
            found += [HardwareCode(one[1], None, form == "dense") for one in level_codes if one]
            continue
        orders = Codes.AUTO.orders if codes.run else ()
        runs = _sum([_capped(one.runs, (1 << limit) - 1)[0] for one in group])
        level_codes = [best_golomb(filled, limit, orders), *level_tables]
        runs_codes = [best_golomb(runs, limit, orders)]
        if codes.table:
            longest = min((2 << limit) - 2, (1 << limit) + 1022)
            runs_codes.append(
                best_table(_sum([_capped(one.runs, longest)[0] for one in group]), limit)
            )
        found += [
            HardwareCode(level[1], run[1])
            for level in level_codes
            for run in runs_codes
            if level is not None and run is not None
        ]
    return found


def _total(
    group: Sequence[Histograms],
    mapped: Sequence[bool],
    code: HardwareCode,
    params: AcceleratorParams,
) -> tuple[float, int]:
    costs = [cycles(one, code, has_map, params) for one, has_map in zip(group, mapped, strict=True)]
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def _best_code(
    group: Sequence[Histograms], mapped: Sequence[bool], codes: Codes, params: AcceleratorParams
) -> HardwareCode | None:
    found = _candidates(group, mapped, codes, params)
    return min(found, key=lambda code: _total(group, mapped, code, params), default=None)


def _choose_maps(
    group: Sequence[Histograms], codes: Sequence[HardwareCode], params: AcceleratorParams
) -> list[bool]:
    """Give value maps to the matrices that gain most by them, as many as fit."""
    left = params.map_depth
    mapped = [False] * len(group)
    gains = []
    for number, (one, code) in enumerate(zip(group, codes, strict=True)):
        form = form_of(code)
        entries = one.entries(form, True)
        if not one.can(form, False) or not _has_room(one, code, False):
            mapped[number] = True
            left -= entries
        elif one.can(form, True) and _has_room(one, code, True):
            gain = cycles(one, code, False, params)[0] - cycles(one, code, True, params)[0]
            gains.append((gain / entries, number, entries))
    for gain, number, entries in sorted(gains, reverse=True):
        if gain > 0 and entries <= left:
            mapped[number] = True
            left -= entries
    return mapped


def make_plan(group: Sequence[Histograms], codes: Codes, params: AcceleratorParams) -> Plan:
    """Choose codes and value maps.

    Parameters
    ----------
    group : sequence of Histograms
        The matrices in running order.
    codes : Codes
        Codes that may be used.
    params : AcceleratorParams
        The accelerator.

    Raises
    ------
    CapacityError
        A matrix has no indices that fit.
    EgretError
        The accelerator knows none of the codes.
    """
    allowed = Codes(codes.orders, codes.run, codes.table and "eg-table" in params.codes)
    if "eg-run" not in params.codes:
        allowed = replace(allowed, run=False)
    if not (allowed.orders or allowed.run or allowed.table):
        raise EgretError(
            f"codes: found none that parameter set {params.name} knows, expected some of "
            f"{', '.join(params.codes)}"
        )
    for one in group:
        if not any(one.can(form, has_map) for form in _FORMS for has_map in (False, True)):
            raise CapacityError(
                f"{one.name}: {one.entries('direct', True)} distinct weights do not fit the value "
                f"map, expected at most {params.map_depth}, nor does the largest magnitude fit a "
                "zigzag index"
            )
    best: tuple[tuple[float, int], Plan] | None = None
    for first in (False, True):
        mapped = [
            one.can("direct", True) if first else not one.can("direct", False) for one in group
        ]
        for _ in range(3):
            code = _best_code(group, mapped, allowed, params)
            if code is None:
                break
            mapped = _choose_maps(group, [code] * len(group), params)
            entries = sum(
                one.entries(form_of(code), True)
                for one, has_map in zip(group, mapped, strict=True)
                if has_map
            )
            code = _best_code(group, mapped, allowed, params)
            if code is None or entries > params.map_depth:
                break
            cost = _total(group, mapped, code, params)
            if best is None or cost < best[0]:
                best = cost, Plan((code,), (0,) * len(group), tuple(mapped))
    if best is None:
        raise CapacityError(
            f"the value maps of the layers do not fit, expected at most {params.map_depth} entries"
        )
    return best[1]
