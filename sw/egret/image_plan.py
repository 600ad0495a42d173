"""Which codes and which value maps make an image quick.

The cost of a choice is counted in clock cycles: those of a matrix are its code bits at the rate of
the lanes, or their multiplications, whichever takes longer; those of a table that is loaded again
for every pass are added.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from egret.code_search import Codes
from egret.codebook import zigzag
from egret.errors import CapacityError, EgretError
from egret.image_code import HardwareCode, best_golomb, best_table
from egret.image_format import CLASSES, ENTRY_BITS
from egret.params import AcceleratorParams
from egret.prefix_code import PrefixCode

__all__ = ["Histograms", "MapUse", "Plan", "code_cycles", "make_plan"]

_DIRECT, _DENSE, _RUN = "direct", "dense", "run"
_FORMS = (_DIRECT, _DENSE, _RUN)
_ZIGZAG, _SHARED, _OWN = range(3)

_ROUNDS = 3
# Cycles in which the lanes stand still while the microcode of a new code is made and loaded.
_MICROCODE_CYCLES = 1200
# Cycles from a CODE packet of entries to the next packet, where the parsers are of logic.
_CODE_CYCLES = 2 * CLASSES + 8


def _form(code: HardwareCode) -> str:
    return _RUN if code.run is not None else _DENSE if code.dense else _DIRECT


class Histograms:
    """How often values and runs of zeros occur in a matrix.

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
        self.rows = values.shape[0]
        flat = values.reshape(-1)
        limit = 1 << (params.weight_bits - 1)
        low, high = int(flat.min()), int(flat.max())
        if low < -limit or high >= limit:
            raise CapacityError(
                f"{name}: weight {low if low < -limit else high} does not fit "
                f"{params.weight_bits} bits, expected {-limit} to {limit - 1}"
            )
        self.counts = np.bincount(zigzag(flat))
        """How often each zigzag number occurs."""
        self.positions = np.flatnonzero(flat)
        """Where the weights are that are not 0."""
        self.weights = flat.size
        # The first weight of a piece has no run before it, and there are few pieces.
        runs = np.diff(self.positions, prepend=self.positions[:1] - 1) - 1
        self.runs = np.bincount(runs, minlength=1)
        """How often each number of zeros stands before another weight."""
        self._depth = params.map_depth

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """Numbers of the values that are not 0, most frequent first."""
        numbers = np.flatnonzero(self.counts)
        numbers = numbers[numbers > 0]
        return numbers[np.argsort(-self.counts[numbers], kind="stable")]

    def own_map(self, form: str) -> NDArray[np.int64]:
        """Return the numbers of the entries of a map of the matrix's own."""
        if form == _DENSE and self.counts[0]:
            place = int(np.sum(self.counts[self.ranked] > self.counts[0]))
            return np.insert(self.ranked, place, 0)
        if form == _DIRECT or not self.ranked.size:
            return np.insert(self.ranked, 0, 0)
        return self.ranked

    def levels(self, form: str, numbers: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return how often each index occurs; `numbers` as in `MapUse`."""
        if numbers is None:
            numbers = np.arange(1 if form == _RUN else 0, max(2, self.counts.size))
        counts = np.zeros(numbers.size, np.int64)
        known = numbers < self.counts.size
        counts[known] = self.counts[numbers[known]]
        if form == _RUN:
            counts[numbers == 0] = 0
        return counts


@dataclass(frozen=True, eq=False)
class MapUse:
    """The part of the map memory that a matrix uses.

    Parameters
    ----------
    numbers : ndarray of int64, shape (entries,)
        Zigzag number of each index's value.
    key : int
        -1 for the map that all matrices may share, else the matrix's number.
    first : int
        Where in that map the entry of index 0 is.
    """

    numbers: NDArray[np.int64]
    key: int
    first: int


@dataclass(frozen=True)
class Plan:
    """Codes and maps of an image's matrices.

    Parameters
    ----------
    codes : tuple of HardwareCode
        The codes.
    numbers : tuple of int
        Number of each matrix's code.
    maps : tuple of MapUse or None
        Map of each matrix; None for the zigzag of the index.
    shared : ndarray of int64, shape (entries,)
        Zigzag numbers of the entries of the shared map; none where no matrix uses it.
    """

    codes: tuple[HardwareCode, ...]
    numbers: tuple[int, ...]
    maps: tuple[MapUse | None, ...]
    shared: NDArray[np.int64]


def code_cycles(params: AcceleratorParams) -> int:
    """Return the cycles that changing a code between two matrices costs."""
    if params.parser == "microcode":
        return _MICROCODE_CYCLES
    return max(_CODE_CYCLES, 2 * CLASSES * ENTRY_BITS // params.beat_bits)


def _summed(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(max(part.size for part in parts), np.int64)
    for part in parts:
        total[: part.size] += part
    return total


def _dot(code: PrefixCode, histogram: NDArray[np.int64]) -> int:
    # Symbols beyond the code count as its last one.
    symbols = np.minimum(np.arange(histogram.size), code.symbols - 1)
    return int(np.dot(code.lengths(symbols), histogram))


def _split_runs(runs: NDArray[np.int64], longest: int) -> tuple[NDArray[np.int64], int]:
    """Return the histogram of runs where fillers interrupt longer ones, and the fillers."""
    if runs.size <= longest + 1:
        return runs, 0
    lengths = np.flatnonzero(runs)
    each = lengths // (longest + 1)
    counts = np.zeros(longest + 1, np.int64)
    np.add.at(counts, lengths % (longest + 1), runs[lengths])
    fillers = int(np.dot(each, runs[lengths]))
    counts[longest] += fillers
    return counts, fillers


class _Planner:
    """Chooses for one group of matrices."""

    def __init__(
        self,
        group: Sequence[Histograms],
        codes: Codes,
        params: AcceleratorParams,
        indices: int,
    ) -> None:
        self.group = group
        self.indices = indices
        self.codes = codes
        self.params = params
        self.forms = _FORMS if "eg-run" in params.codes else _FORMS[:-1]
        self.shared = np.empty(0, np.int64)
        self._uses: dict[tuple[int, str, int], MapUse | None] = {}
        self._levels: dict[tuple[int, str, int], NDArray[np.int64]] = {}

    def share(self, budget: int) -> None:
        """Make the shared map: all values of the matrices with the smallest, as many as fit."""
        found = np.zeros(1, np.int64)
        for one in sorted(self.group, key=lambda one: one.counts.size):
            more = np.union1d(found, np.flatnonzero(one.counts))
            if more.size > budget:
                break
            found = more
        self.set_shared(found if found.size > 1 else np.empty(0, np.int64))

    def set_shared(self, numbers: NDArray[np.int64]) -> None:
        """Replace the shared map."""
        self.shared = numbers
        self._uses.clear()
        self._levels.clear()

    def use(self, number: int, form: str, kind: int) -> MapUse | None:
        """Return a matrix's map."""
        key = number, form, kind
        if key not in self._uses:
            self._uses[key] = self._make_use(number, form, kind)
        return self._uses[key]

    def _make_use(self, number: int, form: str, kind: int) -> MapUse | None:
        one = self.group[number]
        if kind == _ZIGZAG:
            return None
        if kind == _OWN:
            return MapUse(one.own_map(form), number, 0)
        numbers = np.sort(one.ranked)
        first, last = 1, 1
        if numbers.size:
            first, last = (int(place) for place in np.searchsorted(self.shared, numbers[[0, -1]]))
            last += 1
        if form == _DIRECT:
            return MapUse(np.insert(self.shared[first:last], 0, 0), -1, first - 1)
        if (form == _DENSE and one.counts[0]) or first == last:
            first = 0
        return MapUse(self.shared[first:last], -1, first)

    def levels(self, number: int, form: str, kind: int) -> NDArray[np.int64]:
        """Return how often each index of a matrix occurs."""
        key = number, form, kind
        if key not in self._levels:
            use = self.use(number, form, kind)
            numbers = None if use is None else use.numbers
            self._levels[key] = self.group[number].levels(form, numbers)
        return self._levels[key]

    def can(self, number: int, form: str, kind: int) -> bool:
        """Whether the map memory, or the range of the zigzag, has room for a matrix's values."""
        if kind == _SHARED:
            numbers = self.group[number].ranked
            return bool(self.shared.size) and bool(np.isin(numbers, self.shared).all())
        return self.levels(number, form, kind).size <= self.params.map_depth

    def fits(self, number: int, code: HardwareCode, kind: int) -> bool:
        """Whether a code has a codeword for each index that a matrix needs."""
        form = _form(code)
        if not self.can(number, form, kind):
            return False
        needs_filler = code.run is not None or code.needs_filler
        needed = max(self.levels(number, form, kind).size + needs_filler, self.indices)
        return needed <= code.level.symbols

    def cost(self, number: int, code: HardwareCode, kind: int) -> tuple[float, int]:
        """Return the cycles of a matrix, and the bits of its codewords.

        Where the code has too few codewords, this is what it would be with a few more of them.
        """
        one, params = self.group[number], self.params
        levels = self.levels(number, _form(code), kind)
        bits = _dot(code.level, levels)
        events = one.weights if code.dense else one.positions.size
        if code.run is not None:
            runs, fillers = _split_runs(one.runs, code.run.symbols - 1)
            bits += _dot(code.run, runs)
            filler = np.array([min(levels.size, code.level.symbols - 1)])
            bits += fillers * int(code.level.lengths(filler)[0])
            events += fillers
        sums = one.rows + params.substreams
        return max(bits / params.beat_bits, (events + sums) / params.lanes), bits

    def total(
        self, numbers: Sequence[int], code: HardwareCode, kinds: Sequence[int]
    ) -> tuple[float, int]:
        """Return the cycles and the bits of some matrices with one code."""
        if not all(self.fits(number, code, kinds[number]) for number in numbers):
            return np.inf, 0
        costs = [self.cost(number, code, kinds[number]) for number in numbers]
        return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)

    def _candidates(self, numbers: Sequence[int], kinds: Sequence[int]) -> Iterator[HardwareCode]:
        """Yield the best code of each kind for some matrices, the simplest first."""
        limit = self.params.suffix_limit
        tables = self.codes.table
        for form in self.forms:
            if not all(self.can(number, form, kinds[number]) for number in numbers):
                continue
            levels = _summed([self.levels(number, form, kinds[number]) for number in numbers])
            # Behind the indices there is the filler.
            filled = np.pad(levels, (0, max(1, self.indices - levels.size)))
            level_tables = [best_table(filled, limit)] if tables else []
            if form != _RUN:
                level_codes = [best_golomb(levels, limit, self.codes.orders), *level_tables]
                for level in level_codes:
                    if level is not None:
                        yield HardwareCode(level[1], None, form == _DENSE)
                continue
            orders = Codes.AUTO.orders if self.codes.run else ()
            runs = [self.group[number].runs for number in numbers]
            # Runs as the code with the fewest symbols has them, which does for a choice.
            golomb_runs = _summed([_split_runs(each, (1 << limit) - 1)[0] for each in runs])
            run_codes = [best_golomb(golomb_runs, limit, orders)]
            if tables:
                longest = min((2 << limit) - 2, (1 << limit) + 1022)
                table_runs = _summed([_split_runs(each, longest)[0] for each in runs])
                run_codes.append(best_table(table_runs, limit))
            for level in (best_golomb(filled, limit, orders), *level_tables):
                for run in run_codes:
                    if level is not None and run is not None:
                        yield HardwareCode(level[1], run[1])

    def best_code(
        self, numbers: Sequence[int], kinds: Sequence[int]
    ) -> tuple[tuple[float, int], HardwareCode | None]:
        """Return the best code for some matrices, and its cost."""
        best: tuple[tuple[float, int], HardwareCode | None] = (np.inf, 0), None
        for code in self._candidates(numbers, kinds):
            cost = self.total(numbers, code, kinds)
            if cost < best[0]:
                best = cost, code
        return best

    def choose_maps(
        self, codes: Sequence[HardwareCode], kinds: Sequence[int] | None = None
    ) -> list[int]:
        """Give maps of their own to the matrices that gain most by them, as many as fit.

        With the present kinds, the codes are final, and others must fit them.
        """
        left = self.params.map_depth - self.shared.size
        chosen: list[int] = []
        gains = []
        for number, code in enumerate(codes):
            form = _form(code)
            possible = [
                kind
                for kind in (_ZIGZAG, _SHARED, _OWN)
                if (
                    self.can(number, form, kind) if kinds is None else self.fits(number, code, kind)
                )
            ]
            costs = {kind: self.cost(number, code, kind) for kind in possible}
            entries = self.levels(number, form, _OWN).size
            kind = min(
                (kind for kind in costs if kind != _OWN), key=costs.__getitem__, default=_OWN
            )
            chosen.append(kind)
            if kind == _OWN:
                left -= entries
            elif _OWN in costs:
                gains.append(((costs[kind][0] - costs[_OWN][0]) / entries, number, entries))
        for gain, number, entries in sorted(gains, reverse=True):
            if gain > 0 and entries <= left:
                chosen[number] = _OWN
                left -= entries
        return chosen

    def one_code(self) -> tuple[tuple[float, int], HardwareCode | None, list[int]]:
        """Choose maps and the one code of all matrices."""
        every = range(len(self.group))
        best: tuple[tuple[float, int], HardwareCode | None, list[int]] = (np.inf, 0), None, []
        for wished in (_OWN, _SHARED):
            kinds = [self._first_kind(number, wished) for number in every]
            for _ in range(_ROUNDS):
                code = self.best_code(every, kinds)[1]
                if code is None:
                    break
                kinds = self.choose_maps([code] * len(self.group))
                if self.shared.size and not self._has_room(code, kinds):
                    break
                (cycles, bits), code = self.best_code(every, kinds)
                if code is not None:
                    cycles += self._map_cycles(code, kinds)
                if (cycles, bits) < best[0]:
                    best = (cycles, bits), code, kinds
        return best

    def _own_entries(self, code: HardwareCode, kinds: Sequence[int]) -> int:
        return sum(
            self.levels(number, _form(code), kind).size
            for number, kind in enumerate(kinds)
            if kind == _OWN
        )

    def _map_cycles(self, code: HardwareCode, kinds: Sequence[int]) -> int:
        """Return the cycles that maps take in every pass: those that do not fit together."""
        entries = self._own_entries(code, kinds)
        # Dealt one a cycle.
        return 0 if self.shared.size + entries <= self.params.map_depth else entries

    def _has_room(self, code: HardwareCode, kinds: Sequence[int]) -> bool:
        """Whether the shared map leaves room for the others."""
        return self.shared.size + self._own_entries(code, kinds) <= self.params.map_depth

    def _first_kind(self, number: int, wished: int) -> int:
        kinds = (wished, _ZIGZAG, _OWN)
        return next((kind for kind in kinds if self.can(number, self.forms[0], kind)), _OWN)

    def banks(
        self, codes: list[HardwareCode], kinds: Sequence[int]
    ) -> tuple[tuple[float, int], list[HardwareCode], list[int]] | None:
        """Improve several codes that stay, by giving each matrix the one that suits it best."""
        best: tuple[tuple[float, int], list[HardwareCode], list[int]] | None = None
        for _ in range(_ROUNDS):
            chosen = []
            cost = 0.0, 0
            for number in range(len(self.group)):
                fitting = [
                    (self.cost(number, code, kinds[number]), place)
                    for place, code in enumerate(codes)
                    if self.fits(number, code, kinds[number])
                ]
                if not fitting:
                    return best
                own, place = min(fitting)
                chosen.append(place)
                cost = cost[0] + own[0], cost[1] + own[1]
            if best is not None and cost >= best[0]:
                break
            best = cost, codes, chosen
            following = []
            for place in range(len(codes)):
                members = [number for number, other in enumerate(chosen) if other == place]
                code = self.best_code(members, kinds)[1] if members else None
                following.append(codes[place] if code is None else code)
            codes = following
        return best

    def segments(
        self, kinds: Sequence[int], change: float
    ) -> tuple[float, list[HardwareCode], list[int]] | None:
        """Choose codes that are loaded between matrices, each change at a cost."""
        parts = [[number] for number in range(len(self.group))]
        costs = [self.best_code(part, kinds) for part in parts]
        joined = [self.best_code(one + other, kinds) for one, other in pairwise(parts)]
        while len(parts) > 1:
            losses = [
                joined[place][0][0] - costs[place][0][0] - costs[place + 1][0][0]
                for place in range(len(joined))
            ]
            place = int(np.argmin(losses))
            if losses[place] >= change:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            costs[place : place + 2] = [joined.pop(place)]
            for near in (place - 1, place):
                if 0 <= near < len(joined):
                    joined[near] = self.best_code(parts[near] + parts[near + 1], kinds)
        if len(parts) == 1 or any(code is None for _, code in costs):
            return None
        total = sum(cost[0] for cost, _ in costs) + change * len(parts)
        numbers = [place for place, part in enumerate(parts) for _ in part]
        return total, [code for _, code in costs if code is not None], numbers


