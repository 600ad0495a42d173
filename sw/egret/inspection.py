"""What a file's weights look like and what each code takes for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.checkpoint import Checkpoint, InputFile, header_entries, read_checkpoint
from egret.code_search import Codes, Statistics
from egret.codec import MAX_CHUNK
from egret.container import CodedRecord, Container, read_container
from egret.container_index import RESERVED_PREFIX
from egret.errors import EgretError, QuantizationError
from egret.ggd import Moments
from egret.golomb import best_order
from egret.planning import (
    CHUNK_INDEX_BYTES,
    DEFAULT_MEMORY,
    Settings,
    Tally,
    Weights,
    Workers,
    find_twins,
    plan_group,
    plan_work,
    select_tensors,
    sort_state,
)
from egret.quantize import MAX_BITS, exact_numbers
from egret.safetensors_file import data_bytes, looks_like_safetensors
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits

__all__ = ["FileReport", "TensorReport", "inspect_file", "weight_blocks"]

# Weights looked at together.
_BLOCK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class TensorReport:
    """A coded tensor's statistics. Bits are those of all its weights together.

    Parameters
    ----------
    name, dtype : str
        As in the file.
    shape : tuple of int
        Shape.
    weights : int
        Number of weights.
    ggd_shape : float or None
        ν of the generalized Gaussian fitted by moments; None without weights.
    zeros : int
        Weights that quantise to 0.
    distinct : int
        Distinct quantised values.
    step_log2 : int
        n of the step 2^-n.
    code : str
        The code in the file, or the one that packing would choose: "eg-0" to "eg-7", "eg-run",
        "eg-table" or "eg-table-run".
    code_bits : int
        Bits of its codewords.
    book : int
        Number of its codebook. Tensors may share one.
    book_bits : int
        Bits of that codebook: map and tables.
    chunks : int
        Chunks, each of which takes `egret.planning.CHUNK_INDEX_BYTES` in the index.
    order : int
        k of the best exp-Golomb code over the values' ranks, for comparison.
    fixed_length_bits, exp_golomb_bits, huffman_bits : int
        Bits of the codewords of other codes, their tables not counted: all values numbered with
        equally long ones, exp-Golomb of that order, Huffman.
    entropy_bits : float
        Empirical entropy.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    weights: int
    ggd_shape: float | None
    zeros: int
    distinct: int
    step_log2: int
    code: str
    code_bits: int
    book: int
    book_bits: int
    chunks: int
    order: int
    fixed_length_bits: int
    exp_golomb_bits: int
    huffman_bits: int
    entropy_bits: float

    @classmethod
    def of(cls, statistics: Statistics, *, ggd_shape: float | None, **known: Any) -> "TensorReport":
        """Work out what other codes take.

        Parameters
        ----------
        statistics : Statistics
            Of the tensor's values.
        ggd_shape : float or None
            ν.
        **known
            The fields that the statistics do not tell.
        """
        ranked = np.sort(statistics.counts)[::-1]
        order, golomb = best_order(ranked)
        return cls(
            weights=statistics.weights,
            ggd_shape=ggd_shape,
            zeros=statistics.zeros,
            distinct=statistics.numbers.size,
            order=order,
            fixed_length_bits=fixed_length_bits(ranked),
            exp_golomb_bits=golomb,
            huffman_bits=huffman_bits(ranked),
            entropy_bits=entropy_bits(ranked),
            **known,
        )


_SUMMED = (
    "weights",
    "zeros",
    "code_bits",
    "chunks",
    "fixed_length_bits",
    "exp_golomb_bits",
    "huffman_bits",
    "entropy_bits",
)


