"""Which codebook each tensor gets: selection, statistics and plan, without writing anything.

Weights are read and rounded in blocks, so that no tensor has to fit the memory. Small tensors are
planned together in groups, because they can share codebooks; a large one has its own.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from egret.checkpoint import TensorSource, as_source
from egret.code_search import Codes, Statistics, parse_codes, plan_shared
from egret.codebook import Codebook
from egret.codec import MAX_CHUNK, choose_chunk
from egret.crc import crc32c
from egret.errors import EgretError, QuantizationError
from egret.patterns import check_patterns, matches
from egret.quantize import (
    DEFAULT_BITS,
    DEFAULT_STEP_LOG2,
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    MAX_BITS,
    QuantizedTensor,
    check_bits,
    check_step,
    exact_numbers,
    extremes,
    finest_step,
    quantize_words,
    steps_by_name,
)
from egret.rdo import Rounder, check_lam

__all__ = [
    "CHUNK_INDEX_BYTES",
    "DEFAULT_MEMORY",
    "Planned",
    "Settings",
    "Tally",
    "Weights",
    "Workers",
    "find_twins",
    "plan_group",
    "plan_work",
    "quantized_weights",
    "select_tensors",
    "sort_state",
    "state_order",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_MEMORY = 1 << 30
"""Bytes that packing may take up, one tensor not counted."""
CHUNK_INDEX_BYTES = 8
"""Bytes of the index for each chunk: its bits and its CRC."""

# Tensors of up to so many weights are planned together.
_SMALL_WEIGHTS = 1 << 18
# A group of them; an interrupted packing does at most one group again.
_GROUP_WEIGHTS = 1 << 22
_GROUP_TENSORS = 256
# Weights read, rounded and coded at a time. Not a setting: groups and blocks decide nothing that
# is written, but an interrupted packing must find the same groups again.
_BLOCK_WEIGHTS = 1 << 19
# Memory of a block under way: its words, values, codewords and statistics.
_BLOCK_MEMORY = 64 * _BLOCK_WEIGHTS
# Memory of the interpreter and its libraries.
_BASE_MEMORY = 224 << 20
# Roundings for the bits of a codebook, which then change it; further ones hardly change anything.
_RDO_ROUNDS = 3
# Bytes of a tensor that are compared first in the search for equal ones.
_SAMPLE_BYTES = 4096
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How tensors are rounded and coded.

    Parameters
    ----------
    step_log2 : int, mapping of str to int, or None
        n of the step 2^-n, for all tensors or by name; None for the finest step at which each
        tensor fits `bits`.
    bits : int
        Range, in bits of a signed integer.
    codes : Codes
        Codes to choose from.
    rdo : float
        λ of rate-distortion-optimised rounding, see `egret.rdo.Rounder`; 0 rounds to the nearest.
    """

    step_log2: int | Mapping[str, int] | None
    bits: int
    codes: Codes
    rdo: float = 0.0

    @classmethod
    def of(
        cls,
        step_log2: int | Mapping[str, int] | None,
        bits: int | None,
        codes: Any,
        rdo: float = 0.0,
    ) -> "Settings":
        """Check what a user asks for.

        Parameters
        ----------
        step_log2, bits
            As in `egret.packing.pack`. The names of a mapping are not checked.
        codes : Codes, str or sequence of str
            As `egret.code_search.parse_codes` takes them.
        rdo : float
            As in `egret.packing.pack`.

        Raises
        ------
        QuantizationError
            The step or the number of bits is out of range.
        EgretError
            There is no such code, or `rdo` is out of range.
        """
        check_lam(rdo, "rdo")
        if isinstance(step_log2, Mapping):
            steps_by_name(step_log2, tuple(step_log2))
        elif step_log2 is not None:
            check_step(step_log2, "step")
        if bits is not None:
            check_bits(bits, "range")
        if step_log2 is None and bits is None:
            step_log2 = DEFAULT_STEP_LOG2
        return cls(step_log2, DEFAULT_BITS if bits is None else bits, parse_codes(codes), rdo)


