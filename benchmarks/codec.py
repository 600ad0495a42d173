"""What Egret's codec takes and how fast it is, beside the entropy and the codecs of others.

Sizes come first; they do not depend on the machine. They count the codewords and all that has to be
known to read them (code books, tables, models), per tensor, summed over the network; Egret's are
those in a real `.egret` file. Whatever is encoded is decoded again and compared. Then speeds: the
codecs take turns in every repetition, and the medians are shown. Each limit that Egret sets itself
has its verdict beside the figure.

    python -m benchmarks.codec
    python -m benchmarks.codec resnet20.th stories260K.bin --json build/codec.json
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from benchmarks.codec_report import (
    EGRET,
    ENTROPY,
    Check,
    Results,
    Sizes,
    Speed,
    draw,
    format_results,
    write_json,
)
from benchmarks.peers import (
    Coded,
    Peer,
    column_bits,
    dense_bits,
    eie_bits,
    huffman_payload_bits,
    load_peers,
)
from benchmarks.workloads import (
    SCHEMES,
    SHARES,
    Case,
    digits_models,
    draw_weights,
    gaussian_sources,
    prune,
    read_model,
    transformer,
)
from numpy.typing import NDArray

import egret
from egret import codec
from egret.code_search import Statistics, plan
from egret.container import CodedRecord, Container
from egret.errors import EgretError
from egret.packing import write_packed
from egret.quantize import QuantizedTensor
from egret.statistics import entropy_bits
from egret.value_map import count_values

__all__ = [
    "EgretCodec",
    "EgretFile",
    "main",
    "measure_sizes",
    "measure_speeds",
    "speed_sources",
]

PEERS_FOLDER = Path("build/peers")
"""Where `make bench-codec` installs nncodec."""
CHARTS_FOLDER = Path("build/bench-codec")
SOURCE_WEIGHTS = 1 << 22
"""Weights of each synthetic source."""
SPEED_ENTROPIES = (7.0, 5.0)
"""Entropies of what speeds are measured on, in bits per weight; the last is also pruned."""
REPETITIONS = 7
LARGE = 1_000_000
"""Weights from which the limit of the file holds."""

_SLOW = 1.0
"""Seconds from which an encoder is not repeated."""
_UNTOUCHED = np.iinfo(np.int32).min
"""Filled in before decoding, so that a decoder which leaves its output alone does not pass."""


class EgretCodec(Peer):
    """Egret in memory: statistics, codes, map and table, codewords; and back."""

    note = "in memory; encoding counts values and searches codes, maps and tables; no checksums"

    def __init__(self, threads: int = 1) -> None:
        self.name = EGRET if threads == 1 else f"{EGRET}, {threads} threads"
        self.version = f"egret {egret.__version__}"
        self._threads = threads
        # Encoding is not shared out over threads here.
        self.is_timed_encoding = threads == 1

    def encode(self, prepared: Any) -> Coded:
        """Encode one tensor with a code book of its own."""
        chunk = codec.choose_chunk(prepared.shape, prepared.size - np.count_nonzero(prepared))
        book = plan(Statistics.of(prepared.reshape(-1), chunk)).book
        data, bits = codec.encode(prepared, book, chunk)
        return Coded((data, bits, book, chunk), 8 * (data.nbytes + len(book.data)))

    def decode(self, coded: Coded, out: NDArray[np.int32]) -> Any:
        """Decode one tensor into `out`."""
        data, bits, book, chunk = coded.data
        codec.decode(data, bits, book, chunk, out.reshape(-1), threads=self._threads)
        return out


class EgretFile(Peer):
    """Egret through a `.egret` file."""

    name = f"{EGRET}, file"
    note = "a `.egret` file written, opened and read, with all checksums"

    def __init__(self, folder: Path) -> None:
        self.version = f"egret {egret.__version__}"
        self._path = folder / "speed.egret"

    def encode(self, prepared: Any) -> Coded:
        """Write one tensor as a file."""
        write_packed(self._path, {"weight": QuantizedTensor(prepared, 0, "I32")}, {})
        return Coded(self._path, 8 * self._path.stat().st_size)

    def decode(self, coded: Coded, out: NDArray[np.int32]) -> Any:
        """Open the file and read the tensor into new memory."""
        with Container(coded.data) as container:
            return container.quantized("weight").values


def _check_equal(
    found: NDArray[np.int32], values: NDArray[np.int32], codec_name: str, place: str
) -> None:
    if not np.array_equal(found, values):
        raise EgretError(f"{codec_name}, {place}: the decoded values are not those encoded")


def _coded_bits(peer: Peer, values: NDArray[np.int32], place: str) -> int:
    """Encode, decode, compare, and return the bits."""
    coded = peer.encode(peer.prepare(values))
    out = np.full(values.shape, _UNTOUCHED, np.int32)
    _check_equal(peer.finish(peer.decode(coded, out), values.shape), values, peer.name, place)
    return coded.bits


# --- sizes -------------------------------------------------------------------------------------


def measure_sizes(case: Case, peers: Sequence[Peer], folder: Path) -> Sizes:
    """Pack one network with every codec, and judge Egret's payload and file.

    Parameters
    ----------
    case : Case
        The integers.
    peers : sequence of Peer
        The other codecs.
    folder : Path
        Where to write Egret's file.

    Raises
    ------
    EgretError
        A codec, Egret among them, did not return what it was given.
    """
    path = folder / "network.egret"
    write_packed(path, case.coded, case.raw)
    bits: dict[str, float] = {ENTROPY: 0.0}
    with Container(path) as container:
        bits[EGRET] = 8.0 * container.books_bytes
        index_bytes = container.index_bytes
        for name, tensor in case.coded.items():
            _check_equal(container.quantized(name).values, tensor.values, EGRET, name)
            record = container.record(name)
            if not isinstance(record, CodedRecord):
                raise EgretError(f"{name}: found a tensor that is not coded, expected a coded one")
            bits[EGRET] += 8 * record.code_bytes
    plain = {"dense": dense_bits, "CSC, EIE": eie_bits, "CSC": column_bits}
    names = ("Huffman", *(peer.name for peer in peers), *plain)
    bits |= dict.fromkeys(names, 0.0)
    rivals = [(peer, EgretCodec()) for peer in peers if peer.name == "Ethos-U"]
    compared, larger = 0, []
    for name, tensor in case.coded.items():
        values = tensor.values
        present, counts = count_values(values)
        order = np.argsort(present)
        bits[ENTROPY] += entropy_bits(counts)
        bits["Huffman"] += huffman_payload_bits(present[order], counts[order])
        for title, count in plain.items():
            bits[title] += count(values)
        taken = {p.name: _coded_bits(p, values, name) for p in peers if p.accepts(values)}
        for peer in peers:
            # One tensor that a codec cannot hold leaves it without a figure for the network.
            bits[peer.name] += taken.get(peer.name, np.nan)
        for rival, alone in rivals:
            if dense_bits(values) == 8 * values.size:
                compared += 1
                own, theirs = _coded_bits(alone, values, name), taken[rival.name]
                if own >= theirs:
                    larger.append(f"{name} ({own:,} against {theirs:,} bits)")
    sizes = Sizes(
        network=case.network,
        scheme=case.scheme,
        share=case.share,
        trained=case.trained,
        weights=sum(tensor.values.size for tensor in case.coded.values()),
        tensors=len(case.coded),
        zeros=sum(int(np.count_nonzero(tensor.values == 0)) for tensor in case.coded.values()),
        bits={name: value for name, value in bits.items() if not np.isnan(value)},
        file_bytes=path.stat().st_size,
        raw_bytes=sum(len(tensor.data) for tensor in case.raw.values()),
        index_bytes=index_bytes,
        compared=compared,
        larger=larger,
    )
    sizes.checks.extend(_size_checks(sizes))
    return sizes


def _size_checks(sizes: Sizes) -> Iterator[Check]:
    payload = sizes.bits[EGRET]
    # What is sparse by draw and not by training or pruning of trained weights has no such limit.
    bound = 1.03 if sizes.trained or not sizes.is_sparse else None
    yield Check("/ entropy", payload / sizes.bits[ENTROPY], bound)
    if sizes.is_sparse:
        yield Check("/ Huffman", payload / sizes.bits["Huffman"], 1.0)
        if sizes.trained and "DeepCABAC" in sizes.bits:
            yield Check("/ DeepCABAC", payload / sizes.bits["DeepCABAC"], 1.01)
    else:
        yield Check("/ Huffman", payload / sizes.bits["Huffman"], 1.025)
    if sizes.compared:
        limit = f"tensors not below Ethos-U, of {sizes.compared}"
        yield Check(limit, len(sizes.larger), 0)
    if sizes.weights > LARGE:
        content = payload + 8 * sizes.raw_bytes
        yield Check("file / (payload + kept)", 8 * sizes.file_bytes / content, 1.03)


# --- speeds ------------------------------------------------------------------------------------


def measure_speeds(
    source: str, values: NDArray[np.int32], codecs: Sequence[Peer], repetitions: int
) -> list[Speed]:
    """Time every codec on the same integers, and judge the first.

    Parameters
    ----------
    source : str
        Name of the integers.
    values : ndarray of int32
        One tensor.
    codecs : sequence of Peer
        Egret first.
    repetitions : int
        Repetitions, in each of which every codec has its turn. It decodes twice, of which the
        second counts, so that caches hold what its own work and not another's has left. One more
        turn comes before all, in which code is compiled and memory first touched, and the decoded
        values are compared. An encoder that takes a second then is not repeated.

    Raises
    ------
    EgretError
        A codec did not return what it was given.
    """
    out = np.empty_like(values)
    runs = []
    for peer in codecs:
        if not peer.accepts(values):
            continue
        _coded_bits(peer, values, source)
        given = peer.prepare(values)
        begin = time.perf_counter()
        coded = peer.encode(given)
        runs.append((peer, given, coded, [time.perf_counter() - begin], list[float]()))
    slow = {peer.name for peer, _, _, encoding, _ in runs if encoding[0] > _SLOW}
    for _ in range(repetitions):
        for peer, given, coded, encoding, decoding in runs:
            peer.decode(coded, out)
            begin = time.perf_counter()
            peer.decode(coded, out)
            decoding.append(time.perf_counter() - begin)
            if peer.is_timed_encoding and peer.name not in slow:
                begin = time.perf_counter()
                peer.encode(given)
                encoding.append(time.perf_counter() - begin)
    speeds = [
        Speed(
            source=source,
            codec=peer.name,
            weights=values.size,
            zeros=int(np.count_nonzero(values == 0)),
            decode=values.size / statistics.median(decoding) / 1e6,
            encode=values.size / statistics.median(encoding) / 1e6
            if peer.is_timed_encoding
            else None,
            decode_seconds=decoding,
            encode_seconds=encoding if peer.is_timed_encoding else [],
        )
        for peer, _, _, encoding, decoding in runs
    ]
    speeds[0].checks.extend(_speed_checks(speeds))
    return speeds


def _speed_checks(speeds: Sequence[Speed]) -> Iterator[Check]:
    ours = speeds[0]
    least = 1000 if ours.is_sparse else 300
    yield Check("decoded, M/s", ours.decode, least, at_most=False)
    others = {speed.codec: speed.decode for speed in speeds}
    for name, bound in (("DeepCABAC", 30), ("ANS", 8)):
        if name in others:
            yield Check(f"decoded / {name}", ours.decode / others[name], bound, at_most=False)
    if ours.encode is not None:
        yield Check("encoded, M/s", ours.encode, 150, at_most=False)


def speed_sources(count: int) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Make the integers that speeds are measured on.

    Parameters
    ----------
    count : int
        Weights of each, rounded down to a square.

    Yields
    ------
    name : str
        What they are.
    values : ndarray of int32
        A square matrix.
    """
    drawn = draw_weights(count, 1.0, SPEED_ENTROPIES)
    for entropy, weights in zip(SPEED_ENTROPIES, drawn, strict=True):
        for share in SHARES if entropy == SPEED_ENTROPIES[-1] else SHARES[:1]:
            pruned = f", {share:.0%} pruned" if share else ""
            values = np.rint(prune(weights, share)).astype(np.int32)
            yield f"Laplacian, {entropy:g} bits{pruned}", values


