"""The packer: an integer network becomes the hardware image of one accelerator.

The format is chapter 2 of docs/format.md.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from egret.crc import crc32c
from egret.errors import CapacityError
from egret.golomb import best_order, encode_golomb, golomb_bits
from egret.image_format import (
    CODE_EG_K,
    DESCRIPTOR_BYTES,
    FIELDS,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    ROW_UNUSED,
)
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import BIAS_BITS, AcceleratorParams
from egret.value_map import rank_values, to_indices

__all__ = ["HardwareImage", "MatrixPacket", "build_image"]


@dataclass(frozen=True)
class MatrixPacket:
    """One matrix of an image.

    Parameters
    ----------
    name : str
        Layer name.
    data : bytes
        The whole packet: descriptor, tables, payload and CRC word.
    rows, columns : int
        Size as streamed, zero columns included.
    order : int
        Exp-Golomb order k.
    code_bits : int
        Bits of the codewords alone.
    payload_words : int
        Bus words of the payload.
    zigzag : bool
        The values come from the zigzag of the index, without a map section.
    """

    name: str
    data: bytes
    rows: int
    columns: int
    order: int
    code_bits: int
    payload_words: int
    zigzag: bool


@dataclass(frozen=True)
class HardwareImage:
    """Image of a network for one parameter set.

    Parameters
    ----------
    params : AcceleratorParams
        What the image was made for.
    packets : tuple of MatrixPacket
        One a layer, in running order.
    """

    params: AcceleratorParams
    packets: tuple[MatrixPacket, ...]

    @property
    def data(self) -> bytes:
        """Every packet's bytes, one after the other."""
        return b"".join(packet.data for packet in self.packets)


def _descriptor(values: Mapping[str, int]) -> bytes:
    number = 0
    for name, field in FIELDS.items():
        value = int(values[name])
        if not 0 <= value < 1 << field.width:
            raise CapacityError(
                f"descriptor field {name}: found {value}, expected 0 to {(1 << field.width) - 1}"
            )
        number |= value << field.offset
    return number.to_bytes(DESCRIPTOR_BYTES, "little")


