"""The codecs that `benchmarks/codec.py` compares Egret with, and the sizes of simpler storage.

A `Peer` encodes integers with the package of its makers, at the settings that its makers choose.
What it needs besides its codewords to be decoded is counted in its bits, as for Egret.
Conversions into and out of the types that its calls take are `prepare` and `finish`, which nobody
times.
"""

import heapq
import importlib.machinery
import importlib.metadata
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret_sim.report import csc_cost

__all__ = [
    "Coded",
    "Missing",
    "Peer",
    "column_bits",
    "dense_bits",
    "eie_bits",
    "huffman_lengths",
    "huffman_payload_bits",
    "load_peers",
]

Integers = NDArray[np.int32]

_VALUE_BITS = 24
"""Bits in which a peer's model stores a value, or a number of values: Egret's range."""


@dataclass(frozen=True)
class Coded:
    """A tensor as a peer stores it.

    Parameters
    ----------
    data : Any
        What the peer's decoder takes.
    bits : int
        Everything that has to be kept, in bits; shape and dtype aside, as for every codec here.
    """

    data: Any
    bits: int


@dataclass(frozen=True)
class Missing:
    """A peer that cannot run here, and why."""

    name: str
    reason: str


class Peer(ABC):
    """A codec of integers."""

    name: str
    note: str
    """Settings, and what is counted."""
    version: str
    """Package and version."""
    is_timed_encoding: bool = True
    """Its encoder is measured too."""

    def accepts(self, values: Integers) -> bool:
        """Tell whether the codec can hold these values."""
        return True

    def prepare(self, values: Integers) -> Any:
        """Convert values into what `encode` takes. Not timed."""
        return values

    @abstractmethod
    def encode(self, prepared: Any) -> Coded:
        """Encode one tensor, from integers to everything that has to be kept."""

    @abstractmethod
    def decode(self, coded: Coded, out: Integers) -> Any:
        """Decode one tensor, into `out` where the codec's call can, and return where it is."""

    def finish(self, decoded: Any, shape: tuple[int, ...]) -> Integers:
        """Convert what `decode` returned into values of a shape. Not timed."""
        return np.asarray(decoded, np.int32).reshape(shape)


# --- a prefix code and plain storage, which have no codec here: their sizes -------------------


