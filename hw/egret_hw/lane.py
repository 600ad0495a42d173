"""Lane: decodes its substreams, maps indices to weights and multiplies the non-zeros."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from egret.image_format import ENTRY_BITS
from egret.params import ACTIVATION_BITS, AcceleratorParams
from egret_hw.extractor import Extractor
from egret_hw.locator import Locator
from egret_hw.parser import Parser

__all__ = ["Lane", "lane_result_layout", "table_write_layout", "vector_write_layout"]

_INPUT_DEPTH = 16
_BLOCK_DEPTH = 16
_RESULT_DEPTH = 8


def lane_result_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a finished row in its lane.

    Returns
    -------
    data.StructLayout
        `slot`; `row`, the row's number in its substream; `sums`, one accumulator for each vector
        of the batch.
    """
    return data.StructLayout(
        {
            "slot": max(1, (params.slots - 1).bit_length()),
            "row": max(1, (params.row_slots - 1).bit_length()),
            "sums": data.ArrayLayout(signed(params.accumulator_bits), params.batch),
        }
    )


def table_write_layout() -> data.StructLayout:
    """Layout of the broadcast that loads value maps and row counts.

    Returns
    -------
    data.StructLayout
        `write_map` or `write_count` strobes; `address`, map index or substream; `entry`.
    """
    return data.StructLayout(
        {"write_map": 1, "write_count": 1, "address": ENTRY_BITS, "entry": ENTRY_BITS}
    )


