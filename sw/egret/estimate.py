"""How long an accelerator takes for an image, without simulating its gates.

`estimate` follows every block of bits through queues and stages (`egret.cycle_model`) and counts
the cycles as the hardware's own counter does. The streams are taken not to pause.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from egret.code_search import Codes
from egret.container import CodedRecord, read_container
from egret.cycle_model import FIELDS, decode_substream, run_cycles
from egret.errors import CapacityError, EgretError
from egret.image import HardwareImage, Packet, build_image, build_matrices
from egret.image_format import (
    CLASSES,
    CODE_FIELDS,
    ENTRY_BITS,
    ENTRY_FIELDS,
    HEADER_BYTES,
    LOAD_FIELDS,
    MATRIX_BYTES,
    MATRIX_FIELDS,
    Field,
    PacketKind,
)
from egret.network import IntegerNetwork
from egret.params import BIAS_BITS, AcceleratorParams

__all__ = ["Estimate", "MatrixEstimate", "estimate", "file_image", "file_weights"]

_WIDE_BITS = 32


@dataclass(frozen=True)
class MatrixEstimate:
    """A matrix's share of an estimate, or a layer's of all its matrices and passes.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    name : str
        Name of the layer.
    cycles : int
        Cycles from the end of the matrix before, or from the start, to its own end. What overlaps
        counts for the earlier one, so that a later one may show fewer than it keeps the bus busy.
    code_bits : int
        Bits of its codewords.
    multiplied : int
        Its weights that are multiplied.
    row_cycles : int
        Cycles that its rows need: one for each part of a row from the lanes, or
        `params.requantizer_cycles` for each result, whichever are more.
    """

    params: AcceleratorParams
    name: str
    cycles: int
    code_bits: int
    multiplied: int
    row_cycles: int

    @property
    def bus_cycles(self) -> float:
        """Cycles that the codewords need at the rate of the bus."""
        return self.code_bits / self.params.bus_bits

    @property
    def multiplier_cycles(self) -> float:
        """Cycles that the multiplications need, spread over all lanes."""
        return self.multiplied / self.params.lanes

    @property
    def roof(self) -> float:
        """Cycles below which it cannot be: of the bus or the multipliers, whichever are more."""
        return max(self.bus_cycles, self.multiplier_cycles)

    @property
    def bound(self) -> str:
        """What it needs most cycles of: "bus", "multipliers" or "rows"."""
        needs = {
            "bus": self.bus_cycles,
            "multipliers": self.multiplier_cycles,
            "rows": float(self.row_cycles),
        }
        return max(needs, key=lambda name: needs[name])

    @property
    def bus_use(self) -> float:
        """Share of its cycles that its codewords keep the bus busy."""
        return self.bus_cycles / self.cycles

    @property
    def multiplier_use(self) -> float:
        """Share of its cycles in which a lane multiplies, of all lanes."""
        return self.multiplier_cycles / self.cycles


@dataclass(frozen=True)
class Estimate:
    """What some passes over an image take.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    cycles : int
        Clock cycles in which a packet is under way.
    words : int
        Bus words of all packets.
    code_bits : int
        Bits of all codewords.
    multiplied : int
        Weights that are multiplied, each `batch` times.
    matrices : tuple of MatrixEstimate
        The matrices in order.
    """

    params: AcceleratorParams
    cycles: int
    words: int
    code_bits: int
    multiplied: int
    matrices: tuple[MatrixEstimate, ...]

    @property
    def layers(self) -> list[MatrixEstimate]:
        """The matrices added up by their names, in order."""
        named: dict[str, list[MatrixEstimate]] = {}
        for matrix in self.matrices:
            named.setdefault(matrix.name, []).append(matrix)
        return [
            MatrixEstimate(
                params=self.params,
                name=name,
                cycles=sum(matrix.cycles for matrix in own),
                code_bits=sum(matrix.code_bits for matrix in own),
                multiplied=sum(matrix.multiplied for matrix in own),
                row_cycles=sum(matrix.row_cycles for matrix in own),
            )
            for name, own in named.items()
        ]

    @property
    def roof(self) -> float:
        """Sum of the matrices' roofs in cycles."""
        return sum(matrix.roof for matrix in self.matrices)

    @property
    def bus_use(self) -> float:
        """Share of the bus's bits that are codewords."""
        return self.code_bits / (self.cycles * self.params.bus_bits)

    @property
    def multiplier_use(self) -> float:
        """Share of the cycles in which a lane multiplies, of all lanes."""
        return self.multiplied / (self.cycles * self.params.lanes)