@dataclass(frozen=True)
class FileReport:
    """What `inspect_file` found.

    Parameters
    ----------
    file : str
        Name of the file.
    file_bytes : int
        Every byte of it, of all shards.
    packed : bool
        Whether it is a `.egret` container. If not, tensors, maps and chunks are those that
        packing would make.
    tensors : tuple of TensorReport
        The coded tensors.
    raw : tuple of dict
        Name, dtype, shape and bytes of each tensor that is kept as it is.
    aliases : dict of str to str
        Tensors that are stored under another name, and that name.
    code_bytes : int
        Bytes of all codewords; every chunk fills whole bytes. Before packing, an estimate that
        leaves this out.
    book_bytes : int
        Bytes of all codebooks.
    map_bytes : int
        Bytes of the value maps in them.
    layers : tuple of dict or None
        The network's layers, in the order in which they run; None without a network.
    """

    file: str
    file_bytes: int
    packed: bool
    tensors: tuple[TensorReport, ...]
    raw: tuple[dict[str, Any], ...]
    aliases: dict[str, str]
    code_bytes: int
    book_bytes: int
    map_bytes: int
    layers: tuple[dict[str, Any], ...] | None

    def total(self, field: str) -> float:
        """Sum a field of every `TensorReport`."""
        return sum(getattr(tensor, field) for tensor in self.tensors)

    @property
    def payload_bits(self) -> int:
        """Bits of codewords and codebooks: what the weights take."""
        return int(self.total("code_bits")) + 8 * self.book_bytes

    @property
    def payload_ratio(self) -> float | None:
        """`payload_bits` over the entropy; None where that is 0."""
        entropy = self.total("entropy_bits")
        return self.payload_bits / entropy if entropy else None

    @property
    def chunk_index_bytes(self) -> int:
        """Bytes of the chunks' lengths and checksums."""
        return CHUNK_INDEX_BYTES * int(self.total("chunks"))

    @property
    def raw_bytes(self) -> int:
        """Bytes of the tensors that are kept."""
        return sum(entry["bytes"] for entry in self.raw)

    @property
    def other_bytes(self) -> int | None:
        """All other bytes of a packed file: header, names, shapes, network."""
        if not self.packed:
            return None
        counted = self.code_bytes + self.book_bytes + self.chunk_index_bytes + self.raw_bytes
        return self.file_bytes - counted

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON's types.

        Returns
        -------
        dict
            The fields, and under "total" the sums of the tensors' fields and this class's
            properties.
        """
        properties = (
            "payload_bits",
            "payload_ratio",
            "chunk_index_bytes",
            "raw_bytes",
            "other_bytes",
        )
        total = {field: self.total(field) for field in _SUMMED}
        total |= {field: getattr(self, field) for field in properties}
        return {**asdict(self), "total": total}


def _is_packed(path: str | Path) -> bool:
    """Tell a packed file, also one that is damaged, from all others."""
    file = InputFile(path)
    if not looks_like_safetensors(file.read(0, 9).tobytes()):
        return False
    # A reserved name without an index is a damaged packed file, which its reader then refuses.
    return any(name.startswith(RESERVED_PREFIX) for name in header_entries(file))


def _layers(path: str | Path) -> tuple[dict[str, Any], ...]:
    from egret.network import IntegerNetwork

    return tuple(
        {
            "name": layer.name,
            "rows": layer.rows,
            "columns": layer.columns,
            "step_log2": layer.weight.step_log2,
            "bias": layer.bias is not None,
            "input_scale": layer.input_scale,
            "output_scale": layer.output_scale,
            "multiplier": layer.multiplier,
            "shift": layer.shift,
            "relu": layer.relu,
        }
        for layer in IntegerNetwork.load(path).layers
    )


def _raw_entry(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "bytes": data_bytes(dtype, shape)}


def inspect_file(
    path: str | Path,
    *,
    step_log2: int | None = None,
    bits: int | None = None,
    codes: str | Sequence[str] | Codes = "auto",
    threads: int = 1,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[str, int, int], None] | None = None,
) -> FileReport:
    """Measure the weights of a packed file, or plan the packing of another one.

    Parameters
    ----------
    path : str or Path
        A packed file, or one that `egret.checkpoint.read_checkpoint` reads.
    step_log2, bits, codes
        For weights that are not packed, as in `egret.packing.pack`; but any that fit
        `egret.quantize.MAX_BITS` are measured when `bits` is absent.
    threads, memory, progress
        As in `egret.packing.pack`.

    Returns
    -------
    FileReport
        Statistics of each tensor that is, or would be, coded.

    Raises
    ------
    EgretError
        The file does not exist, is of another kind or damaged, or has weights that cannot be
        quantised; or an argument is out of range.
    """
    settings = Settings.of(step_log2, bits, codes)
    if bits is None:
        settings = Settings(settings.step_log2, MAX_BITS, settings.codes)
    if _is_packed(path):
        with read_container(path) as container:
            return _inspect_packed(container, threads, progress)
    with Workers(threads, memory) as workers:
        try:
            return _inspect_checkpoint(read_checkpoint(path), settings, workers, progress)
        except QuantizationError as error:
            raise EgretError(f"{path}: {error}") from error


def _rows(record: CodedRecord) -> Iterator[tuple[int, int] | None]:
    """Give row ranges of about a block each; None for the whole tensor."""
    if record.size <= max(_BLOCK_WEIGHTS, record.chunk):
        yield None
        return
    step = max(1, _BLOCK_WEIGHTS * record.shape[0] // record.size)
    for start in range(0, record.shape[0], step):
        yield start, min(start + step, record.shape[0])


def _inspect_packed(
    container: Container, threads: int, progress: Callable[[str, int, int], None] | None
) -> FileReport:
    records = [container.record(name) for name in container.names if not container.is_alias(name)]
    coded = [record for record in records if isinstance(record, CodedRecord)]
    total = sum(record.code_bytes for record in coded)
    done = 0
    reports = []
    for record in coded:
        if progress is not None:
            progress(record.name, done, total)
        tally = Tally()
        for rows in _rows(record):
            tensor = container.quantized(record.name, rows=rows, threads=threads)
            tally.add(Statistics.of(tensor.values, MAX_CHUNK))
        statistics = tally.total()
        moments = Moments.of(
            np.ldexp(statistics.distinct.astype(np.float64), -record.step_log2), statistics.counts
        )
        book = container.book(record.book)
        reports.append(
            TensorReport.of(
                statistics,
                ggd_shape=moments.shape,
                name=record.name,
                dtype=record.dtype,
                shape=record.shape,
                step_log2=record.step_log2,
                code=book.name,
                code_bits=record.code_bits,
                book=record.book,
                book_bits=book.map_bits + book.table_bits,
                chunks=record.chunks,
            )
        )
        done += record.code_bytes
    books = [container.book(number) for number in sorted({record.book for record in coded})]
    return FileReport(
        file=str(container.path),
        file_bytes=container.file_bytes,
        packed=True,
        tensors=tuple(reports),
        raw=tuple(
            _raw_entry(record.name, record.dtype, record.shape)
            for record in records
            if not isinstance(record, CodedRecord)
        ),
        aliases={n: container.target(n) for n in container.names if container.is_alias(n)},
        code_bytes=total,
        book_bytes=container.books_bytes,
        map_bytes=-(-sum(book.map_bits for book in books) // 8),
        layers=_layers(container.path) if container.network is not None else None,
    )


def _weight_moments(weights: Weights) -> Moments:
    moments = Moments()
    for start in range(0, weights.size, _BLOCK_WEIGHTS):
        words = weights.source.read(start, min(_BLOCK_WEIGHTS, weights.size - start))
        moments += Moments.of(exact_numbers(words, weights.dtype))
    return moments


def _inspect_checkpoint(
    checkpoint: Checkpoint,
    settings: Settings,
    workers: Workers,
    progress: Callable[[str, int, int], None] | None,
) -> FileReport:
    chosen = select_tensors(checkpoint)
    # A file without weights to code has a report too.
    coded, raw = sort_state(checkpoint) if chosen else ({}, dict(checkpoint))
    twins = find_twins(coded, raw)
    done = 0

    def read(weights: Weights, count: int) -> None:
        nonlocal done
        done += count * weights.source.data_bytes // max(1, weights.size)
        if progress is not None:
            progress(weights.name, done, checkpoint.data_bytes)

    numbers: dict[bytes, int] = {}
    map_bits = 0
    reports = []
    kept = [
        _raw_entry(name, source.dtype, source.shape)
        for name, source in raw.items()
        if name not in twins
    ]
    for group in plan_work(weights for name, weights in coded.items() if name not in twins):
        for planned in plan_group(group, settings, workers, read):
            weights, book = planned.weights, planned.book
            if book is None or planned.statistics is None:
                kept.append(_raw_entry(weights.name, weights.dtype, weights.shape))
                continue
            if book.data not in numbers:
                map_bits += book.map_bits
            reports.append(
                TensorReport.of(
                    planned.statistics,
                    ggd_shape=_weight_moments(weights).shape,
                    name=weights.name,
                    dtype=weights.dtype,
                    shape=weights.shape,
                    step_log2=planned.step_log2,
                    code=book.name,
                    code_bits=planned.code_bits,
                    book=numbers.setdefault(book.data, len(numbers)),
                    book_bits=8 * len(book.data),
                    chunks=planned.chunks,
                )
            )
    place = {name: number for number, name in enumerate(coded)}
    reports.sort(key=lambda report: place[report.name])
    return FileReport(
        file=str(checkpoint.path),
        file_bytes=sum(file.size for file in checkpoint.files),
        packed=False,
        tensors=tuple(reports),
        raw=tuple(kept),
        aliases=twins,
        code_bytes=-(-sum(report.code_bits for report in reports) // 8),
        book_bytes=sum(map(len, numbers)),
        map_bytes=-(-map_bits // 8),
        layers=None,
    )


def weight_blocks(path: str | Path) -> Iterator[NDArray[Any]]:
    """Give the weights of every tensor that can be coded, flat and in blocks.

    Parameters
    ----------
    path : str or Path
        As for `inspect_file`.

    Yields
    ------
    ndarray, shape (count,)
        Weights; of a packed file the rounded ones, as float32.

    Raises
    ------
    EgretError
        As from `inspect_file`.
    """
    if _is_packed(path):
        with read_container(path) as container:
            for name in container.coded_names:
                record = container.record(name)
                assert isinstance(record, CodedRecord)
                for rows in _rows(record):
                    yield container.quantized(name, rows=rows).dequantize().reshape(-1)
        return
    checkpoint = read_checkpoint(path)
    for name in select_tensors(checkpoint):
        source = checkpoint[name]
        for start in range(0, source.size, _BLOCK_WEIGHTS):
            words = source.read(start, min(_BLOCK_WEIGHTS, source.size - start))
            yield exact_numbers(words, source.dtype)