def vector_write_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of the broadcast that writes activations.

    Returns
    -------
    data.StructLayout
        `enable`, one strobe for each vector of the batch; `memory`, which of the two memories;
        `address`, the column; `activations`, int8 each.
    """
    return data.StructLayout(
        {
            "enable": params.batch,
            "address": (params.activation_depth - 1).bit_length(),
            "memory": 1,
            "activations": data.ArrayLayout(signed(ACTIVATION_BITS), params.batch),
        }
    )


class Lane(wiring.Component):
    """One lane: W bits in, finished rows out.

    The lane runs free: it stalls only when it has no bits, or when its blocks of non-zeros wait for
    the multiplier. Zeros are dropped before the multiplier and cost no cycle of it.

    Latency from the last bits of a row to its result is 10 + C cycles when nothing waits.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    selected : In(1)
        A count in `table_write` belongs to this lane.
    start : In(1)
        Begin a matrix: the tables are loaded and the settings below are constant from here on.
    flush : In(1)
        No bits follow: empty the pipeline.
    order, dense, zigzag, columns, map_entries
        Descriptor fields.
    memory : In(1)
        Activation memory to read.
    table_write : In(table_write_layout)
        Broadcast of tables.
    vector_write : In(vector_write_layout)
        Broadcast of activations.
    i : In(stream.Signature(W))
        Bits, the most significant one first in time.
    o : Out(stream of lane_result_layout)
        Finished rows.
    multiply : Out(1)
        A weight that counts was multiplied: not the zero that may end a row.
    idle : Out(1)
        Nothing is inside.
    bad_prefix, bad_index, unfinished : Out(C)
        Of each slot, sticky until `start`: a prefix beyond the limit; an index beyond the map;
        rows still to come.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        column_bits = (params.activation_depth - 1).bit_length()
        super().__init__(
            {
                "selected": In(1),
                "start": In(1),
                "flush": In(1),
                "order": In(3),
                "dense": In(1),
                "zigzag": In(1),
                "columns": In(column_bits + 1),
                "map_entries": In(params.map_depth.bit_length()),
                "memory": In(1),
                "table_write": In(table_write_layout()),
                "vector_write": In(vector_write_layout(params)),
                "i": In(stream.Signature(params.parser_bits)),
                "o": Out(stream.Signature(lane_result_layout(params))),
                "multiply": Out(1),
                "idle": Out(1),
                "bad_prefix": Out(params.slots),
                "bad_index": Out(params.slots),
                "unfinished": Out(params.slots),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        slots = params.slots
        value_bits = params.suffix_limit + 1
        column_bits = (params.activation_depth - 1).bit_length()
        row_bits = params.row_slots.bit_length()
        slot_bits = max(1, (slots - 1).bit_length())

        m.submodules.input = buffer = SyncFIFO(width=params.parser_bits, depth=_INPUT_DEPTH)
        m.submodules.parser = parser = Parser(
            params.parser_bits, params.parser_cut, params.suffix_limit
        )
        m.submodules.locator = locator = Locator(
            params.parser_bits, slots, value_bits, column_bits, row_bits
        )
        m.submodules.extractor = extractor = Extractor(
            params.parser_bits, slots, value_bits, column_bits
        )
        m.submodules.blocks = blocks = SyncFIFO(width=locator.o.shape().size, depth=_BLOCK_DEPTH)

        # Bits to located blocks: one enable moves or holds the whole front.
        counts = Array(Signal(row_bits, name=f"rows_{slot}") for slot in range(slots))
        table = self.table_write
        with m.If(table.write_count & self.selected):
            m.d.sync += counts[table.address[: slots.bit_length() - 1]].eq(table.entry)
        enable = Signal()
        m.d.comb += [
            buffer.w_data.eq(self.i.payload),
            buffer.w_en.eq(self.i.valid),
            self.i.ready.eq(buffer.w_rdy),
            enable.eq((buffer.r_rdy | self.flush) & blocks.w_rdy),
            buffer.r_en.eq(enable),
            parser.start.eq(self.start),
            parser.enable.eq(enable),
            parser.order.eq(self.order),
            parser.i_valid.eq(buffer.r_rdy),
            parser.i_bits.eq(buffer.r_data),
            locator.start.eq(self.start),
            locator.enable.eq(enable),
            locator.dense.eq(self.dense),
            locator.columns.eq(self.columns),
            locator.rows.eq(Cat(*counts)),
            locator.i_valid.eq(parser.o_valid),
            locator.i_bits.eq(parser.o_bits),
            locator.i_end.eq(parser.o_end),
            locator.i_nonzero.eq(parser.o_nonzero),
            locator.i_bad.eq(parser.o_bad),
            blocks.w_data.eq(locator.o),
            blocks.w_en.eq(locator.o_valid & enable),
            extractor.i.payload.eq(blocks.r_data),
            extractor.i.valid.eq(blocks.r_rdy),
            blocks.r_en.eq(extractor.i.ready),
            self.bad_prefix.eq(locator.bad),
            self.unfinished.eq(locator.unfinished),
        ]

        # Value map and activations, each read at once and registered once more: block RAM is slow
        # without its output register.
        event = extractor.o
        m.submodules.map = value_map = Memory(
            shape=signed(params.weight_bits), depth=params.map_depth, init=[]
        )
        map_write = value_map.write_port()
        map_read = value_map.read_port()
        m.submodules.vectors = vectors = Memory(
            shape=unsigned(ACTIVATION_BITS * params.batch),
            depth=2 * params.activation_depth,
            init=[],
        )
        vector_write = vectors.write_port(granularity=ACTIVATION_BITS)
        vector_read = vectors.read_port()
        m.d.comb += [
            map_write.en.eq(table.write_map),
            map_write.addr.eq(table.address),
            map_write.data.eq(table.entry[: params.weight_bits]),
            vector_write.en.eq(self.vector_write.enable),
            vector_write.addr.eq(Cat(self.vector_write.address, self.vector_write.memory)),
            vector_write.data.eq(self.vector_write.activations),
        ]

        index = Signal(value_bits)
        column = Signal(column_bits)
        tag = data.StructLayout({"valid": 1, "last": 1, "slot": slot_bits})
        tags = [Signal(tag, name=f"tag_{stage}") for stage in range(4)]
        m.d.sync += [
            index.eq(event.value - (1 << self.order)),
            column.eq(event.column),
            tags[0].valid.eq(extractor.o_valid),
            tags[0].last.eq(event.last),
            tags[0].slot.eq(event.slot),
        ]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(tags)]
        m.d.sync += self.multiply.eq(tags[0].valid & (self.dense | index.any()))
        beyond = Signal()
        m.d.sync += beyond.eq(tags[0].valid & (index >= self.map_entries))
        with m.If(beyond):
            m.d.sync += self.bad_index.bit_select(tags[1].slot, 1).eq(1)

        zigzag = Signal(signed(params.weight_bits))
        weight = Signal(signed(params.weight_bits))
        activations = Signal(data.ArrayLayout(signed(ACTIVATION_BITS), params.batch))
        m.d.comb += [
            map_read.addr.eq(index),
            vector_read.addr.eq(Cat(column, self.memory)),
        ]
        m.d.sync += [
            zigzag.eq((index >> 1) ^ index[0].replicate(params.weight_bits)),
            weight.eq(Mux(self.zigzag, zigzag, map_read.data)),
            activations.eq(vector_read.data),
        ]

        # Multiply and accumulate: factors, product, sum, each from a register.
        products = [
            Signal(signed(params.weight_bits + ACTIVATION_BITS), name=f"product_{vector}")
            for vector in range(params.batch)
        ]
        done = tags[3]
        results_layout = lane_result_layout(params)
        m.submodules.results = results = SyncFIFO(width=results_layout.size, depth=_RESULT_DEPTH)
        result = Signal(results_layout)
        rows_done = Array(Signal(result.row.shape(), name=f"done_{slot}") for slot in range(slots))
        m.d.comb += [result.slot.eq(done.slot), result.row.eq(rows_done[done.slot])]
        for vector, product in enumerate(products):
            m.d.sync += product.eq(weight * activations[vector])
            sums = Array(
                Signal(signed(params.accumulator_bits), name=f"sum_{vector}_{slot}")
                for slot in range(slots)
            )
            total = Signal(signed(params.accumulator_bits), name=f"total_{vector}")
            m.d.comb += [total.eq(sums[done.slot] + product), result.sums[vector].eq(total)]
            with m.If(done.valid):
                m.d.sync += sums[done.slot].eq(Mux(done.last, 0, total))
            with m.If(self.start):
                m.d.sync += [held.eq(0) for held in sums]
        with m.If(done.valid & done.last):
            m.d.sync += rows_done[done.slot].eq(rows_done[done.slot] + 1)

        # Credits: a row may only finish when its result has a place, so nothing waits behind the
        # extractor.
        credits = Signal(range(_RESULT_DEPTH + 1), init=_RESULT_DEPTH)
        ends_row = extractor.issue & extractor.issue_last
        leaves = results.r_rdy & results.r_en
        m.d.sync += credits.eq(credits - ends_row + leaves)
        m.d.comb += [
            extractor.hold.eq(credits == 0),
            results.w_en.eq(done.valid & done.last),
            results.w_data.eq(result),
            self.o.valid.eq(results.r_rdy),
            self.o.payload.eq(results.r_data),
            results.r_en.eq(self.o.ready),
        ]
        in_flight = Cat(*(stage.valid for stage in tags))
        m.d.comb += self.idle.eq(
            ~(
                buffer.r_rdy
                | parser.busy
                | locator.busy
                | blocks.r_rdy
                | extractor.busy
                | in_flight.any()
                | results.r_rdy
            )
        )
        with m.If(self.start):
            m.d.sync += self.bad_index.eq(0)
            m.d.sync += [held.eq(0) for held in rows_done]
        return m