def _fields(data: bytes, fields: Mapping[str, Field], size: int) -> dict[str, int]:
    number = int.from_bytes(data[:size], "little")
    return {
        name: number >> field.offset & ((1 << field.width) - 1) for name, field in fields.items()
    }


class _Tables:
    """A code as the hardware reads it."""

    def __init__(self, packet: Packet, params: AcceleratorParams) -> None:
        fields = _fields(packet.data, CODE_FIELDS, HEADER_BYTES)
        word = params.bus_bits // 8
        entries = np.frombuffer(packet.data, "<u2", 2 * CLASSES, -(-HEADER_BYTES // word) * word)
        suffix, offset = ENTRY_FIELDS["suffix_bits"], ENTRY_FIELDS["offset"]
        wide = entries.astype(np.int64).reshape(2, CLASSES)
        self.suffixes = wide >> suffix.lsb & ((1 << suffix.width) - 1)
        offsets = wide >> offset.lsb & ((1 << offset.width) - 1)
        self.offsets = offsets - (offsets >> (offset.width - 1) << offset.width)
        self.lasts = np.array([fields["level_last"], fields["run_last"]], np.int64)
        self.golombs = np.array([fields["level_golomb"], fields["run_golomb"]], np.int64)
        self.run_form = bool(fields["run_form"])
        self.dense = bool(fields["dense"])
        self.bank = fields["bank"]


class _Work:
    """Blocks and tasks of every lane, packet by packet."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self.rows: list[dict[str, int]] = []
        self.codes: dict[int, _Tables] = {}
        self.parities: list[NDArray[np.int64]] = []
        self.lasts: list[NDArray[np.uint8]] = []
        self.passes: list[NDArray[np.uint8]] = []
        self.tasks: list[NDArray[np.int64]] = []
        self.ends: list[list[NDArray[np.int64]]] = []

    def add(self, packet: Packet) -> None:
        """Add a packet."""
        params = self.params
        word = params.bus_bits // 8
        if packet.kind is PacketKind.MATRIX:
            self._add_matrix(packet)
            return
        row = dict.fromkeys(FIELDS, 0)
        is_bias = packet.kind is PacketKind.BIAS
        entry_bits = BIAS_BITS if is_bias else ENTRY_BITS
        row["is_bias"] = is_bias
        row["header_words"] = -(-HEADER_BYTES // word)
        row["section_entries"] = _fields(packet.data, LOAD_FIELDS, HEADER_BYTES)["count"]
        if packet.kind is PacketKind.CODE:
            code = _Tables(packet, params)
            self.codes[code.bank] = code
            row |= {"is_code": 1, "bank": code.bank, "section_entries": 2 * CLASSES}
        row["entries_per_word"] = params.bus_bits // entry_bits
        row["section_words"] = -(-row["section_entries"] // row["entries_per_word"])
        self.rows.append(row)

    def _add_matrix(self, packet: Packet) -> None:
        params = self.params
        word = params.bus_bits // 8
        fields = _fields(packet.data, MATRIX_FIELDS, MATRIX_BYTES)
        entry_bits = _WIDE_BITS if fields["wide_starts"] else ENTRY_BITS
        per_word = params.bus_bits // entry_bits
        walks = 1 + (fields["emit_results"] & fields["emit_activations"])
        row = {
            "is_matrix": 1,
            "header_words": -(-MATRIX_BYTES // word),
            "section_entries": params.substreams,
            "section_words": -(-params.substreams // per_word),
            "entries_per_word": per_word,
            "payload_words": fields["payload_words"],
            "loads": fields["load_activations"],
            "keeps": fields["keep_activations"],
            "more": fields["more"],
            "load_beats": -(-fields["columns"] // params.activation_columns),
            "bank": fields["code_bank"],
            "result_beats": fields["rows"] * params.batch * walks,
        }
        self.rows.append(dict.fromkeys(FIELDS, 0) | row)
        first = row["header_words"] * word
        starts = np.frombuffer(
            packet.data, f"<u{entry_bits // 8}", params.substreams, first
        ).astype(np.int64)
        shift = ENTRY_BITS if fields["wide_starts"] else fields["column_bits"]
        columns = starts & ((1 << shift) - 1)

        payload = np.frombuffer(
            packet.data,
            np.uint8,
            fields["payload_words"] * word,
            first + row["section_words"] * word,
        )
        width, slots = params.parser_bits, params.slots
        bits = np.unpackbits(payload, bitorder="little").reshape(-1, slots, params.lanes, width)
        groups = bits.shape[0]
        # By lane and slot; a beat's most significant bit is the first in time.
        streams = bits[..., ::-1].transpose(2, 1, 0, 3).reshape(params.substreams, -1)
        code = self.codes[fields["code_bank"]]
        passes = np.zeros((params.substreams, groups), np.uint8)
        tasks = np.zeros((params.substreams, groups), np.int64)
        ends: list[NDArray[np.int64]] = []
        for number, stream in enumerate(streams):
            found = np.empty(stream.size + groups, np.int64)
            count = decode_substream(
                np.ascontiguousarray(stream),
                width,
                code.suffixes,
                code.offsets,
                code.lasts,
                code.golombs,
                code.run_form,
                code.dense,
                columns[number],
                fields["columns"],
                1 << (params.skip_bits - 1),
                passes[number],
                tasks[number],
                found,
            )
            ends.append(found[:count].copy())
        # In the order of beats: slots take turns.
        by_lane = params.lanes, slots, groups
        lane_tasks = tasks.reshape(by_lane)
        self.ends.append(
            [
                _interleaved(ends[lane * slots : (lane + 1) * slots], lane_tasks[lane])
                for lane in range(params.lanes)
            ]
        )
        self.passes.append(passes.reshape(by_lane).transpose(0, 2, 1).reshape(params.lanes, -1))
        self.tasks.append(lane_tasks.transpose(0, 2, 1).reshape(params.lanes, -1))
        parity = (len(self.parities)) % 2
        self.parities.append(np.full(groups * slots, parity, np.int64))
        last = np.zeros(groups * slots, np.uint8)
        last[-1] = 1
        self.lasts.append(last)

    def row_cycles(self) -> list[int]:
        """Return the cycles that each matrix's rows need."""
        parts = np.zeros(len(self.parities), np.int64)
        for number, ends in enumerate(self.ends):
            for own in ends:
                parts[number] += np.abs(own).sum()
        pace = self.params.requantizer_cycles
        results = [row["result_beats"] * pace for row in self.rows if row["is_matrix"]]
        return np.maximum(parts, results).tolist()

    def run(self) -> tuple[int, NDArray[np.int64]]:
        """Return the cycles of all packets, and when each matrix ended."""
        params = self.params
        passes = np.concatenate(self.passes, axis=1)
        tasks = np.concatenate(self.tasks, axis=1)
        counts = passes.astype(np.int64).sum(axis=1)
        shape = params.lanes, int(counts.max()) + 1
        blocks, block_tasks, block_ends = (np.zeros(shape, np.int64) for _ in range(3))
        ends: list[NDArray[np.int64]] = []
        firsts = np.zeros(params.lanes, np.int64)
        total = 0
        for lane in range(params.lanes):
            used = np.flatnonzero(passes[lane])
            blocks[lane, : used.size] = used
            block_tasks[lane, : used.size] = tasks[lane, used]
            block_ends[lane, : used.size] = np.cumsum(tasks[lane, used]) - tasks[lane, used]
            firsts[lane] = total
            own = [each[lane] for each in self.ends]
            ends += own
            total += sum(part.size for part in own)
        word_depth = max(32, params.map_depth // (params.bus_bits // ENTRY_BITS))
        retired = np.zeros(len(self.parities), np.int64)
        cycles = run_cycles(
            np.array([[row[name] for name in FIELDS] for row in self.rows], np.int64),
            params.lanes,
            params.slots,
            params.input_depth,
            params.block_depth,
            word_depth,
            params.beats_per_word,
            bool(params.fanout_cycles),
            params.parser == "microcode",
            params.requantizer_cycles,
            np.concatenate(self.parities),
            np.concatenate(self.lasts),
            passes,
            blocks,
            block_tasks,
            block_ends,
            np.concatenate([*ends, np.zeros(1, np.int64)]),
            firsts,
            retired,
        )
        return int(cycles), retired


def _interleaved(ends: list[NDArray[np.int64]], tasks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bring the tasks of a lane's slots into the order of their blocks."""
    if len(ends) == 1:
        return ends[0]
    slots, groups = tasks.shape
    slot_of = np.repeat(np.tile(np.arange(slots), groups), tasks.T.ravel())
    ordered = np.empty(slot_of.size, np.int64)
    for slot in range(slots):
        ordered[slot_of == slot] = ends[slot]
    return ordered


def estimate(image: HardwareImage, *, passes: int = 1) -> Estimate:
    """Predict the cycles of passes over an image, the setup not counted.

    Parameters
    ----------
    image : HardwareImage
        The image.
    passes : int
        How often its packets are sent, at least 1.

    Returns
    -------
    Estimate
    """
    params = image.params
    work = _Work(params)
    for packet in image.setup:
        work.add(packet)
    work.rows.clear()
    for _ in range(passes):
        for packet in image.packets:
            work.add(packet)
    cycles, retired = work.run()
    matrices = image.matrices * passes
    return Estimate(
        params=params,
        cycles=cycles,
        words=passes * sum(len(packet.data) * 8 // params.bus_bits for packet in image.packets),
        code_bits=sum(matrix.code_bits for matrix in matrices),
        multiplied=sum(matrix.multiplied for matrix in matrices),
        matrices=tuple(
            MatrixEstimate(
                params=params,
                name=matrix.name,
                cycles=int(taken),
                code_bits=matrix.code_bits,
                multiplied=matrix.multiplied,
                row_cycles=rows,
            )
            for matrix, taken, rows in zip(
                matrices, np.diff(retired, prepend=0), work.row_cycles(), strict=True
            )
        ),
    )


def file_weights(path: str | Path) -> IntegerNetwork | dict[str, NDArray[np.int32]]:
    """Read what an accelerator is to multiply from a packed file.

    Parameters
    ----------
    path : str or Path
        A `.egret` container.

    Returns
    -------
    IntegerNetwork, or dict of str to ndarray of int32, shape (rows, columns)
        The network where the file holds one. Else its coded tensors of two or more axes: the first
        axis are the rows, the others together the columns.

    Raises
    ------
    FormatError
        The file is none, or is damaged.
    EgretError
        It cannot be read, or holds no such tensor.
    """
    container = read_container(path)
    if container.network is not None:
        return IntegerNetwork.load(path)
    matrices = {}
    for name in container.names:
        record = container.record(name)
        if isinstance(record, CodedRecord) and len(record.shape) > 1 and 0 not in record.shape:
            values = container.quantized(name).values
            matrices[name] = values.reshape(len(values), -1)
    if not matrices:
        raise EgretError(f"{path}: found no coded tensor of two or more axes, expected one")
    return matrices


def file_image(
    path: str | Path, params: AcceleratorParams, *, codes: str | Sequence[str] | Codes = "auto"
) -> HardwareImage:
    """Make the hardware image of a packed file, with or without a network.

    Parameters
    ----------
    path : str or Path
        A `.egret` container.
    params : AcceleratorParams
        The accelerator.
    codes : str, sequence of str, or Codes
        Codes to choose from, as in `egret.packing.pack`.

    Raises
    ------
    EgretError
        As of `file_weights`, `build_image` and `build_matrices`; the message names the file.
    """
    weights = file_weights(path)
    try:
        if isinstance(weights, IntegerNetwork):
            return build_image(weights, params, codes=codes)
        return build_matrices(weights, params, codes=codes)
    except CapacityError as error:
        raise CapacityError(f"{path}: layer {error}") from error
