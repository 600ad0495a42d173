"""The designs that `benchmarks/hardware.py` places and routes, each with its limits."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from amaranth.hdl import Cat, Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from benchmarks.baseline_lzc import LeadingZeroDecoder

from egret.params import CODE_NAMES, PRESETS, AcceleratorParams
from egret_hw.dealer import start_layout
from egret_hw.fanout import Fanout
from egret_hw.lane import Lane, LaneSettings
from egret_hw.layouts import (
    code_layout,
    code_write_layout,
    map_write_layout,
    matrix_layout,
    microcode_write_layout,
    start_write_layout,
    vector_write_layout,
)
from egret_hw.microcode import MicrocodeParser
from egret_hw.parser import UnrolledParser
from egret_hw.place import BOARDS, ECP5, ICE40, Part
from egret_hw.readout import ReadoutNode
from egret_hw.row_store import RowStore, walk_layout
from egret_hw.rtl import component_verilog, generate_verilog, top_name

__all__ = ["Design", "LaneArray", "designs"]

_SUFFIX_LIMIT = 10
_CUT = 2
"""Bits between registers of the parsers for eg-k; with microcode, a register behind its RAM."""
_TABLE_CUT = 1
"""Bits between registers of the parsers for all codes in logic."""


@dataclass(frozen=True)
class Design:
    """Something to place and route.

    Parameters
    ----------
    name : str
        Shown in tables.
    verilog : callable
        Returns the text.
    top : str
        Top module.
    bits : int
        Stream bits a cycle; 0: a codeword a cycle.
    most_luts : float or None
        Limit: LUTs, or logic cells of an iCE40.
    least_mhz : float or None
        Limit of the clock.
    part : Part
        What it is placed on.
    clock : str
        Port of the clock.
    wide_luts : bool
        See `egret_hw.place.place`.
    once : tuple of str
        See there.
    """

    name: str
    verilog: Callable[[], str] = field(repr=False)
    top: str
    bits: int
    most_luts: float | None = None
    least_mhz: float | None = None
    part: Part = ECP5
    clock: str = "clk"
    wide_luts: bool = False
    once: tuple[str, ...] = ()

    @property
    def floorplan(self) -> bool:
        """Whether lanes are given their places; see `egret_hw.place.place`.

        Without, nextpnr does not come to an end in reasonable time where there are many of them.
        """
        return bool(self.once) and self.part.tool == "nextpnr_ecp5"


class LaneArray(wiring.Component):
    """Lanes with what is between their inputs and whole rows, and nothing else.

    All lanes take their bits of a beat together; their rows' sums pass the read-out chain into the
    row store, from which whole rows are read.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream)
        Beats: `bits` of all lanes, `first`, `last`, `parity` as in `Lane`.
    codes, matrices, code_write, microcode_write, map_write, vector_write, start_write, go, \