def golomb_lengths(numbers: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the bits of exp-Golomb codewords of order 0: 2 ⌊log2(x + 1)⌋ + 1, same shape."""
    # frexp's exponent of a whole number below 2^53 is its length in binary.
    return 2 * np.frexp(np.asarray(numbers) + 1.0)[1].astype(np.int64) - 1


def huffman_lengths(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the lengths of a Huffman code's codewords.

    Parameters
    ----------
    counts : ndarray of integers, shape (symbols,)
        How often each symbol occurs, each at least 1. One symbol or more.

    Returns
    -------
    ndarray of int64, shape (symbols,)
        Bits of each symbol's codeword; 1 for a lone symbol.

    Notes
    -----
    Source: D. Huffman, "A method for the construction of minimum-redundancy codes", 1952.
    """
    symbols = len(counts)
    if symbols == 1:
        return np.ones(1, np.int64)
    heap = [(int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = np.zeros(2 * symbols - 1, np.int64)
    for node in range(symbols, 2 * symbols - 1):
        first, one = heapq.heappop(heap)
        second, other = heapq.heappop(heap)
        parents[one] = parents[other] = node
        heapq.heappush(heap, (first + second, node))
    depths = np.zeros(2 * symbols - 1, np.int64)
    for node in range(2 * symbols - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return depths[:symbols]


def _gap_bits(present: NDArray[np.integer]) -> int:
    """Return the bits that store which values occur: number, lowest, gaps in exp-Golomb order 0."""
    return 2 * _VALUE_BITS + int(golomb_lengths(np.diff(present) - 1).sum())


def huffman_payload_bits(present: NDArray[np.integer], counts: NDArray[np.integer]) -> int:
    """Return what a canonical Huffman code and its table take.

    Parameters
    ----------
    present : ndarray of integers, shape (symbols,)
        Values that occur, ascending.
    counts : ndarray of integers, shape (symbols,)
        How often each occurs.

    Returns
    -------
    int
        Bits: the codewords, the values, and the codewords' lengths: five bits each, or the
        differences of neighbours in exp-Golomb order 0, whichever is less. Zero for no values.
    """
    if not len(counts):
        return 0
    lengths = huffman_lengths(counts)
    steps = np.diff(lengths)
    zigzag = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    # Five bits say lengths up to 32; the few tensors with longer codewords take the other way.
    differences = 5 + int(golomb_lengths(zigzag).sum())
    fixed = 5 * len(lengths) if int(lengths.max()) <= 32 else differences
    return int(np.dot(lengths, counts)) + _gap_bits(present) + min(fixed, differences)


def _smallest_dtype(values: Integers) -> type[np.signedinteger[Any]]:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in (np.int8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.int32


def dense_bits(values: Integers) -> int:
    """Return the bits of plain int8, or int16 or int32 where values need it."""
    return values.size * 8 * np.dtype(_smallest_dtype(values)).itemsize


def _signed_bits(values: Integers) -> int:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return 1 + max(high, -low - 1).bit_length()


def _matrix(values: Integers) -> Integers:
    """Return values as rows (of the first axis) and columns."""
    return values.reshape(values.shape[0] if values.ndim else 1, -1)


def eie_bits(values: Integers) -> int:
    """Return the bits of compressed sparse columns as EIE has them.

    4 bits for the zeros since the entry before, an entry of value 0 wherever that does not suffice,
    as many bits for a value as the tensor needs, and a pointer for every column; see
    `egret_sim.report.csc_cost`.
    """
    if not values.size:
        return 0
    return csc_cost(_matrix(values), 1, value_bits=_signed_bits(values)).bits


def column_bits(values: Integers) -> int:
    """Return the bits of plain compressed sparse columns.

    For every non-zero a row number and the value, each as wide as the tensor needs, and a pointer
    for every column and one behind the last.
    """
    rows, columns = _matrix(values).shape
    entries = int(np.count_nonzero(values))
    entry = max(1, (rows - 1).bit_length()) + _signed_bits(values)
    return entries * entry + (columns + 1) * max(1, entries.bit_length())


# --- codecs ----------------------------------------------------------------------------------


class Zstandard(Peer):
    """zstd over the values as the smallest integers that hold them."""

    note = "on int8, int16 where values need it; the frame's bytes"

    def __init__(self, level: int) -> None:
        import zstandard

        self.name = f"zstd -{level}"
        self.version = f"zstandard {zstandard.__version__}"
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()

    def prepare(self, values: Integers) -> Any:
        return values.astype(_smallest_dtype(values))

    def encode(self, prepared: Any) -> Coded:
        frame = self._compressor.compress(prepared)
        return Coded((frame, prepared.dtype), 8 * len(frame))

    def decode(self, coded: Coded, out: Integers) -> Any:
        return self._decompressor.decompress(coded.data[0]), coded.data[1]

    def finish(self, decoded: Any, shape: tuple[int, ...]) -> Integers:
        return np.frombuffer(*decoded).astype(np.int32).reshape(shape)


@dataclass(frozen=True)
class _Model:
    """What an ANS coder needs to know of a tensor, and what storing that takes."""

    probabilities: NDArray[np.float32]
    values: Integers
    """Value of each symbol, ascending."""
    bits: int


def _categorical(present: NDArray[np.int64], counts: NDArray[np.int64]) -> _Model:
    """Make a model of the values that occur, with 8 bits for the probability of each.

    The byte is the probability's negative logarithm in eighths of a bit, which costs less than a
    two-thousandth of a bit per weight.
    """
    eighths = np.clip(np.rint(8 * np.log2(counts.sum() / counts)), 0, 255)
    bits = _gap_bits(present) + 8 * len(present)
    return _Model(np.exp2(-eighths / 8).astype(np.float32), present.astype(np.int32), bits)


_SHAPES = np.arange(2, 31) / 10
_SPAN_OF_FITS = 1 << 13


def _generalized_gaussian(present: NDArray[np.int64], counts: NDArray[np.int64]) -> _Model | None:
    """Fit a generalized Gaussian with a share of zeros and a gap around 0, as pruning leaves.

    Maximum likelihood over a grid of shapes, with the scale found by bisection. None where there
    are no non-zeros, or where the range is so wide that a table of it is no small model.
    """
    used = np.abs(present[present != 0])
    low, high = int(used.min(initial=_SPAN_OF_FITS)), int(used.max(initial=0))
    if not 0 < high < _SPAN_OF_FITS:
        return None
    magnitudes = np.arange(low, high + 1)
    found = np.zeros(high + 1)
    np.add.at(found, np.abs(present), counts)
    zeros, found = found[0], found[low:]
    total = found.sum()
    best, weights = np.inf, np.ones(len(magnitudes))
    for shape in _SHAPES:
        powers = (magnitudes / high) ** shape
        mean = float(found @ powers) / total
        near, far = 0.0, 1e6
        # The likelihood's derivative falls with the decay; fifty halvings exhaust float64.
        for _ in range(50):
            decay = (near + far) / 2
            terms = np.exp(-decay * (powers - powers[0]))
            if float(terms @ powers) > mean * float(terms.sum()):
                near = decay
            else:
                far = decay
        terms = np.exp(-near * (powers - powers[0]))
        cost = near * (mean - powers[0]) + np.log(terms.sum())
        if cost < best:
            best, weights = cost, terms / terms.sum()
    side = weights * total / (zeros + total) / 2
    middle = np.zeros(2 * low - 1)
    middle[low - 1] = zeros / (zeros + total)
    probabilities = np.concatenate((side[::-1], middle, side)).astype(np.float32)
    # Zero share, shape and scale as float32; the ends of the range.
    return _Model(
        probabilities, np.arange(-high, high + 1, dtype=np.int32), 3 * 32 + 2 * _VALUE_BITS
    )


def _cost(model: _Model, present: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    probabilities = model.probabilities.astype(np.float64)
    chosen = probabilities[np.searchsorted(model.values, present)]
    # constriction gives every symbol at least 2^-24.
    shares = np.maximum(chosen / probabilities.sum(), 2.0**-24)
    return model.bits - float(counts @ np.log2(shares))


class AnsCoder(Peer):
    """Asymmetric numeral systems with the cheaper of two models, by constriction."""

    name = "ANS"
    note = (
        "AnsCoder with each tensor's own probabilities, 8 bits for each value that occurs, or a "
        "fitted generalized Gaussian, whichever is less; models and words counted"
    )

    def __init__(self) -> None:
        import constriction

        self.version = f"constriction {importlib.metadata.version('constriction')}"
        self._coder = constriction.stream.stack.AnsCoder
        self._model = constriction.stream.model.Categorical

    def encode(self, prepared: Any) -> Coded:
        flat = prepared.reshape(-1)
        if not flat.size:
            return Coded(None, 0)
        low = int(flat.min())
        histogram = np.bincount(flat - low)
        places = np.flatnonzero(histogram)
        present, counts = places + low, histogram[places]
        model = _categorical(present, counts)
        fitted = _generalized_gaussian(present, counts)
        if fitted and _cost(fitted, present, counts) < _cost(model, present, counts):
            model = fitted
        if len(model.values) == 1:
            return Coded((None, None, model.values), model.bits)
        symbols = np.zeros(len(histogram), np.int32)
        symbols[places] = np.searchsorted(model.values, present)
        categorical = self._model(model.probabilities, perfect=False)
        coder = self._coder()
        coder.encode_reverse(symbols[flat - low], categorical)
        words = coder.get_compressed()
        return Coded((words, categorical, model.values), model.bits + 32 * len(words))

    def decode(self, coded: Coded, out: Integers) -> Any:
        if coded.data is None:
            return out
        words, categorical, values = coded.data
        if categorical is None:
            out[...] = values[0]
        else:
            symbols = self._coder(words).decode(categorical, out.size)
            np.take(values, symbols, out=out.reshape(-1), mode="clip")
        return out


class DeepCabac(Peer):
    """DeepCABAC, the adaptive arithmetic coder of MPEG's NNC standard, by nncodec."""

    name = "DeepCABAC"
    note = "its own settings (11 greater-than flags, optimised context parameters); the bytes"
    _GREATER_FLAGS = 11
    _OPTIMISED = 1

    def __init__(self, folder: Path) -> None:
        file = _find_extension(folder)
        spec = importlib.util.spec_from_file_location("deepCABAC", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = [item.name.split("-")[1] for item in folder.glob("nncodec-*.dist-info")]
        self.version = f"nncodec {found[0].removesuffix('.dist') if found else '(version unknown)'}"
        self._module: Any = module
        self._no_histogram = (module.HdspMode.AlwaysOff, np.zeros(2, np.int8))

    def prepare(self, values: Integers) -> Any:
        return np.ascontiguousarray(_matrix(values))

    def encode(self, prepared: Any) -> Coded:
        encoder = self._module.Encoder()
        encoder.initCtxModels(self._GREATER_FLAGS, self._OPTIMISED)
        no_rows = np.zeros(len(prepared), np.int32)
        encoder.encodeLayer(prepared, 0, 0, 0, 0, 0, no_rows, *self._no_histogram, 0, 0)
        data = encoder.finish()
        return Coded(data, 8 * len(data))

    def decode(self, coded: Coded, out: Integers) -> Any:
        decoder = self._module.Decoder()
        decoder.setStream(coded.data)
        decoder.initCtxModels(self._GREATER_FLAGS)
        decoder.decodeLayer(_matrix(out), 0, 0, 0, 0, *self._no_histogram, 0, 0)
        return out


def _find_extension(folder: Path) -> Path:
    places = [folder / "nncodec" / "extensions"]
    spec = importlib.util.find_spec("nncodec")
    if spec is not None and spec.submodule_search_locations:
        places += [Path(place) / "extensions" for place in spec.submodule_search_locations]
    for place in places:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = place / f"deepCABAC{suffix}"
            if file.is_file():
                return file
    raise ImportError("nncodec's extension deepCABAC was not found; make bench-codec builds it")


class EthosU(Peer):
    """The weight codec of Arm's Ethos-U processors, by the Vela compiler."""

    name = "Ethos-U"
    note = "mlw_codec.encode on the values in C order; the bytes; values of -255 to 255 only"
    _LARGEST = 255

    def __init__(self) -> None:
        from ethosu import mlw_codec

        self.version = f"ethos-u-vela {importlib.metadata.version('ethos-u-vela')}"
        self._codec = mlw_codec

    def accepts(self, values: Integers) -> bool:
        return bool(
            values.max(initial=0) <= self._LARGEST and values.min(initial=0) >= -self._LARGEST
        )

    def prepare(self, values: Integers) -> Any:
        return values.reshape(-1).tolist()

    def encode(self, prepared: Any) -> Coded:
        data = self._codec.encode(prepared)
        return Coded(data, 8 * len(data))

    def decode(self, coded: Coded, out: Integers) -> Any:
        return self._codec.decode(coded.data)

    def finish(self, decoded: Any, shape: tuple[int, ...]) -> Integers:
        # The stream's last slice is filled up with values beyond those encoded.
        return np.array(decoded[: math.prod(shape)], np.int32).reshape(shape)


def load_peers(folder: Path) -> tuple[list[Peer], list[Missing]]:
    """Load the codecs that are installed.

    Parameters
    ----------
    folder : Path
        Where `make bench-codec` puts nncodec, which stays out of the environment because it asks
        for an older NumPy.

    Returns
    -------
    peers : list of Peer
        Those that can run.
    missing : list of Missing
        The others, each with the reason.
    """
    makers: Sequence[tuple[str, Callable[[], Peer]]] = (
        ("ANS", AnsCoder),
        ("DeepCABAC", lambda: DeepCabac(folder)),
        ("Ethos-U", EthosU),
        ("zstd -1", lambda: Zstandard(1)),
        ("zstd -19", lambda: Zstandard(19)),
    )
    peers: list[Peer] = []
    missing: list[Missing] = []
    for name, make in makers:
        try:
            peers.append(make())
        except ImportError as error:
            missing.append(Missing(name, str(error)))
    return peers, missing
