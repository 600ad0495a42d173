"""The packer: an integer network becomes the hardware image of one accelerator.

The format is chapter 2 of docs/format.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from egret.code_search import Codes, parse_codes
from egret.codebook import from_zigzag, zigzag
from egret.crc import crc32c
from egret.errors import CapacityError, EgretError
from egret.image_code import HardwareCode, class_offsets
from egret.image_cut import make_substreams
from egret.image_format import (
    CLASSES,
    CODE_FIELDS,
    ENTRY_BITS,
    ENTRY_FIELDS,
    HEADER_BYTES,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    LOAD_FIELDS,
    MATRIX_BYTES,
    MATRIX_FIELDS,
    Field,
    PacketKind,
)
from egret.image_plan import Histograms, MapUse, Plan, make_plan
from egret.image_tables import Placement, Turn, place_tables
from egret.network import IntegerNetwork
from egret.params import ACTIVATION_BITS, BIAS_BITS, RESULT_BITS, AcceleratorParams
from egret.prefix_code import PrefixCode

__all__ = ["HardwareImage", "MatrixPacket", "Packet", "build_image", "build_matrices"]


@dataclass(frozen=True)
class Packet:
    """One packet of an image.

    Parameters
    ----------
    kind : PacketKind
        What it carries.
    name : str
        What it is for: a layer's name, or the tables that it fills.
    data : bytes
        The whole packet in bus words: header, sections and CRC word.
    """

    kind: PacketKind
    name: str
    data: bytes = field(repr=False)

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{self.name}: {self.kind.name}"


@dataclass(frozen=True)
class MatrixPacket(Packet):
    """A matrix of an image.

    Parameters
    ----------
    layer : int
        Number of the layer, from 0.
    rows, columns : int
        Size of the matrix, or of the tile of one.
    first_row, first_column : int
        Where the tile lies in the layer's matrix.
    is_spacer : bool
        It changes nothing, and only gives a table time to be loaded.
    load_activations : bool
        It takes a packet of activations: the `columns` from `first_column` on.
    code : str
        Name of its code.
    zigzag : bool
        The values are the zigzag of the index, without a value map.
    code_bits : int
        Bits of the codewords alone.
    multiplied : int
        Weights that are multiplied.
    payload_words : int
        Bus words of the payload.
    substream_bits : tuple of int
        Bits of the codewords of each substream.
    lane_work : tuple of int
        Cycles in which each lane multiplies, or sends a row's sum.
    """

    layer: int
    rows: int
    columns: int
    first_row: int
    first_column: int
    is_spacer: bool
    load_activations: bool
    code: str
    zigzag: bool
    code_bits: int
    multiplied: int
    payload_words: int
    substream_bits: tuple[int, ...] = field(repr=False)
    lane_work: tuple[int, ...] = field(repr=False)

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return (
            f"{self.name}: {self.rows} x {self.columns}, {self.code}, "
            f"{self.code_bits / (self.rows * self.columns):.3f} code bits per weight"
        )


@dataclass(frozen=True)
class HardwareImage:
    """Image of a network for one parameter set.

    Parameters
    ----------
    params : AcceleratorParams
        What the image was made for.
    setup : tuple of Packet
        Sent once after a reset: tables that stay.
    packets : tuple of Packet
        Sent for every pass of inputs.
    """

    params: AcceleratorParams
    setup: tuple[Packet, ...]
    packets: tuple[Packet, ...]

    @property
    def data(self) -> bytes:
        """Every packet's bytes, one after the other, the setup first."""
        return b"".join(packet.data for packet in (*self.setup, *self.packets))

    @property
    def hex(self) -> str:
        """The bus words in hexadecimal, one a line, as Verilog's `$readmemh` reads them."""
        size = self.params.bus_bits // 8
        # The last byte of a word is the most significant one.
        digits = np.frombuffer(self.data, np.uint8).reshape(-1, size)[:, ::-1].tobytes().hex()
        return "".join(
            f"{digits[place : place + 2 * size]}\n" for place in range(0, len(digits), 2 * size)
        )

    @property
    def listing(self) -> str:
        """Where each packet begins, as JSON.

        An object with `params`, the name of the parameter set; `bus_bits`; and `setup` and
        `packets`, lists of objects with the packet's `kind`, `name`, and `first` and `words`: its
        place in the image in bus words. A matrix also has `layer`, `rows`, `columns`, `first_row`,
        `first_column`, and `load_activations`, whether it takes a packet of activations.
        """
        size = self.params.bus_bits // 8
        place = 0
        lists: dict[str, list[dict[str, object]]] = {"setup": [], "packets": []}
        for name, packets in (("setup", self.setup), ("packets", self.packets)):
            for packet in packets:
                words = len(packet.data) // size
                entry: dict[str, object] = {
                    "kind": packet.kind.name,
                    "name": packet.name,
                    "first": place,
                    "words": words,
                }
                if isinstance(packet, MatrixPacket):
                    fields = ("layer", "rows", "columns", "first_row", "first_column")
                    entry |= {field: getattr(packet, field) for field in fields}
                    entry["load_activations"] = packet.load_activations
                lists[name].append(entry)
                place += words
        head = {"params": self.params.name, "bus_bits": self.params.bus_bits}
        return json.dumps({**head, **lists}, indent=1) + "\n"

    @property
    def matrices(self) -> tuple[MatrixPacket, ...]:
        """The matrix packets."""
        return tuple(packet for packet in self.packets if isinstance(packet, MatrixPacket))


