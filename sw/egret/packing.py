"""From a state dict or a checkpoint to a packed file and back."""

import base64
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.checkpoint import Checkpoint, TensorSource, as_source, read_checkpoint
from egret.code_search import Codes, parse_codes
from egret.codec import encode
from egret.command import refuse_same_file
from egret.container import AliasRecord, CodedRecord, RawEntry, write_container
from egret.container_index import CONTAINER_VERSION, check_name
from egret.crc import crc32c
from egret.errors import EgretError
from egret.packed import PackedWeights, load
from egret.planning import (
    DEFAULT_MEMORY,
    Planned,
    Settings,
    Weights,
    Workers,
    find_twins,
    plan_group,
    plan_work,
    quantized_weights,
    select_tensors,
    sort_state,
    state_order,
)
from egret.quantize import MAX_BITS, QuantizedTensor, steps_by_name
from egret.safetensors_file import RawTensor
from egret.spool import Spool

__all__ = ["PackedWeights", "load", "pack", "quantize_state", "select_tensors", "write_packed"]

_COPY_BYTES = 1 << 20


class _Report:
    """Turns weights that have been gone through into bytes done, for a progress display."""

    def __init__(self, progress: Callable[[str, int, int], None] | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0.0

    def add(self, name: str, count: float) -> None:
        """Note that `count` more bytes, of the tensor `name`, are done."""
        self._done += count
        if self._progress is not None:
            self._progress(name, int(self._done), self._total)


def _encode(planned: Planned, bits: int, workers: Workers, spool: Spool, report: _Report) -> Any:
    """Write a tensor's code to the spool and return what the index will say of it."""
    weights, book = planned.weights, planned.book
    assert book is not None

    def code(
        block: tuple[int, int],
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32], list[int]]:
        data, lengths = encode(planned.read(*block, bits), book, planned.chunk)
        ends = [0, *np.cumsum((lengths.astype(np.int64) + 7) // 8).tolist()]
        return data, lengths, [crc32c(data[a:b]) for a, b in itertools.pairwise(ends)]

    lengths: list[NDArray[np.uint32]] = []
    crcs: list[int] = []
    code_bytes = 0
    share = weights.source.data_bytes / max(1, weights.size) / 2
    blocks = list(planned.blocks())
    for (_, count), (data, parts, sums) in zip(blocks, workers.map(code, blocks), strict=True):
        spool.append(data)
        code_bytes += data.size
        lengths.append(parts)
        crcs += sums
        report.add(weights.name, count * share)
    return {
        "name": weights.name,
        "step": planned.step_log2,
        "chunk": planned.chunk,
        "book": book.data.hex(),
        "bits": _text(np.concatenate([np.empty(0, np.uint32), *lengths])),
        "crcs": _text(np.array(crcs, np.uint32)),
        "code_bytes": code_bytes,
    }


def _text(numbers: NDArray[np.uint32]) -> str:
    return base64.b64encode(numbers.astype("<u4").tobytes()).decode()


def _numbers(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(base64.b64decode(text), "<u4").astype(np.uint32)


def _code_group(
    group: Sequence[Weights], settings: Settings, workers: Workers, spool: Spool, report: _Report
) -> None:
    """Plan and code a group of tensors; what does not gain has no book in the spool's entry."""

    def read(weights: Weights, count: int) -> None:
        report.add(weights.name, count * weights.source.data_bytes / max(1, weights.size) / 2)

    entries = []
    for planned in plan_group(group, settings, workers, read):
        if planned.book is not None:
            entries.append(_encode(planned, settings.bits, workers, spool, report))
        else:
            entries.append({"name": planned.weights.name, "book": None})
    spool.finish({"tensors": entries})


def _assemble(
    path: str | Path,
    coded: Mapping[str, Weights],
    raw: Mapping[str, TensorSource],
    twins: Mapping[str, str],
    spool: Spool,
    network: bytes | None,
    report: _Report,
) -> None:
    """Write the container from what the spool holds and from the tensors that stay."""
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, tuple[int, int]] = {}
    for work in spool.entries:
        start = work["start"]
        for entry in work["tensors"]:
            if entry["book"] is not None:
                found[entry["name"]] = entry
                places[entry["name"]] = (start, start + entry["code_bytes"])
                start += entry["code_bytes"]

    def copied(name: str, source: TensorSource, share: float) -> RawEntry:
        def blocks() -> Iterator[NDArray[np.uint8]]:
            for block in source.blocks(_COPY_BYTES):
                yield block
                report.add(name, share * block.size)

        return RawEntry(name, source.dtype, source.shape, blocks)

    books: dict[str, int] = {}
    records: list[CodedRecord | RawEntry | AliasRecord] = []
    code: list[str] = []
    for name in state_order((*coded, *raw)):
        if name in twins:
            records.append(AliasRecord(name, twins[name]))
        elif name in raw:
            records.append(copied(name, raw[name], 1.0))
        elif name not in found:
            # Half of it was counted when it was read for its statistics.
            records.append(copied(name, coded[name].source, 0.5))
        else:
            entry = found[name]
            code.append(name)
            records.append(
                CodedRecord(
                    name=name,
                    dtype=coded[name].dtype,
                    shape=coded[name].shape,
                    step_log2=entry["step"],
                    book=books.setdefault(entry["book"], len(books)),
                    chunk=entry["chunk"],
                    bits=_numbers(entry["bits"]),
                    crcs=_numbers(entry["crcs"]),
                )
            )
    write_container(
        path,
        records,
        [bytes.fromhex(book) for book in books],
        (block for name in code for block in spool.read(*places[name])),
        network=network,
    )


def _write(
    path: str | Path,
    coded: Mapping[str, Weights],
    raw: Mapping[str, TensorSource],
    settings: Settings,
    workers: Workers,
    *,
    fingerprint: Mapping[str, Any] | None = None,
    network: bytes | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> None:
    for name in (*coded, *raw):
        check_name(name, path)
    twins = find_twins(coded, raw)
    sources = {**{name: weights.source for name, weights in coded.items()}, **raw}
    stored = [source.data_bytes for name, source in sources.items() if name not in twins]
    report = _Report(progress, sum(stored))
    groups = plan_work(weights for name, weights in coded.items() if name not in twins)
    with Spool(path, fingerprint) as spool:
        done = {entry["name"] for work in spool.entries for entry in work["tensors"]}
        if done and notice is not None:
            notice(
                f"{path}: going on with the packing that was interrupted, after {len(done)} of "
                f"{sum(map(len, groups))} tensors"
            )
        finished = sum(coded[name].source.data_bytes for name in done)
        for group in groups:
            if group[0].name not in done:
                # What was done before counts as done, but not for the speed.
                report.add(group[0].name, finished)
                finished = 0
                _code_group(group, settings, workers, spool, report)
        _assemble(path, coded, raw, twins, spool, network, report)


def pack(
    state: Mapping[str, Any] | str | Path,
    path: str | Path,
    *,
    step_log2: int | Mapping[str, int] | None = None,
    bits: int | None = None,
    codes: str | Sequence[str] | Codes = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rdo: float = 0.0,
    threads: int = 1,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[str, int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> None:
    """Quantise and code a network's weights and write the packed file.

    Tensors that coding does not make smaller are kept as they are, and tensors that are equal
    (tied weights) are stored once. Integer tensors are coded without loss.

    Packing a checkpoint can be taken up again: when the process is killed, what is done lies beside
    the output in `.NAME.partial`, and the next call with the same arguments goes on from there.

    Parameters
    ----------
    state : Mapping of str to tensor, or str or Path
        What `model.state_dict()` returns, or NumPy arrays, `RawTensor` and `QuantizedTensor`
        objects, of which the last are coded as they are; or the file of a checkpoint, or what
        `egret.checkpoint.read_checkpoint` made of it.
    path : str or Path
        The `.egret` file to write.
    step_log2 : int or mapping of str to int, optional
        n of the step 2^-n. A mapping gives it by the name of a tensor that is coded; those that it
        lacks take `egret.quantize.DEFAULT_STEP_LOG2`. When absent and `bits` is given too, each
        tensor gets the finest step at which it fits `bits`; when both are absent,
        `egret.quantize.DEFAULT_STEP_LOG2`.
    bits : int, optional
        Range of the quantised weights, in bits of a signed integer;
        `egret.quantize.DEFAULT_BITS` when absent.
    codes : str, sequence of str, or Codes
        Codes to choose from: "auto", or names as in `egret.code_search.parse_codes`.
    include, exclude : sequence of str
        Patterns over names; see `select_tensors`. Tensors not chosen are stored as they are.
    rdo : float
        λ of rate-distortion-optimised rounding of floating tensors, in squared steps per bit: some
        weights are rounded to the next multiple towards 0, or to 0, where that saves bits; see
        `egret.rdo.Rounder`. 0 rounds each to the nearest multiple.
    threads : int
        Threads that share the work. The result does not depend on them.
    memory : int
        Bytes of memory that the process may take up while it packs a checkpoint, one tensor not
        counted.
    progress : Callable, optional
        Called again and again with the name of the tensor under way, the bytes that are done, and
        those of all tensors.
    notice : Callable, optional
        Called with a line of text when interrupted work is taken up.

    Raises
    ------
    QuantizationError
        A weight is not finite or out of range, which the message names with its tensor; there is
        nothing to code; or `step_log2` or `bits` is out of range.
    FormatError
        An entry is no tensor, or of a dtype that safetensors does not have; or the checkpoint is
        damaged.
    EgretError
        An argument is not as described here, a pattern matches nothing, or a file cannot be read or
        written.
    """
    settings = Settings.of(step_log2, bits, codes, rdo)
    if isinstance(state, str | Path):
        state = read_checkpoint(state)
    coded, raw = sort_state(state, include, exclude)
    if isinstance(step_log2, Mapping):
        steps_by_name(step_log2, tuple(coded))
    fingerprint = None
    if isinstance(state, Checkpoint):
        for file in state.files:
            refuse_same_file(file.path, Path(path))
        fingerprint = {
            "egret": version("egret"),
            "container": CONTAINER_VERSION,
            "files": [(str(file.path), file.size, file.modified) for file in state.files],
            "step": dict(step_log2) if isinstance(step_log2, Mapping) else settings.step_log2,
            "bits": settings.bits,
            "codes": repr(settings.codes),
            "include": list(include),
            "exclude": list(exclude),
            "rdo": settings.rdo,
        }
    with Workers(threads, memory) as workers:
        _write(
            path,
            coded,
            raw,
            settings,
            workers,
            fingerprint=fingerprint,
            progress=progress,
            notice=notice,
        )


def quantize_state(
    state: Mapping[str, Any],
    *,
    step_log2: int | Mapping[str, int] | None = None,
    bits: int | None = None,
    codes: str | Sequence[str] | Codes = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rdo: float = 0.0,
) -> dict[str, QuantizedTensor]:
    """Return the integers that `pack` would store, without packing them.

    Parameters
    ----------
    state, step_log2, bits, codes, include, exclude, rdo
        As in `pack`.

    Returns
    -------
    dict of str to QuantizedTensor
        Those of each tensor that is to be coded. `pack` takes them in place of the tensors.

    Raises
    ------
    QuantizationError, FormatError, EgretError
        As from `pack`.
    """
    settings = Settings.of(step_log2, bits, codes, rdo)
    coded, raw = sort_state(state, include, exclude)
    if isinstance(step_log2, Mapping):
        steps_by_name(step_log2, tuple(coded))
    twins = find_twins(coded, raw)
    found = {}
    with Workers() as workers:
        for group in plan_work(weights for name, weights in coded.items() if name not in twins):
            for planned in plan_group(group, settings, workers):
                parts = [planned.read(*block, settings.bits).copy() for block in planned.blocks()]
                values = np.concatenate([np.empty(0, np.int32), *parts])
                weights = planned.weights
                found[weights.name] = QuantizedTensor(
                    values.reshape(weights.shape), planned.step_log2, weights.dtype
                )
    return {name: found[twins.get(name, name)] for name in coded}


def write_packed(
    path: str | Path,
    coded: Mapping[str, QuantizedTensor],
    raw: Mapping[str, RawTensor],
    *,
    network: bytes | None = None,
    codes: str | Sequence[str] | Codes = "auto",
) -> None:
    """Write tensors that are quantised already; equal arguments give equal bytes.

    Parameters
    ----------
    path : str or Path
        The `.egret` file to write.
    coded : Mapping of str to QuantizedTensor
        Tensors to code, whether or not that makes them smaller.
    raw : Mapping of str to RawTensor
        Tensors to store as they are.
    network : bytes, optional
        Description of the network that the tensors belong to, stored as it is.
    codes : str, sequence of str, or Codes
        As in `pack`.

    Raises
    ------
    QuantizationError
        A value needs more than 24 bits, or is none of the tensor's dtype.
    EgretError
        The file cannot be written; a name is given twice or cannot be stored; there is no such
        code.
    """
    both = sorted(set(coded) & set(raw))
    if both:
        raise EgretError(f"{path}: tensor {both[0]!r} is given both coded and raw")
    settings = Settings(0, MAX_BITS, parse_codes(codes))
    weights = quantized_weights(coded)
    sources = {name: as_source(tensor, name) for name, tensor in raw.items()}
    with Workers() as workers:
        _write(path, weights, sources, settings, workers, network=network)
