"""Row store: adds up the parts of rows that the lanes' substreams bring."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from egret.params import RESULT_BITS, AcceleratorParams
from egret_hw.dealer import start_layout
from egret_hw.readout import sums_layout
from egret_hw.table_memory import table_memory

__all__ = ["RowStore", "walk_layout"]


def walk_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of how finished rows are read.

    Returns
    -------
    data.StructLayout
        `active`: a walk over `bank` goes on; `enable`: advance the read; `row`; `clear`: leave
        zeros behind.
    """
    return data.StructLayout(
        {
            "active": 1,
            "bank": 1,
            "enable": 1,
            "row": (params.row_depth - 1).bit_length(),
            "clear": 1,
        }
    )


class RowStore(wiring.Component):
    """Two banks of rows' sums: one is added to while the other one is read out.

    Every substream's sums arrive in the order of its rows, from its first row on; those of
    different substreams in any order. A row that several substreams share is the sum of its parts.

    Latency 3 cycles, throughput 1 sum (of every vector in the batch) a cycle, also of one row: what
    is not in the memory yet is added to on its way there. Nothing holds a sum back: `i.ready` is
    constant. Reading: latency 2 enabled cycles, throughput 1 row an enabled cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream of sums_layout)
        Sums.
    start : In(start_layout)
        Where a substream begins: all of a matrix before its first sum, and not before the last one
        of the matrix two before it.
    rows : In(array of 2)
        Rows of the matrix with each parity.
    banks : In(2)
        Bank of the matrix with each parity.
    complete : Out(2)
        Every substream's last sum of the matrix with this parity is stored.
    beyond : Out(2)
        A sum other than 0 came for a row beyond the matrix.
    beyond_substream : Out(array of 2)
        The lowest substream of which that is true.
    release : In(2)
        Forget the three above.
    cancel : In(1)
        Forget them for both, and what is under way; a walk goes on.
    walk : In(walk_layout)
        Reading.
    sums : Out(array of batch)
        The row read.
    wipe : In(1)
        Fill both banks with zeros; held until `wiped`. It waits for the walk to end.
    wiped : Out(1)
        Done.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self._row_bits = (params.row_depth - 1).bit_length()
        substream = sums_layout(params)["substream"].shape
        super().__init__(
            {
                "i": In(stream.Signature(sums_layout(params))),
                "start": In(start_layout(params)),
                "rows": In(data.ArrayLayout(params.row_depth.bit_length(), 2)),
                "banks": In(2),
                "complete": Out(2),
                "beyond": Out(2),
                "beyond_substream": Out(data.ArrayLayout(substream, 2)),
                "release": In(2),
                "cancel": In(1),
                "walk": In(walk_layout(params)),
                "sums": Out(data.ArrayLayout(signed(RESULT_BITS), params.batch)),
                "wipe": In(1),
                "wiped": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        row_bits = self._row_bits
        substreams = params.substreams
        substream_bits = (substreams - 1).bit_length()

        # The row that each substream's next sum belongs to, up to one that no matrix has. A memory
        # for each parity: the starts of one are placed while the other one's sums come.
        depth = max(2, 1 << substream_bits)
        next_rows = [Memory(shape=row_bits + 1, depth=depth, init=[]) for _ in range(2)]
        offered = self.i.payload

        stage = data.StructLayout(
            {
                "valid": 1,
                "bank": 1,
                "row": row_bits + 1,
                "sums": sums_layout(params),
                # What is behind the first stage knows: whether the row is beyond the matrix and its
                # sums other than 0, and whether one of the two stages before has the same row.
                "beyond": 1,
                "wrong": 1,
                "after_last": 1,
                "after_second": 1,
            }
        )
        stages = [Signal(stage, name=f"stage_{number}") for number in range(3)]
        first, second, done = stages
        take = self.i.valid
        m.d.comb += self.i.ready.eq(1)
        candidates = []
        for parity, memory in enumerate(next_rows):
            m.submodules[f"next_rows_{parity}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            candidates.append(read.data)
            starts = self.start.enable & (self.start.parity == parity)
            takes = take & (offered.parity == parity)
            m.d.comb += [
                read.addr.eq(offered.substream),
                write.en.eq(starts | takes & ~read.data[row_bits]),
                write.addr.eq(Mux(starts, self.start.substream, offered.substream)),
                write.data.eq(
                    Mux(
                        starts,
                        Mux(self.start.row[row_bits:].any(), 1 << row_bits, self.start.row),
                        read.data + 1,
                    )
                ),
            ]
        row = Mux(offered.parity, candidates[1], candidates[0])
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(stages)]

        def is_same(before: data.View) -> Value:
            place = Cat(before.bank, before.row) == Cat(first.bank, first.row)
            return before.valid & ~before.beyond & place

        m.d.sync += [
            first.valid.eq(take),
            first.bank.eq(self.banks.bit_select(offered.parity, 1)),
            first.row.eq(row),
            first.sums.eq(offered),
            second.beyond.eq(first.row >= self.rows[first.sums.parity]),
            second.after_last.eq(is_same(second)),
            second.after_second.eq(is_same(done)),
            done.wrong.eq(second.beyond & second.sums.sums.as_value().any()),
        ]

        # Wiping goes over the rows once.
        wiping = Signal(row_bits + 1)
        m.d.comb += self.wiped.eq(wiping[row_bits])
        with m.If(~self.wipe | self.wiped):
            m.d.sync += wiping.eq(0)
        with m.Elif(~self.walk.active):
            m.d.sync += wiping.eq(wiping + 1)

        shape = data.ArrayLayout(signed(RESULT_BITS), params.batch)
        walked = Signal(row_bits)
        clear_walked = Signal()
        walked_bank = Signal()
        total = Signal(shape)
        # What is added to, and what is walked over: of the one bank, and of the other.
        fetched = Signal(shape, reset_less=True)
        shown = Signal(shape, reset_less=True)
        # The last two totals, which a sum of the same row takes in place of the memory's.
        totals = [Signal(shape, name=f"total_{age}", reset_less=True) for age in (1, 2)]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise([total, *totals])]
        for vector in range(params.batch):
            kept = Mux(done.after_last, totals[0][vector], totals[1][vector])
            m.d.comb += total[vector].eq(
                Mux(done.after_last | done.after_second, kept, fetched[vector])
                + done.sums.sums[vector]
            )
        m.d.sync += [
            walked.eq(self.walk.row),
            walked_bank.eq(self.walk.bank),
            clear_walked.eq(self.walk.active & self.walk.enable & self.walk.clear),
        ]
        reads = []
        for bank in range(2):
            m.submodules[f"bank_{bank}"] = memory = table_memory(shape, params.row_depth)
            write, read = memory.write_port(), memory.read_port()
            reads.append(read)
            walks = self.walk.active & (self.walk.bank == bank)
            m.d.comb += [
                read.addr.eq(Mux(walks, self.walk.row, first.row)),
                read.en.eq(~walks | self.walk.enable),
            ]
            with m.If(self.wipe & ~self.walk.active):
                m.d.comb += [write.en.eq(1), write.addr.eq(wiping)]
            with m.Elif(clear_walked & (walked_bank == bank)):
                m.d.comb += [write.en.eq(1), write.addr.eq(walked)]
            with m.Else():
                m.d.comb += [
                    write.en.eq(done.valid & ~done.beyond & (done.bank == bank)),
                    write.addr.eq(done.row),
                    write.data.eq(total),
                ]
        m.d.sync += fetched.eq(Mux(second.bank, reads[1].data, reads[0].data))
        with m.If(self.walk.enable):
            m.d.sync += shown.eq(Mux(self.walk.bank, reads[1].data, reads[0].data))
        m.d.comb += self.sums.eq(shown)

        ended = [Signal(range(substreams + 1), name=f"ended_{parity}") for parity in range(2)]
        for parity in range(2):
            own = done.valid & (done.sums.parity == parity)
            m.d.comb += self.complete[parity].eq(ended[parity] == substreams)
            with m.If(own & done.sums.last):
                m.d.sync += ended[parity].eq(ended[parity] + 1)
            with m.If(own & done.wrong):
                m.d.sync += self.beyond[parity].eq(1)
                with m.If(
                    ~self.beyond[parity] | (done.sums.substream < self.beyond_substream[parity])
                ):
                    m.d.sync += self.beyond_substream[parity].eq(done.sums.substream)
            with m.If(self.release[parity] | self.cancel):
                m.d.sync += [ended[parity].eq(0), self.beyond[parity].eq(0)]
        with m.If(self.cancel):
            m.d.sync += [held.valid.eq(0) for held in stages]
        return m