def _header(fields: Mapping[str, Field], size: int, values: Mapping[str, int]) -> bytes:
    number = 0
    for name, place in fields.items():
        value = int(values.get(name, 0))
        if not 0 <= value < 1 << place.width:
            raise CapacityError(
                f"header field {name}: found {value}, expected 0 to {(1 << place.width) - 1}"
            )
        number |= value << place.offset
    return number.to_bytes(size, "little")


def _packet_data(
    params: AcceleratorParams,
    kind: PacketKind,
    values: Mapping[str, int],
    sections: Sequence[bytes],
) -> bytes:
    """Join header and sections, each filled up to a whole bus word, and their CRC."""
    every = {"magic": IMAGE_MAGIC, "version": IMAGE_VERSION, "kind": kind, **values}
    if kind is PacketKind.MATRIX:
        header = _header(MATRIX_FIELDS, MATRIX_BYTES, every)
    else:
        fields = CODE_FIELDS if kind is PacketKind.CODE else LOAD_FIELDS
        header = _header(fields, HEADER_BYTES, every)
    word = params.bus_bits // 8
    body = b"".join(part + bytes(-len(part) % word) for part in (header, *sections))
    return body + crc32c(body).to_bytes(word, "little")


def _table_entries(code: PrefixCode | None) -> NDArray[np.uint16]:
    entries = np.zeros(CLASSES, np.uint16)
    if code is not None:
        width = ENTRY_FIELDS["offset"].width
        offsets = class_offsets(code) & ((1 << width) - 1)
        entries[: offsets.size] = (
            np.array(code.suffix_bits) << ENTRY_FIELDS["suffix_bits"].offset
            | offsets << ENTRY_FIELDS["offset"].offset
        )
    return entries


def _code_packet(code: HardwareCode, bank: int, params: AcceleratorParams) -> Packet:
    values = {
        "bank": bank,
        "run_form": code.run is not None,
        "dense": code.dense,
        "level_golomb": code.level.order is not None,
        "level_last": len(code.level.suffix_bits) - 1,
    }
    if code.run is not None:
        values["run_golomb"] = code.run.order is not None
        values["run_last"] = len(code.run.suffix_bits) - 1
    entries = np.concatenate((_table_entries(code.level), _table_entries(code.run)))
    return Packet(
        PacketKind.CODE,
        f"code {bank}",
        _packet_data(params, PacketKind.CODE, values, [entries.astype("<u2").tobytes()]),
    )


def _load_packet(
    params: AcceleratorParams, kind: PacketKind, name: str, base: int, entries: NDArray[np.integer]
) -> Packet:
    dtype = f"<i{(BIAS_BITS if kind is PacketKind.BIAS else ENTRY_BITS) // 8}"
    values = {"base": base, "count": entries.size}
    return Packet(kind, name, _packet_data(params, kind, values, [entries.astype(dtype).tobytes()]))