# --- the whole bench ---------------------------------------------------------------------------


def describe_machine() -> dict[str, str | int]:
    """Return what speeds depend on: processor, cores, Python, NumPy, Numba."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "Numba": numba.__version__,
    }


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _networks(files: Iterable[Path]) -> Iterator[Case]:
    for model in (*map(read_model, files), *digits_models(), transformer()):
        for scheme in SCHEMES:
            for share in SHARES:
                yield model.case(scheme, share)


def _measure_all(cases: Iterable[Case], peers: Sequence[Peer], folder: Path) -> list[Sizes]:
    measured = []
    for case in cases:
        measured.append(measure_sizes(case, peers, folder))
        _say(measured[-1].case)
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, draw the charts."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.codec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "weights",
        nargs="*",
        type=Path,
        help="checkpoints that egret pack reads, or llama2.c's *.bin, besides what ships",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("networks", "sources", "speeds"),
        default=("networks", "sources", "speeds"),
        help="what to measure (everything)",
    )
    parser.add_argument(
        "--source-weights",
        type=int,
        default=SOURCE_WEIGHTS,
        help=f"weights of each synthetic source ({SOURCE_WEIGHTS:,})",
    )
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help=f"of each timing ({REPETITIONS})"
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="*",
        default=[2],
        help="numbers of threads to decode with, besides one (2)",
    )
    parser.add_argument(
        "--peers", type=Path, default=PEERS_FOLDER, help=f"where nncodec is ({PEERS_FOLDER})"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--charts", type=Path, default=CHARTS_FOLDER, help=f"folder of the SVGs ({CHARTS_FOLDER})"
    )
    parsed = parser.parse_args(arguments)
    peers, missing = load_peers(parsed.peers)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours = [EgretCodec(), *map(EgretCodec, parsed.threads), EgretFile(folder)]
            networks = (
                _measure_all(_networks(parsed.weights), peers, folder)
                if "networks" in parsed.parts
                else []
            )
            sources = (
                _measure_all(gaussian_sources(parsed.source_weights), peers, folder)
                if "sources" in parsed.parts
                else []
            )
            speeds = []
            if "speeds" in parsed.parts:
                for source, values in speed_sources(parsed.source_weights):
                    speeds += measure_speeds(source, values, [*ours, *peers], parsed.repetitions)
                    _say(f"speed: {source}")
    except EgretError as error:
        print(f"benchmarks.codec: {error}", file=sys.stderr)
        return 1
    results = Results(
        machine=describe_machine(),
        codecs={p.name: f"{p.version}; {p.note}" for p in [*ours, *peers]},
        missing=missing,
        networks=networks,
        sources=sources,
        speeds=speeds,
    )
    print(format_results(results))
    if parsed.json is not None:
        write_json(results, parsed.json)
    for path in draw(results, parsed.charts):
        print(f"drawn: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