def _padded(data: bytes, params: AcceleratorParams) -> bytes:
    return data + bytes(-len(data) % (params.bus_bits // 8))


def _zigzag(values: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    wide = values.astype(np.int64)
    return np.where(wide < 0, -2 * wide - 1, 2 * wide).astype(np.uint32)


def _deal_rows(row_bits: npt.NDArray[np.int64], substreams: int) -> list[list[int]]:
    """Deal rows to substreams, longest first, each to the least loaded (LPT, Graham 1969)."""
    dealt: list[list[int]] = [[] for _ in range(substreams)]
    loads = [(0, substream) for substream in range(substreams)]
    for row in np.argsort(-row_bits, kind="stable"):
        load, substream = heapq.heappop(loads)
        dealt[substream].append(int(row))
        heapq.heappush(loads, (load + int(row_bits[row]), substream))
    return dealt


def _payload(
    indices: npt.NDArray[np.uint32], order: int, dealt: list[list[int]], params: AcceleratorParams
) -> bytes:
    """Interleave the substreams' codewords into bus words (docs/format.md, "Payload")."""
    width = params.parser_bits
    streams = []
    for rows in dealt:
        code, bits = encode_golomb(indices[rows].ravel(), order)
        streams.append(np.unpackbits(code, count=bits))
    beats_per_slot = max(-(-stream.size // width) for stream in streams)
    beats = beats_per_slot * params.slots
    words = max(1, -(-beats // params.beats_per_word))
    groups = -(-words * params.beats_per_word // params.slots)
    table = np.zeros((params.substreams, groups * width), np.uint8)
    for substream, stream in enumerate(streams):
        table[substream, : stream.size] = stream
    # Beat-major, then lane; within a group the first bit in time is the most significant one.
    ordered = table.reshape(params.lanes, params.slots, groups, width).transpose(2, 1, 0, 3)
    packed = np.packbits(ordered[..., ::-1].ravel(), bitorder="little").tobytes()
    return packed[: words * params.bus_bits // 8].ljust(words * params.bus_bits // 8, b"\0")


def _choose_map(
    layer: IntegerLayer,
    weights: npt.NDArray[np.int32],
    params: AcceleratorParams,
    order: int | None,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32] | None, int, int, int]:
    """Return indices, value map or None for zigzag, entries in use, order and code bits."""
    limit = 1 << (params.weight_bits - 1)
    low, high = int(weights.min()), int(weights.max())
    if low < -limit or high >= limit:
        found = low if low < -limit else high
        raise CapacityError(
            f"{layer.name}: weight {found} does not fit {params.weight_bits} bits, expected "
            f"{-limit} to {limit - 1}"
        )
    table = rank_values(weights)
    candidates: list[
        tuple[float, int, npt.NDArray[np.uint32], npt.NDArray[np.int32] | None, int]
    ] = []
    for values, indices in ((table, to_indices(weights, table)), (None, _zigzag(weights))):
        entries = int(indices.max()) + 1
        if entries > params.map_depth:
            continue
        histogram = np.bincount(indices.ravel())
        chosen, bits = (
            best_order(histogram) if order is None else (order, golomb_bits(histogram, order))
        )
        # In cycles: the codewords on the bus, and a map's entries, dealt to the lanes one a cycle.
        cost = bits / params.bus_bits + (0 if values is None else entries)
        candidates.append((cost, chosen, indices, values, bits))
    if not candidates:
        raise CapacityError(
            f"{layer.name}: {table.size} distinct weights do not fit the value map, expected at "
            f"most {params.map_depth}, nor does the largest magnitude fit a zigzag index"
        )
    _, chosen, indices, values, bits = min(candidates, key=lambda candidate: candidate[0])
    return indices, values, int(indices.max()) + 1, chosen, bits


def _build_packet(
    layer: IntegerLayer,
    params: AcceleratorParams,
    *,
    first: bool,
    last: bool,
    emit_all: bool,
    order: int | None,
) -> MatrixPacket:
    weights = layer.weight.values
    rows, columns = weights.shape
    if columns > params.activation_depth:
        raise CapacityError(
            f"{layer.name}: {columns} columns, expected at most activation_depth = "
            f"{params.activation_depth} of parameter set {params.name}"
        )
    row_limit = params.row_depth if last else params.activation_depth
    if rows > row_limit:
        raise CapacityError(
            f"{layer.name}: {rows} rows, expected at most "
            f"{'row_depth' if last else 'activation_depth'} = {row_limit} of parameter set "
            f"{params.name}"
        )
    if columns < params.parser_bits:
        weights = np.pad(weights, ((0, 0), (0, params.parser_bits - columns)))
        columns = params.parser_bits
    indices, values, entries, chosen, code_bits = _choose_map(layer, weights, params, order)
    lengths = 2 * np.floor(np.log2(indices + float(1 << chosen))).astype(np.int64) + 1 - chosen
    dealt = _deal_rows(lengths.sum(axis=1), params.substreams)
    row_slots = max(len(held) for held in dealt)
    if row_slots > params.row_slots:
        raise CapacityError(
            f"{layer.name}: {row_slots} rows fall to one substream, expected at most "
            f"{params.row_slots} of parameter set {params.name}"
        )
    row_table = np.full((row_slots, params.substreams), ROW_UNUSED, "<u2")
    for substream, held in enumerate(dealt):
        row_table[: len(held), substream] = held
    payload = _payload(indices, chosen, dealt, params)
    bias = layer.bias_integer
    sections = [
        _descriptor(
            {
                "magic": IMAGE_MAGIC,
                "version": IMAGE_VERSION,
                "load_activations": first,
                "relu": layer.relu,
                "keep_activations": not last,
                "emit_results": last or emit_all,
                "emit_activations": emit_all,
                "has_bias": bias is not None,
                "zigzag": values is None,
                "dense": values is not None and int(values[0]) != 0,
                "code": CODE_EG_K,
                "order": chosen,
                "rows": rows,
                "columns": columns,
                "map_entries": entries,
                "row_slots": row_slots,
                "payload_words": len(payload) * 8 // params.bus_bits,
                "multiplier": layer.multiplier,
                "shift": layer.shift,
            }
        ),
        b"" if values is None else values.astype("<i2").tobytes(),
        np.array([len(held) for held in dealt], "<u2").tobytes(),
        row_table.tobytes(),
        b"" if bias is None else bias.astype(f"<i{BIAS_BITS // 8}").tobytes(),
        payload,
    ]
    body = b"".join(_padded(section, params) for section in sections)
    return MatrixPacket(
        name=layer.name,
        data=body + _padded(crc32c(body).to_bytes(4, "little"), params),
        rows=rows,
        columns=columns,
        order=chosen,
        code_bits=code_bits,
        payload_words=len(payload) * 8 // params.bus_bits,
        zigzag=values is None,
    )


def build_image(
    network: IntegerNetwork,
    params: AcceleratorParams,
    *,
    emit: Literal["last", "all"] = "last",
    order: int | None = None,
) -> HardwareImage:
    """Pack a network for one accelerator.

    Parameters
    ----------
    network : IntegerNetwork
        Layers in running order.
    params : AcceleratorParams
        The accelerator.
    emit : {"last", "all"}
        Which layers send results: the last one its raw results, or every layer both its raw
        results and its int8 activations, for verification.
    order : int, optional
        Exp-Golomb order, 0 to 7, of every matrix; the cheapest for each when absent.

    Returns
    -------
    HardwareImage

    Raises
    ------
    CapacityError
        A layer does not fit; the message names the layer, what was found and the limit.
    """
    final = len(network.layers) - 1
    return HardwareImage(
        params=params,
        packets=tuple(
            _build_packet(
                layer,
                params,
                first=position == 0,
                last=position == final,
                emit_all=emit == "all",
                order=order,
            )
            for position, layer in enumerate(network.layers)
        ),
    )