def _starts_section(starts: NDArray[np.int64], columns: int) -> tuple[Mapping[str, int], bytes]:
    rows, places = starts // columns, starts % columns
    column_bits = int(places.max()).bit_length()
    if int(rows.max()).bit_length() + column_bits > ENTRY_BITS:
        return {"wide_starts": 1}, (rows << ENTRY_BITS | places).astype("<u4").tobytes()
    return {"column_bits": column_bits}, (rows << column_bits | places).astype("<u2").tobytes()


@dataclass(frozen=True)
class _Tile:
    layer: int
    name: str
    values: NDArray[np.int32]
    first_row: int
    first_column: int
    flags: Mapping[str, int]
    bias: NDArray[np.int32] | None


def _pieces(size: int, limit: int) -> list[slice]:
    """Cut a length into pieces of about equal size, as few as the limit allows."""
    count = -(-size // limit)
    bounds = [size * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def _tiles(
    layer: int,
    name: str,
    values: NDArray[np.int32],
    bias: NDArray[np.int32] | None,
    flags: Mapping[str, int],
    params: AcceleratorParams,
) -> list[_Tile]:
    """Cut a layer's matrix into tiles that fit the memories; `flags` are those of the whole."""
    rows, columns = values.shape
    if flags["keep_activations"] and rows > params.activation_depth:
        raise CapacityError(
            f"{name}: {rows} rows, whose results are the next layer's inputs, expected at most "
            f"activation_depth = {params.activation_depth} of parameter set {params.name}"
        )
    tiles = []
    # Where there are tiles side by side, this is the first layer: others have as many columns as
    # the one before has rows.
    across = _pieces(columns, params.activation_depth)
    for down in _pieces(rows, params.row_depth):
        for place in across:
            own = dict(flags)
            part = None if bias is None else bias[down]
            if place is not across[-1]:
                own = {"load_activations": 1, "keep_activations": 0, "more": 1}
                part = None
            # Tiles below each other read the same activations, unless others have replaced them.
            own["load_activations"] &= down.start == 0 or len(across) > 1
            tile = values[down, place]
            if flags["load_activations"]:
                # The activation stream begins with the last column; turned around, a host sends
                # its vector from the front.
                tile = tile[:, ::-1]
            tiles.append(_Tile(layer, name, tile, down.start, place.start, own, part))
    return tiles


def _network_tiles(
    network: IntegerNetwork, params: AcceleratorParams, *, emit_all: bool
) -> list[_Tile]:
    tiles = []
    final = len(network.layers) - 1
    for number, layer in enumerate(network.layers):
        flags = {
            "load_activations": number == 0,
            "relu": layer.relu,
            "keep_activations": number < final,
            "emit_results": emit_all or number == final,
            "emit_activations": emit_all,
            "shift": layer.shift,
            "multiplier": layer.multiplier,
        }
        tiles += _tiles(number, layer.name, layer.weight.values, layer.bias_integer, flags, params)
    return tiles


def _indices(values: NDArray[np.int32], use: MapUse | None, *, is_run: bool) -> NDArray[np.int64]:
    """Return the index of each weight; those of zeros mean nothing in the run form."""
    every = zigzag(values.reshape(-1))
    if use is None:
        return every - 1 if is_run else every
    table = np.zeros(int(max(every.max(), use.numbers.max())) + 1, np.int64)
    table[use.numbers] = np.arange(use.numbers.size)
    return table[every]


def build_image(
    network: IntegerNetwork,
    params: AcceleratorParams,
    *,
    emit: Literal["last", "all"] = "last",
    codes: str | Sequence[str] | Codes = "auto",
) -> HardwareImage:
    """Pack a network for one accelerator.

    A first layer with more columns than an activation memory holds becomes tiles that each take
    their part of the input; a last layer with more rows than an accelerator has sums becomes tiles
    that each send theirs.

    Parameters
    ----------
    network : IntegerNetwork
        Layers in running order.
    params : AcceleratorParams
        The accelerator.
    emit : {"last", "all"}
        Which layers send results: the last one its raw results, or every layer both its raw
        results and its int8 activations, for verification.
    codes : str, sequence of str, or Codes
        Codes to choose from, as in `egret.packing.pack`.

    Returns
    -------
    HardwareImage

    Raises
    ------
    CapacityError
        A layer does not fit; the message names the layer, what was found and the limit.
    EgretError
        A code's name is unknown, or the accelerator knows none of those named.
    """
    tiles = _network_tiles(network, params, emit_all=emit == "all")
    return _build(tiles, params, parse_codes(codes))


def build_matrices(
    matrices: Mapping[str, NDArray[np.int32]],
    params: AcceleratorParams,
    *,
    codes: str | Sequence[str] | Codes = "auto",
) -> HardwareImage:
    """Pack matrices that do not feed each other.

    Each takes its activations from the host and sends its raw results.

    Parameters
    ----------
    matrices : mapping of str to ndarray of int32, shape (rows, columns)
        Name and weights of each, in running order.
    params : AcceleratorParams
        The accelerator.
    codes : str, sequence of str, or Codes
        Codes to choose from, as in `egret.packing.pack`.

    Returns
    -------
    HardwareImage

    Raises
    ------
    CapacityError
        A matrix does not fit; the message names it, what was found and the limit.
    EgretError
        There are no matrices, or one is none, or a code's name is unknown, or the accelerator knows
        none of those named.
    """
    tiles: list[_Tile] = []
    for number, (name, values) in enumerate(matrices.items()):
        if values.ndim != 2 or 0 in values.shape:
            raise EgretError(f"{name}: found shape {values.shape}, expected rows and columns")
        largest = int(np.abs(values.astype(np.int64)).sum(axis=1).max()) << (ACTIVATION_BITS - 1)
        if largest >= 1 << (RESULT_BITS - 1):
            raise CapacityError(
                f"{name}: a result can reach {largest}, outside an int{RESULT_BITS}"
            )
        flags = {"load_activations": 1, "keep_activations": 0, "emit_results": 1}
        tiles += _tiles(number, name, values, None, flags, params)
    if not tiles:
        raise EgretError("found no matrices, expected at least one")
    return _build(tiles, params, parse_codes(codes))


# A spacer's indices, with its filler: those of the zigzag up to 1.
_SPACER_INDICES = 4


def _build(tiles: Sequence[_Tile], params: AcceleratorParams, codes: Codes) -> HardwareImage:
    group = [Histograms(tile.name, tile.values, params) for tile in tiles]
    plan = make_plan(group, codes, params)
    turns, map_places, bias_places = _place(tiles, plan, params)
    if any(turn.is_spacer for turn in turns) and any(
        code.level.symbols < _SPACER_INDICES for code in plan.codes
    ):
        plan = make_plan(group, codes, params, indices=_SPACER_INDICES)
        turns, map_places, bias_places = _place(tiles, plan, params)
    own = [None if use is None or use.key < 0 else use.numbers for use in plan.maps]

    def load_map(place: int) -> list[Packet]:
        numbers = own[place]
        if numbers is None:
            return []
        return [
            _load_packet(
                params,
                PacketKind.MAP,
                tiles[place].name,
                map_places.bases[place],
                from_zigzag(numbers),
            )
        ]

    def load_bias(place: int) -> list[Packet]:
        bias = tiles[place].bias
        if bias is None:
            return []
        return [
            _load_packet(params, PacketKind.BIAS, tiles[place].name, bias_places.bases[place], bias)
        ]

    codes_stay = len(plan.codes) <= params.code_banks
    setup: list[Packet] = []
    if codes_stay:
        setup += [_code_packet(code, bank, params) for bank, code in enumerate(plan.codes)]
    if plan.shared.size:
        setup.append(
            _load_packet(params, PacketKind.MAP, "shared map", 0, from_zigzag(plan.shared))
        )
    for place in range(len(tiles)):
        setup += load_map(place) if map_places.stay else []
        setup += load_bias(place) if bias_places.stay else []
    packets: list[Packet] = []
    loaded = -1
    # The matrix packet before, and whether a spacer has taken the next matrix's activations.
    before: _Tile | None = None
    taken = False
    for turn in turns:
        place = turn.matrix
        tile, use, number = tiles[place], plan.maps[place], plan.numbers[place]
        if not codes_stay and number != loaded:
            packets.append(_code_packet(plan.codes[number], number % params.code_banks, params))
            loaded = number
        flags: dict[str, int] = dict(tile.flags)
        flags["load_activations"] &= not taken
        if turn.is_spacer:
            tile, use = _spacer(tile, flags, before), None
            taken |= bool(tile.flags["load_activations"])
            flags = dict(tile.flags)
        else:
            taken = False
            packets += [] if map_places.stay else load_map(place)
            packets += [] if bias_places.stay else load_bias(place)
            if tile.bias is not None:
                flags["has_bias"] = 1
                flags["bias_base"] = bias_places.bases[place]
            if use is not None:
                base = 0 if use.key < 0 else map_places.bases[place]
                flags["map_base"] = base + use.first
        flags["code_bank"] = number % params.code_banks
        packet = _matrix_packet(tile, use, plan.codes[number], flags, params)
        packets.append(replace(packet, is_spacer=turn.is_spacer))
        before = replace(tile, flags=flags)
    return HardwareImage(params, tuple(setup), tuple(packets))


def _place(
    tiles: Sequence[_Tile], plan: Plan, params: AcceleratorParams
) -> tuple[list[Turn], Placement, Placement]:
    turns, (map_places, bias_places) = place_tables(
        [tile.name for tile in tiles],
        [
            (
                "map entries",
                [0 if use is None or use.key < 0 else use.numbers.size for use in plan.maps],
                plan.shared.size,
                params.map_depth,
            ),
            (
                "biases",
                [0 if tile.bias is None else tile.bias.size for tile in tiles],
                0,
                2 * params.row_depth,
            ),
        ],
    )
    return turns, map_places, bias_places


def _spacer(tile: _Tile, flags: Mapping[str, int], before: _Tile | None) -> _Tile:
    """Make a matrix that uses no tables and changes nothing, to stand before a tile."""
    rows, columns = tile.values.shape
    if before is not None and before.flags.get("more"):
        # Zeros, added to the sums of the one before.
        columns = before.values.shape[1]
    elif flags["load_activations"] or (before is not None and before.flags["keep_activations"]):
        # The activations times 1, which are kept.
        own = {
            "load_activations": flags["load_activations"],
            "keep_activations": 1,
            "multiplier": 1,
        }
        return replace(tile, values=np.eye(columns, dtype=np.int32), flags=own, bias=None)
    # Zeros, to which the tile adds its sums: of the activations that it reads again.
    own = {"load_activations": 0, "keep_activations": 0, "more": 1}
    return replace(tile, values=np.zeros((rows, columns), np.int32), flags=own, bias=None)


def _matrix_packet(
    tile: _Tile,
    use: MapUse | None,
    code: HardwareCode,
    flags: Mapping[str, int],
    params: AcceleratorParams,
) -> MatrixPacket:
    rows, columns = tile.values.shape
    indices = _indices(tile.values, use, is_run=code.run is not None)
    entries = max(1, int(indices.max()) + 1) if use is None else use.numbers.size
    positions = np.flatnonzero(tile.values)
    streams = make_substreams(indices, positions, columns, entries, code, params)
    start_values, starts = _starts_section(streams.starts, columns)
    payload_words = len(streams.payload) * 8 // params.bus_bits
    values = {
        **flags,
        **start_values,
        "rows": rows,
        "columns": columns,
        "zigzag": use is None,
        "map_entries": entries,
        "payload_words": payload_words,
    }
    return MatrixPacket(
        PacketKind.MATRIX,
        tile.name,
        _packet_data(params, PacketKind.MATRIX, values, [starts, streams.payload]),
        layer=tile.layer,
        rows=rows,
        columns=columns,
        first_row=tile.first_row,
        first_column=tile.first_column,
        is_spacer=False,
        load_activations=bool(flags["load_activations"]),
        code=code.name,
        zigzag=use is None,
        code_bits=int(streams.bits.sum()),
        multiplied=streams.multiplied,
        payload_words=payload_words,
        substream_bits=tuple(streams.bits.tolist()),
        lane_work=tuple(streams.work.tolist()),
    )