clear_errors
        See `Lane` and `LaneSettings`.
    selected : In(lanes)
        The lane that `start_write` is for, one bit each.
    start, rows, banks, complete, beyond, release, walk, sums
        See `RowStore`.
    multiply : Out(lanes)
        See `Lane`.
    bad_prefix, bad_index : Out(lanes * 2 * C)
        See `Lane`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        beat = data.StructLayout({"bits": params.beat_bits, "first": 1, "last": 1, "parity": 1})
        self._store = RowStore(params)
        store = self._store.signature.members
        errors = 2 * params.lanes * params.slots
        super().__init__(
            {
                "i": In(stream.Signature(beat)),
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                "matrices": In(data.ArrayLayout(matrix_layout(params), 2)),
                "code_write": In(code_write_layout()),
                "microcode_write": In(microcode_write_layout()),
                "map_write": In(map_write_layout(params)),
                "vector_write": In(vector_write_layout(params)),
                "start_write": In(start_write_layout(params)),
                "selected": In(params.lanes),
                "go": In(2),
                "clear_errors": In(2),
                "start": In(start_layout(params)),
                "rows": store["rows"],
                "banks": In(2),
                "complete": Out(2),
                "beyond": Out(2),
                "release": In(2),
                "walk": In(walk_layout(params)),
                "sums": store["sums"],
                "multiply": Out(params.lanes),
                "bad_prefix": Out(errors),
                "bad_index": Out(errors),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        m.submodules.store = store = self._store
        m.d.comb += [
            store.start.eq(self.start),
            store.rows.eq(self.rows),
            store.banks.eq(self.banks),
            store.release.eq(self.release),
            store.walk.eq(self.walk),
            self.complete.eq(store.complete),
            self.beyond.eq(store.beyond),
            self.sums.eq(store.sums),
        ]
        lanes = [Lane(params) for _ in range(params.lanes)]
        nodes = [ReadoutNode(params, params.lanes - 1 - index) for index in range(params.lanes)]
        m.submodules.fanout = fanout = Fanout(params)
        wiring.connect(m, wiring.flipped(self.i), fanout.i)
        m.d.comb += [
            fanout.ready.eq(Cat(lane.i.ready for lane in lanes)),
            fanout.roomy.eq(Cat(lane.roomy for lane in lanes)),
            self.multiply.eq(Cat(lane.multiply for lane in lanes)),
            self.bad_prefix.eq(Cat(lane.bad_prefix for lane in lanes)),
            self.bad_index.eq(Cat(lane.bad_index for lane in lanes)),
        ]
        m.submodules.settings = settings = LaneSettings(params)
        m.d.comb += [
            settings.codes.eq(self.codes),
            settings.matrices.eq(self.matrices),
            settings.start_write.eq(self.start_write),
        ]
        broadcasts = ("codes", "go", "clear_errors")
        writes = ("code_write", "microcode_write", "map_write", "vector_write", "start_write")
        slot_bits = (params.slots - 1).bit_length()
        for index, (lane, node) in enumerate(zip(lanes, nodes, strict=True)):
            m.submodules[f"lane_{index}"] = lane
            m.submodules[f"readout_{index}"] = node
            m.d.comb += [
                getattr(lane, name).eq(getattr(self, name)) for name in (*broadcasts, *writes)
            ]
            beat, sums = fanout.o, node.lane.payload
            m.d.comb += [
                lane.banks.eq(Cat(matrix.code_bank for matrix in self.matrices)),
                lane.settings.eq(settings.o),
                lane.selected.eq(self.selected[index]),
                lane.i.valid.eq(fanout.valid),
                lane.i.payload.bits.eq(beat.bits.word_select(index, params.parser_bits)),
                lane.i.payload.first.eq(beat.first),
                lane.i.payload.last.eq(beat.last),
                lane.i.payload.parity.eq(beat.parity),
                node.lane.valid.eq(lane.o.valid),
                sums.parity.eq(lane.o.payload.parity),
                sums.substream.eq(index << slot_bits | lane.o.payload.slot[:slot_bits]),
                sums.last.eq(lane.o.payload.last),
                sums.sums.eq(lane.o.payload.sums),
                lane.o.ready.eq(node.lane.ready),
            ]
            if index:
                wiring.connect(m, node.o, nodes[index - 1].behind)
        wiring.connect(m, nodes[0].o, store.i)
        return m


def _component(
    name: str,
    build: Callable[[], wiring.Component],
    bits: int,
    *,
    most_luts: float | None = None,
    least_mhz: float | None = None,
    part: Part = ECP5,
    once: str = "",
) -> Design:
    top = "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    return Design(
        name,
        lambda: component_verilog(build(), top),
        top,
        bits,
        most_luts,
        least_mhz,
        part,
        once=(f"{top}_{once}",) if once else (),
    )


def _logic(params: AcceleratorParams, codes: tuple[str, ...]) -> AcceleratorParams:
    """Return parameters with parsers in logic."""
    cut = _CUT if codes == CODE_NAMES[:1] else _TABLE_CUT
    return dataclasses.replace(params, parser="logic", parser_cut=cut, codes=codes)


def _parsers() -> Iterator[Design]:
    def logic(width: int, cut: int, codes: int) -> Callable[[], wiring.Component]:
        return lambda: UnrolledParser(width, cut, _SUFFIX_LIMIT, CODE_NAMES[:codes])

    def microcode(width: int) -> Callable[[], wiring.Component]:
        params = dataclasses.replace(
            PRESETS["l-onchip"], parser_bits=width, parser_cut=_CUT, bus_bits=128, lanes=8
        )
        return lambda: MicrocodeParser(params)

    yield _component(
        "textbook: leading-zero count, barrel shifter", lambda: LeadingZeroDecoder(_SUFFIX_LIMIT), 0
    )
    for width in (4, 8, 16, 64):
        yield _component(
            f"eg-k, W = {width}", logic(width, _CUT, 1), width, most_luts=32 * width, least_mhz=200
        )
    for width in (4, 8, 16):
        yield _component(
            f"all codes, W = {width}",
            logic(width, _TABLE_CUT, 3),
            width,
            most_luts=50 * width,
            least_mhz=180,
        )
    for width in (4, 8, 16):
        yield _component(
            f"microcode, W = {width}", microcode(width), width, most_luts=4 * width, least_mhz=250
        )


def _lanes() -> Iterator[Design]:
    small, large, tiny = (PRESETS[name] for name in ("s", "l-onchip", "xs-ice40"))
    yield _component(
        "XS lane, eg-k, W = 1",
        lambda: Lane(tiny),
        1,
        most_luts=350,
        least_mhz=150,
        part=ICE40,
    )
    yield _component(
        "S lane, microcode, W = 4", lambda: Lane(small), 4, most_luts=420, least_mhz=200
    )
    yield _component(
        "S lane, eg-k, W = 4",
        lambda: Lane(_logic(small, CODE_NAMES[:1])),
        4,
        most_luts=420,
        least_mhz=200,
    )
    yield _component(
        "S lane, all codes in LUTs, W = 4",
        lambda: Lane(_logic(small, CODE_NAMES)),
        4,
        most_luts=580,
        least_mhz=200,
    )
    yield _component("L lane, microcode, W = 8", lambda: Lane(large), 8)


def _arrays() -> Iterator[Design]:
    medium, large = PRESETS["m-ddr3"], PRESETS["l-onchip"]
    yield _component(
        "M, 16 lanes of W = 4, microcode",
        lambda: LaneArray(medium),
        64,
        once="lane",
        most_luts=7000,
        least_mhz=190,
    )
    yield _component(
        "M, 16 lanes of W = 4, all codes in LUTs",
        lambda: LaneArray(_logic(medium, CODE_NAMES)),
        64,
        once="lane",
        most_luts=9500,
        least_mhz=175,
    )
    yield _component(
        "L, 32 lanes of W = 8, microcode",
        lambda: LaneArray(large),
        256,
        once="lane",
        most_luts=27000,
        least_mhz=140,
    )


def _top(preset: str, part: Part, name: str) -> Design:
    params = PRESETS[preset]
    return Design(
        name,
        lambda: generate_verilog(params),
        top_name(params),
        params.beat_bits,
        part=part,
        clock="aclk",
        once=(f"{top_name(params)}_core_lane",) if params.lanes > 1 else (),
    )


def _boards() -> Iterator[Design]:
    for preset, board in (
        ("xs-ice40", "hx8k-b-evn"),
        ("s", "ulx3s-85f"),
        ("m-ddr3", "ulx3s-85f"),
        ("m-ddr3", "orangecrab-85f"),
        ("l-onchip", "ulx3s-85f"),
    ):
        yield _top(preset, BOARDS[board], f"{preset} on {board}")


_PARTS: dict[str, Callable[[], Iterator[Design]]] = {
    "parsers": _parsers,
    "lanes": _lanes,
    "arrays": _arrays,
    "boards": _boards,
}


def designs(part: str) -> list[Design]:
    """Return the designs of a part of `benchmarks.hardware_report.AREA_PARTS`."""
    return list(_PARTS[part]())