def make_plan(
    group: Sequence[Histograms], codes: Codes, params: AcceleratorParams, *, indices: int = 0
) -> Plan:
    """Choose codes and value maps.

    Parameters
    ----------
    group : sequence of Histograms
        The matrices in running order.
    codes : Codes
        Codes that may be used.
    params : AcceleratorParams
        The accelerator.
    indices : int
        Indices that every code has codewords for in any case.

    Returns
    -------
    Plan
        At most as many codes as the accelerator holds, which stay, or more, where loading them
        between matrices costs less than it gains. The maps of matrices that cannot do without
        may together be larger than the map memory.

    Raises
    ------
    CapacityError
        A matrix has values that no map holds.
    EgretError
        The accelerator knows none of the codes.
    """
    allowed = Codes(
        codes.orders,
        codes.run and "eg-run" in params.codes,
        codes.table and "eg-table" in params.codes,
    )
    if not (allowed.orders or allowed.run or allowed.table):
        raise EgretError(
            f"codes: found none that parameter set {params.name} knows, expected some of "
            f"{', '.join(params.codes)}"
        )
    planner = _Planner(group, allowed, params, indices)
    for number, one in enumerate(group):
        if not any(
            planner.can(number, form, kind) for form in planner.forms for kind in (_ZIGZAG, _OWN)
        ):
            raise CapacityError(
                f"{one.name}: {one.own_map(_DIRECT).size} distinct weights do not fit the value "
                f"map, expected at most {params.map_depth}, nor does the largest magnitude fit a "
                "zigzag index"
            )
    best = planner.one_code()
    kept = planner.shared
    for budget in (params.map_depth // 2, params.map_depth):
        planner.share(budget)
        if planner.shared.size:
            found = planner.one_code()
            if found[0] < best[0]:
                best, kept = found, planner.shared
    cost, code, kinds = best
    if code is None:
        raise CapacityError(
            "found no code for the indices of all layers, expected one of "
            f"{', '.join(params.codes)} with suffixes of at most {params.suffix_limit} bits"
        )
    planner.set_shared(kept)
    return _with_more_codes(planner, cost, code, kinds)


def _with_more_codes(
    planner: _Planner, cost: tuple[float, int], code: HardwareCode, kinds: list[int]
) -> Plan:
    """Use several codes where that is quicker."""
    every = range(len(planner.group))
    codes, numbers = [code], [0] * len(planner.group)
    if planner.params.code_banks > 1 and len(planner.group) > 1:
        order = sorted(every, key=lambda number: _scale(planner.group[number]))
        for share in (1, 2, 3):
            place = max(1, len(order) * share // 4)
            halves = [planner.best_code(part, kinds)[1] for part in (order[:place], order[place:])]
            found = planner.banks([half for half in halves if half is not None], kinds)
            if found is not None and found[0] < cost:
                cost, codes, numbers = found
    change = code_cycles(planner.params)
    # No code for one matrix is better than its own.
    least = sum(planner.best_code([number], kinds)[0][0] for number in every)
    if cost[0] - least > 2 * change:
        parts = planner.segments(kinds, change)
        if parts is not None and parts[0] < cost[0]:
            _, codes, numbers = parts
    kinds = planner.choose_maps([codes[number] for number in numbers], kinds)
    uses = tuple(
        planner.use(number, _form(codes[numbers[number]]), kinds[number]) for number in every
    )
    used = sorted(set(numbers))
    return Plan(
        tuple(codes[number] for number in used),
        tuple(used.index(number) for number in numbers),
        uses,
        planner.shared
        if any(use is not None and use.key < 0 for use in uses)
        else np.empty(0, np.int64),
    )


def _scale(one: Histograms) -> float:
    """Return the bits, nearly, that a level takes."""
    return float(np.dot(one.counts, np.log2(np.arange(one.counts.size) + 1.0))) / one.weights