@dataclass(frozen=True)
class Weights:
    """A tensor that is to be coded.

    Parameters
    ----------
    name : str
        Its name.
    dtype : str
        Its dtype, one of `egret.quantize.CODED_DTYPES`.
    source : TensorSource
        Its elements; those of a quantised tensor are its integers.
    step_log2 : int or None
        n of its step where that is known before: of integers, and of quantised tensors.
    is_quantized : bool
        Whether it is a quantised tensor, which is coded even where that gains nothing.
    """

    name: str
    dtype: str
    source: TensorSource
    step_log2: int | None = None
    is_quantized: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.source.shape

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.source.size

    def values(
        self,
        start: int,
        count: int,
        step_log2: int,
        bits: int,
        rounder: Rounder | None = None,
        chunk: int = MAX_CHUNK,
    ) -> NDArray[np.int32]:
        """Read and round weights, at most a block; errors as of `egret.quantize.quantize_words`.

        With a rounder, the block is a whole number of chunks. The result is good until the same
        thread calls this again.
        """
        words = self.source.read(start, count, _SCRATCH.words)
        values = quantize_words(
            words,
            self.dtype,
            step_log2,
            bits=bits if self.step_log2 is None else MAX_BITS,
            name=self.name,
            shape=self.shape,
            start=start,
            out=_SCRATCH.values[:count],
        )
        if rounder is not None:
            numbers = exact_numbers(words, self.dtype).astype(np.float64)
            rounder.improve(np.ldexp(numbers, step_log2), values, chunk)
        return values


class _Scratch(threading.local):
    """Memory that each thread uses again and again: new memory costs more than the rounding."""

    def __init__(self) -> None:
        self.words = np.empty(8 * _BLOCK_WEIGHTS, np.uint8)
        self.values = np.empty(_BLOCK_WEIGHTS, np.int32)


_SCRATCH = _Scratch()


@dataclass(frozen=True)
class Planned:
    """What packing does with a tensor.

    Parameters
    ----------
    weights : Weights
        The tensor.
    step_log2 : int
        n of its step.
    chunk : int
        Weights in a chunk.
    statistics : Statistics or None
        Of its values; None for integers that are too large to be coded.
    book : Codebook or None
        Its codebook; None when it stays as it is, because coding does not gain.
    code_bits : int
        Bits of its codewords.
    values : ndarray of int32 or None
        All its values, where they are few.
    rounder : Rounder or None
        Chooses the values, where they are not the nearest.
    """

    weights: Weights
    step_log2: int
    chunk: int
    statistics: Statistics | None = None
    book: Codebook | None = None
    code_bits: int = 0
    values: NDArray[np.int32] | None = field(default=None, repr=False)
    rounder: Rounder | None = None

    def read(self, start: int, count: int, bits: int) -> NDArray[np.int32]:
        """Return the values of one of `blocks`; good until the same thread calls this again."""
        if self.values is not None:
            return self.values[start : start + count]
        return self.weights.values(start, count, self.step_log2, bits, self.rounder, self.chunk)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.weights.size // self.chunk)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Give first element and number of elements of blocks of whole chunks."""
        return _blocks(self.weights.size, self.chunk)


def _blocks(size: int, chunk: int = 1) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_WEIGHTS // chunk) * chunk
    for start in range(0, size, step):
        yield start, min(step, size - start)


class Workers:
    """Threads that share blocks, and no more blocks at a time than fit the memory.

    Used in a `with` statement.

    Parameters
    ----------
    threads : int
        Threads, 1 or more. With one, the caller's does all the work.
    memory : int
        Bytes that the process may take up.

    Raises
    ------
    EgretError
        A number is too small.
    """

    def __init__(self, threads: int = 1, memory: int = DEFAULT_MEMORY) -> None:
        if not isinstance(threads, int) or threads < 1:
            raise EgretError(f"threads: found {threads!r}, expected 1 or more")
        least = _BASE_MEMORY + _BLOCK_MEMORY
        if memory < least:
            raise EgretError(
                f"memory: found {memory >> 20} MiB, expected at least {-(-least >> 20)} MiB"
            )
        self._ahead = min(threads, (memory - _BASE_MEMORY) // _BLOCK_MEMORY)
        self._pool = ThreadPoolExecutor(self._ahead) if self._ahead > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to each item and give the results in order."""
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        for item in items:
            if len(waiting) == self._ahead:
                yield waiting.popleft().result()
            waiting.append(self._pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()


def select_tensors(
    tensors: Mapping[str, Any],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Choose the tensors to code.

    Parameters
    ----------
    tensors : Mapping of str to TensorSource or RawTensor
        All tensors.
    include : sequence of str
        Patterns (`*`, `?`, `[…]`) over names. When given, tensors that match one are coded if
        they are floating, or of a dtype of `egret.quantize.INTEGER_DTYPES` with an axis or more.
        Else the tensors of these dtypes with two or more axes are.
    exclude : sequence of str
        Patterns of tensors to leave as they are.

    Returns
    -------
    list of str
        Names, in the order of `tensors`.

    Raises
    ------
    EgretError
        A pattern matches no tensor, or the patterns are no list.
    """
    check_patterns(include, "include", tensors, "tensors")
    check_patterns(exclude, "exclude", tensors, "tensors")

    def is_chosen(name: str, tensor: Any) -> bool:
        if matches([name], exclude):
            return False
        axes = len(tensor.shape)
        if include:
            fits = tensor.dtype in FLOAT_DTYPES or (tensor.dtype in INTEGER_DTYPES and axes >= 1)
            return fits and matches([name], include)
        return axes >= 2 and tensor.dtype in (*FLOAT_DTYPES, *INTEGER_DTYPES)

    return [name for name, tensor in tensors.items() if is_chosen(name, tensor)]


def sort_state(
    state: Mapping[str, Any], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[dict[str, Weights], dict[str, TensorSource]]:
    """Divide a state dict into what is coded and what is kept.

    Parameters
    ----------
    state : Mapping of str to tensor
        As in `egret.packing.pack`.
    include, exclude : sequence of str
        As in `select_tensors`, which quantised tensors are not subject to.

    Returns
    -------
    tuple of dict
        The tensors to code and the others, each ascending by the names' UTF-8 bytes.

    Raises
    ------
    EgretError
        A name is no str, or as from `select_tensors`.
    FormatError
        An entry is no tensor.
    QuantizationError
        There is nothing to code.
    """
    if not isinstance(state, Mapping):
        raise EgretError(f"found {type(state).__name__}, expected a mapping of names to tensors")
    for name in state:
        if not isinstance(name, str):
            raise EgretError(f"found key {name!r}, expected the name of a tensor")
    coded = quantized_weights(
        {name: value for name, value in state.items() if isinstance(value, QuantizedTensor)}
    )
    others = {
        name: as_source(state[name], name) for name in state_order(state) if name not in coded
    }
    for name in select_tensors(others, include, exclude):
        source = others.pop(name)
        step_log2 = 0 if source.dtype in INTEGER_DTYPES else None
        coded[name] = Weights(name, source.dtype, source, step_log2)
    if not coded:
        raise QuantizationError(
            f"none of the {len(others)} tensors is to be coded: expected a floating one with "
            "two or more dimensions, or one that an include pattern names"
        )
    return {name: coded[name] for name in state_order(coded)}, others


def quantized_weights(tensors: Mapping[str, QuantizedTensor]) -> dict[str, Weights]:
    """Take quantised tensors as they are, ascending by the names' UTF-8 bytes."""
    return {
        name: Weights(
            name,
            tensors[name].dtype,
            as_source(tensors[name].values, name),
            tensors[name].step_log2,
            is_quantized=True,
        )
        for name in state_order(tensors)
    }


def state_order(names: Iterable[str]) -> list[str]:
    """Sort names by their UTF-8 bytes, the order of a container's records."""
    return sorted(names, key=lambda name: name.encode(errors="surrogatepass"))


def find_twins(coded: Mapping[str, Weights], raw: Mapping[str, TensorSource]) -> dict[str, str]:
    """Find tensors whose elements equal those of an earlier one, such as tied weights.

    Parameters
    ----------
    coded, raw : Mapping
        As from `sort_state`.

    Returns
    -------
    dict of str to str
        For each such tensor the first one of the same dtype, shape and bytes that is coded at
        the same step, or kept like it. Tensors without elements are not looked at.
    """
    groups: dict[Any, list[tuple[str, TensorSource]]] = {}
    for name, weights in coded.items():
        kind = (weights.dtype, weights.shape, weights.step_log2, weights.is_quantized)
        groups.setdefault(kind, []).append((name, weights.source))
    for name, source in raw.items():
        groups.setdefault((source.dtype, source.shape), []).append((name, source))
    return {
        name: target
        for group in groups.values()
        if len(group) > 1 and group[0][1].size
        for alike in _alike(group, _sample_crc)
        for equal in _alike(alike, _crc)
        for name, target in _equal_bytes(equal)
    }


def _alike(
    group: Sequence[tuple[str, TensorSource]], key: Callable[[TensorSource], int]
) -> list[list[tuple[str, TensorSource]]]:
    """Divide a group by a key, and leave out what is alone."""
    if len(group) < 2:
        return []
    parts: dict[int, list[tuple[str, TensorSource]]] = {}
    for name, source in group:
        parts.setdefault(key(source), []).append((name, source))
    return [part for part in parts.values() if len(part) > 1]


def _sample_crc(source: TensorSource) -> int:
    return crc32c(source.read_bytes(0, min(_SAMPLE_BYTES, source.data_bytes), None))


def _crc(source: TensorSource) -> int:
    crc = 0
    for block in source.blocks(_COMPARE_BYTES):
        crc = crc32c(block, crc)
    return crc


def _equal_bytes(group: Sequence[tuple[str, TensorSource]]) -> Iterator[tuple[str, str]]:
    firsts: list[tuple[str, TensorSource]] = []
    for name, source in group:
        for target, other in firsts:
            pairs = zip(source.blocks(_COMPARE_BYTES), other.blocks(_COMPARE_BYTES), strict=True)
            if all(np.array_equal(*pair) for pair in pairs):
                yield name, target
                break
        else:
            firsts.append((name, source))


def plan_work(tensors: Iterable[Weights]) -> list[list[Weights]]:
    """Divide tensors into groups that are planned together: large ones alone, small ones shared.

    The division depends on names, order and shapes alone.
    """
    groups: list[list[Weights]] = []
    small: list[Weights] = []
    held = 0
    for weights in tensors:
        if weights.size > _SMALL_WEIGHTS:
            groups.append([weights])
            continue
        if held + weights.size > _GROUP_WEIGHTS or len(small) == _GROUP_TENSORS:
            groups.append(small)
            small, held = [], 0
        small.append(weights)
        held += weights.size
    return [*groups, small] if small else groups


def plan_group(
    group: Sequence[Weights],
    settings: Settings,
    workers: Workers,
    progress: Callable[[Weights, int], None] | None = None,
) -> list[Planned]:
    """Read the weights of a group and choose their codebooks.

    Parameters
    ----------
    group : sequence of Weights
        One of those that `plan_work` made.
    settings : Settings
        Steps and codes.
    workers : Workers
        Share the blocks of a large tensor.
    progress : Callable, optional
        Called with a tensor and the number of its weights that have been read since the last
        call.

    Returns
    -------
    list of Planned
        One for each tensor.

    Raises
    ------
    QuantizationError
        A weight is not finite or out of range.
    EgretError
        The file cannot be read.
    """
    surveyed = []
    for weights in group:
        small = weights.size <= _SMALL_WEIGHTS
        survey = _survey_small if small else _survey_large
        surveyed.append(survey(weights, settings, workers, progress))
    chosen = _with_books([item for item in surveyed if item.statistics is not None], settings)
    if settings.rdo > 0:
        for _ in range(_RDO_ROUNDS):
            chosen = _with_books([_round(item, settings, workers) for item in chosen], settings)
    done = {item.weights.name: item for item in _those_that_gain(chosen)}
    return [done.get(item.weights.name, item) for item in surveyed]


def _with_books(items: Sequence[Planned], settings: Settings) -> list[Planned]:
    statistics = [item.statistics for item in items if item.statistics is not None]
    books, numbers, bits = plan_shared(statistics, settings.codes)
    return [
        replace(item, book=books[number], code_bits=count)
        for item, number, count in zip(items, numbers, bits, strict=True)
    ]


def _round(item: Planned, settings: Settings, workers: Workers) -> Planned:
    """Round again, for the lengths of the codebook that was chosen."""
    assert item.book is not None
    if item.weights.step_log2 is not None:
        return item
    rounder = Rounder(item.book, settings.rdo)
    if item.values is not None:
        values = item.weights.values(
            0, item.weights.size, item.step_log2, settings.bits, rounder, item.chunk
        ).copy()
        return replace(item, statistics=Statistics.of(values, item.chunk), values=values)
    item = replace(item, rounder=rounder)

    def survey(block: tuple[int, int]) -> Statistics:
        return Statistics.of(item.read(*block, settings.bits), item.chunk)

    tally = Tally()
    for part in workers.map(survey, item.blocks()):
        tally.add(part)
    return replace(item, statistics=tally.total())


def _those_that_gain(chosen: Sequence[Planned]) -> list[Planned]:
    """Take the codebook away from tensors that are smaller as they were."""

    def cost(item: Planned) -> int:
        # At most so much: every chunk is filled up to a whole byte.
        return (item.code_bits + 7 * item.chunks) // 8 + CHUNK_INDEX_BYTES * item.chunks

    gains = [
        item
        for item in chosen
        if item.weights.is_quantized or cost(item) < item.weights.source.data_bytes
    ]
    savings: dict[int, int] = {}
    for item in gains:
        saved = item.weights.source.data_bytes - cost(item)
        # A tensor that has to be coded keeps the codebook for the others too.
        saved = saved if not item.weights.is_quantized else 1 << 62
        savings[id(item.book)] = savings.get(id(item.book), 0) + saved
    coded = {
        item.weights.name
        for item in gains
        if item.book is not None and savings[id(item.book)] > len(item.book.data)
    }
    return [
        item if item.weights.name in coded else replace(item, book=None, code_bits=0)
        for item in chosen
    ]


class Tally:
    """Adds up statistics of many blocks, in a table of all numbers up to the largest."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self._runs = np.zeros(0, np.int64)

    def add(self, part: Statistics) -> None:
        """Count a block in."""
        self._counts = _grown(self._counts, part.numbers)
        self._counts[part.numbers] += part.counts
        self._runs = _grown(self._runs, part.runs)
        self._runs[part.runs] += part.run_counts

    def total(self) -> Statistics:
        """Return the statistics of all blocks."""
        numbers, runs = np.flatnonzero(self._counts), np.flatnonzero(self._runs)
        return Statistics(numbers, self._counts[numbers], runs, self._runs[runs])


def _grown(table: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a table that has the places, which ascend."""
    needed = int(places[-1]) + 1 if places.size else 0
    if needed <= table.size:
        return table
    return np.concatenate((table, np.zeros(max(needed, 2 * table.size) - table.size, np.int64)))


def _step(weights: Weights, settings: Settings, workers: Workers) -> int:
    if weights.step_log2 is not None:
        return weights.step_log2
    if isinstance(settings.step_log2, Mapping):
        return settings.step_log2.get(weights.name, DEFAULT_STEP_LOG2)
    if settings.step_log2 is not None:
        return settings.step_log2

    def ends(block: tuple[int, int]) -> tuple[float, float]:
        return extremes(
            weights.source.read(*block, _SCRATCH.words),
            weights.dtype,
            name=weights.name,
            shape=weights.shape,
            start=block[0],
        )

    found = list(workers.map(ends, _blocks(weights.size))) or [(0.0, 0.0)]
    lowest, highest = min(low for low, _ in found), max(high for _, high in found)
    return finest_step(lowest, highest, settings.bits, weights.dtype, name=weights.name)


def _may_stay(weights: Weights) -> bool:
    """Tell whether a tensor whose values cannot be coded is kept as it is."""
    return weights.dtype in INTEGER_DTYPES and not weights.is_quantized


def _survey_small(
    weights: Weights,
    settings: Settings,
    workers: Workers,
    progress: Callable[[Weights, int], None] | None,
) -> Planned:
    if progress is not None:
        progress(weights, weights.size)
    step_log2 = _step(weights, settings, workers)
    try:
        values = weights.values(0, weights.size, step_log2, settings.bits).copy()
    except QuantizationError:
        if _may_stay(weights):
            return Planned(weights, step_log2, MAX_CHUNK)
        raise
    chunk = choose_chunk(weights.shape, values.size - int(np.count_nonzero(values)))
    return Planned(weights, step_log2, chunk, Statistics.of(values, chunk), values=values)


def _survey_large(
    weights: Weights,
    settings: Settings,
    workers: Workers,
    progress: Callable[[Weights, int], None] | None,
) -> Planned:
    step_log2 = _step(weights, settings, workers)
    chunk = choose_chunk(weights.shape)

    def survey(block: tuple[int, int]) -> Statistics:
        return Statistics.of(weights.values(*block, step_log2, settings.bits), chunk)

    tally = Tally()
    try:
        blocks = list(_blocks(weights.size, chunk))
        for (_, count), part in zip(blocks, workers.map(survey, blocks), strict=True):
            tally.add(part)
            if progress is not None:
                progress(weights, count)
    except QuantizationError:
        if _may_stay(weights):
            return Planned(weights, step_log2, chunk)
        raise
    return Planned(weights, step_log2, chunk, tally.total())
